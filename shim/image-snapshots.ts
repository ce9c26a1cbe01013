/** The internal snapshots that an image really holds, as qemu-img sees them while QEMU has it open (-U). */
import { execFile } from "node:child_process";
import * as z from "zod/mini";
import { messageOf } from "./libvirt-fault.ts";

const infoSchema = z.object({ snapshots: z.optional(z.array(z.object({ name: z.string() }))) });

/** 16,384 snapshots at about 400 bytes each. */
const outputBytesMax = 16 * 1024 * 1024;
const patienceMs = 30_000;

export type ImageSnapshots = { readable: true; missing: string[] } | { readable: false; cause: string };

/** Which of `wanted` are not in the image. `path` is absolute, so it is never taken for a protocol or an option. */
export async function missingSnapshots(path: string, wanted: readonly string[]): Promise<ImageSnapshots> {
  try {
    const text = await imageInfo(path);
    const held = new Set(infoSchema.parse(JSON.parse(text)).snapshots?.map(({ name }) => name));
    return { readable: true, missing: wanted.filter((name) => !held.has(name)) };
  } catch (error) {
    return { readable: false, cause: messageOf(error).slice(0, 500) };
  }
}

function imageInfo(path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(
      "qemu-img",
      ["info", "-U", "-f", "qcow2", "--output=json", path],
      { maxBuffer: outputBytesMax, timeout: patienceMs, env: { ...process.env, LC_ALL: "C" } },
      (error, stdout, stderr) => (error === null ? resolve(stdout) : reject(new Error(stderr.trim() || error.message))),
    );
  });
}
