/**
 * Stands between a release's shims and its control plane and hears every message of the treaty, as text. HTTP (enrolment,
 * the bucket, the door) passes through it untouched.
 */
import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { WebSocket, WebSocketServer } from "ws";

export interface RecordingProxy {
  port: number;
  close(): Promise<void>;
}

export type Heard = (direction: "up" | "down", text: string) => void;

/** 1005 and 1006 may not be sent: they stand for "no code" and "no close at all". */
const sendable = (code: number) => (code === 1000 || code >= 3000 ? code : 1000);

export async function startRecordingProxy(targetPort: number, heard: Heard): Promise<RecordingProxy> {
  const sockets = new WebSocketServer({ noServer: true });
  const open = new Set<WebSocket>();
  const server = createServer((from, to) => pass(from, to, targetPort));

  server.on("upgrade", (from: IncomingMessage, socket: Duplex, head: Buffer) => {
    const { host = "" } = from.headers;
    const upstream = new WebSocket(`ws://127.0.0.1:${targetPort}${from.url}`, { headers: { host } });
    open.add(upstream);
    // What comes before the shim's side is open waits: the challenge is sent at once.
    const waiting: string[] = [];
    upstream.on("message", (data) => waiting.push(data.toString()));
    upstream.on("error", () => socket.destroy());
    upstream.once("open", () =>
      sockets.handleUpgrade(from, socket, head, (shim) => {
        open.add(shim);
        const down = (text: string) => {
          heard("down", text);
          shim.send(text);
        };
        upstream.removeAllListeners("message");
        for (const text of waiting) down(text);
        upstream.on("message", (data) => down(data.toString()));
        shim.on("message", (data) => {
          heard("up", data.toString());
          if (upstream.readyState === WebSocket.OPEN) upstream.send(data.toString());
        });
        shim.on("error", () => upstream.terminate());
        shim.on("close", () => upstream.close());
        upstream.on("close", (code, reason) => shim.close(sendable(code), reason.toString()));
      }),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("the proxy listens on no port");
  return {
    port: address.port,
    async close() {
      for (const socket of open) socket.terminate();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function pass(from: IncomingMessage, to: ServerResponse, port: number): void {
  const { method, url: path, headers } = from;
  const onward = request({ host: "127.0.0.1", port, method, path, headers }, (answer) => {
    to.writeHead(answer.statusCode ?? 502, answer.headers);
    answer.pipe(to);
  });
  onward.on("error", () => to.destroy());
  from.pipe(onward);
}
