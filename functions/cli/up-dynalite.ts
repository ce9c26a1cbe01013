/**
 * The embedded DynamoDB: dynalite over LevelDB in this process, on an ephemeral loopback port. Its writes reach the
 * operating system before they are answered, so a killed process loses none; LevelDB's own lock keeps a second process
 * off the folder.
 */
import type { IncomingMessage, Server } from "node:http";
import dynalite from "dynalite";
import { Fault } from "#protocol/fault";

/**
 * Connections that wait to be taken: when a fleet of a thousand hosts comes back at once, workerd opens one for each request. What does not fit is
 * dropped by the kernel and tried again by the other side only a second later.
 */
const backlogMax = 4_096;

export interface EmbeddedDynamo {
  endpoint: string;
  close(): Promise<void>;
}

/**
 * dynalite throws what a request breaks with (index.js, httpHandler), and a client that dies in its request would take the
 * whole control plane with it. What was not read whole is not carried out in any case.
 */
function forgiveBroken(request: IncomingMessage): void {
  const on = request.on.bind(request);
  Object.defineProperty(request, "on", {
    value: (event: string, listener: (...args: unknown[]) => void) =>
      on(event, event === "error" ? () => request.destroy() : listener),
  });
}

/** Opens the store kept in `folder`. Throws `Fault` `store.unreachable` when the port or the folder cannot be had. */
export async function openDynalite(folder: string): Promise<EmbeddedDynamo> {
  const server: Server = dynalite({ path: folder, createTableMs: 0, deleteTableMs: 0, updateTableMs: 0 });
  server.prependListener("request", forgiveBroken);
  // Else a connection is closed after five quiet seconds, also while workerd is sending the next request on it, which is then lost.
  server.keepAliveTimeout = 0;
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) =>
      reject(
        new Fault(
          {
            code: "store.unreachable",
            cause: `The embedded DynamoDB cannot listen on loopback: ${error.message}.`,
            action: "Free a port on 127.0.0.1, or give another store with --dynamodb URL.",
            retry: "person",
          },
          { cause: error },
        ),
      ),
    );
    server.listen({ port: 0, host: "127.0.0.1", backlog: backlogMax }, resolve);
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("dynalite listens on no port");
  return {
    endpoint: `http://127.0.0.1:${address.port}`,
    close: () =>
      new Promise((resolve, reject) => {
        server.close((error) => (error instanceof Error ? reject(error) : resolve()));
        server.closeAllConnections();
      }),
  };
}
