/**
 * A relay in front of a libvirtd that keeps a copy of every frame, in both directions. It cuts the stream by the length
 * word alone and knows nothing of the parser under test.
 */
import { createConnection, createServer, type Server, type Socket } from "node:net";

export type Relay = {
  readonly socketPath: string;
  readonly frames: Buffer[];
  /** Calls `listener` after each frame that was kept. */
  onFrame(listener: () => void): void;
  stop(): Promise<void>;
};

export async function startRelay(socketPath: string, target: string): Promise<Relay> {
  const frames: Buffer[] = [];
  const listeners: (() => void)[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const daemon = createConnection({ path: target });
    for (const [from, to] of [[client, daemon] as const, [daemon, client] as const]) {
      sockets.add(from);
      const keep = frameCutter((frame) => {
        frames.push(frame);
        for (const listener of listeners) listener();
      });
      from.on("data", (chunk: Buffer) => {
        keep(chunk);
        to.write(chunk);
      });
      from.on("error", () => {});
      from.on("close", () => to.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return {
    socketPath,
    frames,
    onFrame: (listener) => {
      listeners.push(listener);
    },
    stop: () => stop(server, sockets),
  };
}

function frameCutter(emit: (frame: Buffer) => void): (chunk: Buffer) => void {
  let held = Buffer.alloc(0);
  return (chunk) => {
    held = Buffer.concat([held, chunk]);
    while (held.length >= 4 && held.length >= held.readUInt32BE(0)) {
      const length = held.readUInt32BE(0);
      emit(Buffer.from(held.subarray(0, length)));
      held = held.subarray(length);
    }
  };
}

function stop(server: Server, sockets: Iterable<Socket>): Promise<void> {
  for (const socket of sockets) socket.destroy();
  return new Promise((resolve) => server.close(() => resolve()));
}
