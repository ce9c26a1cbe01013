/** What a bundle weighs and what is in it, from esbuild's metafile. */
import { readFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import type { Metafile } from "esbuild";

export interface Weight {
  rawBytes: number;
  gzipBytes: number;
}

export async function weigh(path: string): Promise<Weight> {
  const bytes = await readFile(path);
  return { rawBytes: bytes.byteLength, gzipBytes: gzipSync(bytes).byteLength };
}

/** Bytes by package, and by room for what is ours; the heaviest first. `output` is the file as the metafile names it. */
export function contentsOf(metafile: Metafile, output: string): { name: string; bytes: number }[] {
  const inputs = metafile.outputs[output]?.inputs;
  if (inputs === undefined) throw new Error(`the metafile knows no ${output}`);
  const bytes = new Map<string, number>();
  for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
    const name = partOf(path);
    bytes.set(name, (bytes.get(name) ?? 0) + bytesInOutput);
  }
  return [...bytes].map(([name, bytes]) => ({ name, bytes })).sort((left, right) => right.bytes - left.bytes);
}

function partOf(path: string): string {
  const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\/(?!.*node_modules\/)/.exec(path)?.[1];
  if (name !== undefined) return name.replace(/^@(aws-sdk|smithy)\/.*/, "AWS SDK");
  return /^(shim|functions)\//.test(path) ? "vmferry" : "other";
}

/** "AWS SDK 198, vmferry 131, ... KiB". */
export const contentsText = (contents: readonly { name: string; bytes: number }[]): string =>
  `${contents.map(({ name, bytes }) => `${name} ${(bytes / 1024).toFixed(0)}`).join(", ")} KiB`;
