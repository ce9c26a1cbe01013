/**
 * I3 at the functions' edge: what a report says is in the bucket is looked at before any state names it.
 */
import { Fault } from "#protocol/fault";
import type { Ports } from "./ports.ts";

/** Throws `Fault` `bundle.unreachable` (retry safe: the shim repeats its report) unless the object stands there with this size. */
export async function stands(
  ports: Pick<Ports, "bundles">,
  what: string,
  object: { key: string; bytes: number },
): Promise<void> {
  const head = await ports.bundles.head(object.key);
  if (head?.bytes === object.bytes) return;
  throw new Fault({
    code: "bundle.unreachable",
    cause: `${what} was reported as stored but is not in the bucket.`,
    action: "The shim repeats its report; look at the bucket if this stays.",
    retry: "safe",
  });
}
