/** A line to a store that can be cut, for tests. */
import assert from "node:assert/strict";
import { connect, createServer, type Socket } from "node:net";

/** A TCP proxy that can be cut (connections refused) and healed on the same port. */
export async function openCuttableProxy(target: string) {
  const { port: targetPort } = new URL(target);
  const sockets = new Set<Socket>();
  let server = makeServer();
  function makeServer() {
    return createServer((inner) => {
      const outer = connect(Number(targetPort), "127.0.0.1");
      for (const socket of [inner, outer]) {
        sockets.add(socket);
        socket.on("error", () => socket.destroy()).on("close", () => sockets.delete(socket));
      }
      inner.pipe(outer);
      outer.pipe(inner);
    });
  }
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const endpoint = endpointOf(server);
  return {
    endpoint,
    async cut() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
    async heal() {
      server = makeServer();
      await new Promise<void>((resolve) => server.listen(Number(new URL(endpoint).port), "127.0.0.1", resolve));
    },
  };
}

/** The address of a server that listens on loopback. */
export function endpointOf(server: { address(): unknown }): string {
  const address = server.address();
  assert.ok(typeof address === "object" && address !== null && "port" in address);
  return `http://127.0.0.1:${address.port}`;
}
