/**
 * A server of somebody else's that a test needs: started, waited for, and ended by its own process id. Where util-linux
 * has `setpriv`, the kernel ends it with us, so that a killed test leaves no server behind.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { findProgram } from "./prerequisites.ts";

/** What a server said last: it tells its cause at the end. */
const tailCharsMax = 4_000;
/** A server that has not ended by itself after this is killed; its data is thrown away in any case. */
const endMsMax = 5_000;
const pollMs = 50;

export interface BoundProcess {
  readonly pid: number;
  /** The last it printed. */
  tail(): string;
  alive(): boolean;
  end(): Promise<void>;
}

/** Starts a program with its output kept. Rejects when it cannot be started. */
export async function startBound(
  words: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<BoundProcess> {
  const setpriv = await findProgram("setpriv");
  const [file = "", ...rest] = setpriv === undefined ? words : [setpriv, "--pdeathsig", "KILL", ...words];
  const child = spawn(file, rest, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  let tail = "";
  const take = (chunk: string) => {
    tail = (tail + chunk).slice(-tailCharsMax);
  };
  child.stdout.setEncoding("utf8").on("data", take);
  child.stderr.setEncoding("utf8").on("data", take);
  await new Promise<void>((resolve, reject) => child.once("spawn", resolve).once("error", reject));
  const alive = () => child.exitCode === null && child.signalCode === null;
  return { pid: child.pid ?? 0, tail: () => tail, alive, end: () => end(child, alive) };
}

async function end(child: ChildProcess, alive: () => boolean): Promise<void> {
  if (!alive()) return;
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.kill("SIGTERM");
  const killer = setTimeout(() => child.kill("SIGKILL"), endMsMax);
  await ended;
  clearTimeout(killer);
}

/** Waits until `answers` does not reject. Rejects with what the server said when it ends first, or after `waitMsMax`. */
export async function answering(
  server: BoundProcess,
  waitMsMax: number,
  answers: () => Promise<unknown>,
): Promise<void> {
  for (const until = Date.now() + waitMsMax; ; ) {
    try {
      await answers();
      return;
    } catch (error) {
      if (!server.alive()) throw new Error(`a server ended before it answered:\n${server.tail()}`);
      if (Date.now() > until) throw new Error(`no answer within ${waitMsMax} ms (${error}):\n${server.tail()}`);
    }
    await delay(pollMs);
  }
}

/** A loopback port that nobody listens on now, for servers that cannot be told to choose one. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() =>
        address === null || typeof address === "string" ? reject(new Error("no port")) : resolve(address.port),
      );
    });
  });
}
