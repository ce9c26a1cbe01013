/**
 * The local control plane of a fleet run: `vmferry up` in a process of its own, killed and started again on the same data, and what can be measured of it from
 * outside: the API's answers and how long they take, its own counters of requests to the store, the CPU of its two processes.
 */
import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import * as z from "zod/mini";
import { type BoundProcess, startBound } from "#lab/bound-process";

const readyMsMax = 60_000;
/** No answer of the API takes longer than this in any run that says something. */
const answerMsMax = 60_000;

export interface StoreCounts {
  requests: number;
  sentBytes: number;
  receivedBytes: number;
  /** By operation, e.g. Query. */
  byOperation: Record<string, number>;
}

/** CPU time since the control plane's start, ms. `node`: dynalite and miniflare's own; `workerd`: the Worker and its objects. */
export interface ControlCpu {
  nodeMs: number;
  workerdMs: number;
  nodeRssBytes: number;
  workerdRssBytes: number;
}

const tokenSchema = z.object({ token: z.string() });

export class ControlPlane {
  readonly url: string;
  readonly #folder: string;
  readonly #port: number;
  readonly #timerMs: number;
  #process: BoundProcess | null = null;
  #token = "";

  private constructor(folder: string, port: number, timerMs: number) {
    this.#folder = folder;
    this.#port = port;
    this.#timerMs = timerMs;
    this.url = `http://127.0.0.1:${port}`;
  }

  static async start(folder: string, timerMs: number): Promise<ControlPlane> {
    const control = new ControlPlane(folder, await freePort(), timerMs);
    await control.begin();
    return control;
  }

  /** Starts it, the first time or after `kill`. */
  async begin(): Promise<void> {
    const up = join(import.meta.dirname, "up-process.ts");
    const words = [process.execPath, up, this.#folder, String(this.#port), String(this.#timerMs)];
    const started = await startBound(words);
    this.#process = started;
    const untilMs = performance.now() + readyMsMax;
    while (!started.tail().includes("ready ")) {
      if (!started.alive() || performance.now() > untilMs)
        throw new Error(`the control plane does not start:\n${started.tail()}`);
      await sleep(50);
    }
    this.#token = (await readFile(join(this.#folder, "data", "admin-token"), "utf8")).trim();
  }

  /** The last it printed. */
  tail(): string {
    return this.#process?.tail() ?? "";
  }

  /** kill -9; its workerd goes with it. */
  async kill(): Promise<void> {
    const running = this.#process;
    if (running === null) return;
    process.kill(running.pid, "SIGKILL");
    while (running.alive()) await sleep(10);
    this.#process = null;
  }

  async end(): Promise<void> {
    await this.#process?.end();
    this.#process = null;
  }

  async ask(
    method: "GET" | "POST",
    path: string,
    body?: unknown,
    key?: string,
  ): Promise<{ status: number; text: string }> {
    const response = await fetch(`${this.url}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${this.#token}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(key === undefined ? {} : { "idempotency-key": key }),
      },
      signal: AbortSignal.timeout(answerMsMax),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: response.status, text: await response.text() };
  }

  /** Throws unless the answer is a success of this shape. */
  async get<T>(path: string, schema: z.ZodMiniType<T>): Promise<T> {
    const { status, text } = await this.ask("GET", path);
    if (status !== 200) throw new Error(`GET ${path} answered ${status}: ${text.slice(0, 400)}`);
    return schema.parse(JSON.parse(text));
  }

  async joinToken(uses: number): Promise<string> {
    const { status, text } = await this.ask("POST", "/v1/join-tokens", { uses });
    if (status !== 201) throw new Error(`a join token was refused with ${status}: ${text}`);
    return tokenSchema.parse(JSON.parse(text)).token;
  }

  /** Since the control plane's start. */
  async storeCounts(): Promise<StoreCounts> {
    const { status, text } = await this.ask("GET", "/metrics");
    if (status !== 200) throw new Error(`/metrics answered ${status}: ${text.slice(0, 400)}`);
    const counts: StoreCounts = { requests: 0, sentBytes: 0, receivedBytes: 0, byOperation: {} };
    const line =
      /^vmferry_store_(requests|sent_bytes|received_bytes)_total\{(?:isolate="\w+",)?store="dynamodb",operation="(\w+)"\} (\d+)$/;
    for (const each of text.split("\n")) {
      const [, what, operation = "", value = "0"] = line.exec(each) ?? [];
      if (what === "requests") {
        counts.requests += Number(value);
        counts.byOperation[operation] = Number(value);
      } else if (what === "sent_bytes") counts.sentBytes += Number(value);
      else if (what === "received_bytes") counts.receivedBytes += Number(value);
    }
    return counts;
  }

  async cpu(): Promise<ControlCpu> {
    const pid = this.#process?.pid ?? 0;
    const cpu: ControlCpu = { nodeMs: 0, workerdMs: 0, nodeRssBytes: 0, workerdRssBytes: 0 };
    for (const each of await readdir("/proc")) {
      if (!/^\d+$/.test(each)) continue;
      const stat = await statOf(Number(each));
      if (stat === null || (stat.pid !== pid && stat.parent !== pid)) continue;
      if (stat.name.startsWith("workerd")) {
        cpu.workerdMs += stat.cpuMs;
        cpu.workerdRssBytes += stat.rssBytes;
      } else if (stat.pid === pid) {
        cpu.nodeMs += stat.cpuMs;
        cpu.nodeRssBytes += stat.rssBytes;
      }
    }
    return cpu;
  }
}

/** Linux's USER_HZ, as every build of it has. */
const ticksPerSecond = 100;
let pageBytes = 4_096;
promisify(execFile)("getconf", ["PAGESIZE"]).then(
  ({ stdout }) => {
    pageBytes = Number(stdout) || pageBytes;
  },
  () => {},
);

async function statOf(pid: number) {
  try {
    const text = await readFile(`/proc/${pid}/stat`, "utf8");
    const name = text.slice(text.indexOf("(") + 1, text.lastIndexOf(")"));
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const ticks = Number(fields[11]) + Number(fields[12]);
    return {
      pid,
      name,
      parent: Number(fields[1]),
      cpuMs: (ticks * 1_000) / ticksPerSecond,
      rssBytes: Number(fields[21]) * pageBytes,
    };
  } catch {
    // It has ended meanwhile.
    return null;
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no port is free");
  return address.port;
}
