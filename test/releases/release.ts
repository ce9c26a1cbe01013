/**
 * The bundles of releases that were cut (record.ts), unpacked for tests. They lie below node_modules, where what they do not
 * bundle is found as from an installed package, and where no tool takes them for sources.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliDecompressSync } from "node:zlib";

const kept = join(import.meta.dirname);
const unpacked = join(import.meta.dirname, "../../node_modules/.cache/vmferry-releases");

export type ReleaseFile = "shim.mjs" | "worker.mjs" | "vmferry.mjs" | "protocol.mjs";

/** Releases of which there are bundles, oldest first. */
export const keptReleases: readonly string[] = readdirSync(kept, { withFileTypes: true })
  .flatMap((entry) => (entry.isDirectory() ? [entry.name] : []))
  .sort((one, other) => one.localeCompare(other, "en", { numeric: true }));

/** The path of a release's module; `worker.mjs` lies beside `vmferry.mjs`, where that looks for it. */
export function releaseFile(release: string, name: ReleaseFile): string {
  const [path] = (["worker.mjs", name] as const).map((each) => unpack(release, each)).reverse();
  return path ?? "";
}

function unpack(release: string, name: ReleaseFile): string {
  const packed = readFileSync(join(kept, release, `${name}.br`));
  // By its content: a fixture that was cut anew is never mistaken for the one before.
  const cut = readdirSync(join(kept, release)).filter((file) => file.endsWith(".br"));
  const digest = createHash("sha256");
  for (const file of cut.sort()) digest.update(readFileSync(join(kept, release, file)));
  const folder = join(unpacked, `${release}-${digest.digest("hex").slice(0, 12)}`);
  const path = join(folder, name);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  // Whole or not at all: other tests unpack it at the same time.
  const made = `${path}.${process.pid}`;
  writeFileSync(made, brotliDecompressSync(packed));
  renameSync(made, path);
  return path;
}
