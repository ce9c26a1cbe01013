/**
 * One shim for one state directory: two would answer the same commands from two memories (I6). Held by an abstract unix
 * socket named after the directory's inode: the kernel gives it back whatever way the process ends, so there is no stale
 * lock. Abstract names belong to a network namespace; two namespaces must not share a state directory.
 */
import { stat } from "node:fs/promises";
import { createServer } from "node:net";
import { Fault } from "#protocol/fault";

/** Resolves with what releases it. Throws `Fault` `request.conflict` when another process holds it. */
export async function lockState(directory: string): Promise<() => void> {
  const { dev, ino } = await stat(directory, { bigint: true });
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(`\0vmferry-shim-${dev}-${ino}`, resolve);
  }).catch((error: unknown) => {
    if (!(error instanceof Error && "code" in error && error.code === "EADDRINUSE")) throw error;
    throw new Fault({
      code: "request.conflict",
      cause: `Another shim uses the state directory ${directory}.`,
      action: "Use that one (systemctl status vmferry-shim), or give this one another --state.",
      retry: "never",
    });
  });
  // The lock alone must not keep the process alive.
  server.unref();
  return () => server.close();
}
