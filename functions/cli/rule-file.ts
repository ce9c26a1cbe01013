/** A rule's file, YAML or JSON (which is YAML): one document, bounded, without aliases, so that what is sent is what stands there. */
import { readFile } from "node:fs/promises";
import { parseDocument } from "yaml";
import { CliError } from "./cli-error.ts";
import { exitCodes } from "./exit-code.ts";

/** As the API's bound of a body. */
const fileBytesMax = 64 * 1024;

const refused = (file: string, why: string, exit: number = exitCodes.usage) =>
  new CliError({
    code: "file.unreadable",
    cause: `${file} is refused: ${why}.`,
    action: "Write one rule as YAML or JSON; vmferry rule apply --dry-run shows what comes of it.",
    exit,
  });

/** The rule's name and its document, unchecked otherwise: the API checks it. Throws `CliError`. */
export async function readRuleFile(file: string): Promise<{ name: string; document: Record<string, unknown> }> {
  const text = await (file === "-" ? standardInput() : readFile(file, "utf8")).catch((error: unknown) => {
    throw refused(file, error instanceof Error ? error.message : "it cannot be read", exitCodes.notFound);
  });
  if (Buffer.byteLength(text) > fileBytesMax) throw refused(file, `it is over the limit of ${fileBytesMax} bytes`);
  const parsed = parseDocument(text, { version: "1.2", schema: "core", uniqueKeys: true, prettyErrors: true });
  const [error] = [...parsed.errors, ...parsed.warnings];
  if (error !== undefined) throw refused(file, error.message.split("\n")[0]?.replace(/[:.]$/, "") ?? "it is no YAML");
  let value: unknown;
  try {
    value = parsed.toJS({ maxAliasCount: 0 });
  } catch {
    throw refused(file, "it has aliases, which a rule does not take");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw refused(file, "it is not a rule");
  const document: Record<string, unknown> = { ...value };
  if (typeof document.name !== "string") throw refused(file, "it has no `name`");
  return { name: document.name, document };
}

async function standardInput(): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of process.stdin) {
    const buffer = Buffer.from(part);
    bytes += buffer.byteLength;
    parts.push(buffer);
    if (bytes > fileBytesMax) break;
  }
  return Buffer.concat(parts).toString("utf8");
}
