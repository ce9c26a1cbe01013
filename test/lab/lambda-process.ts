/**
 * Bundled Lambdas in processes of their own, behind Lambda's Runtime API: nothing passes between two of them, and nothing between two
 * invocations but what a warm process keeps. One process serves one invocation at a time; who comes meanwhile gets another process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { basename, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";

export interface LambdaOptions {
  /** The bundle, an .mjs file. */
  file: string;
  /** Which of its exports. */
  handler?: string;
  /** All that the process sees; nothing of ours is handed on. */
  env: Readonly<Record<string, string>>;
  /** `warm`: a process serves on. `cold`: each invocation has a process of its own, which ends with it. */
  mode: "warm" | "cold";
  timeoutMs?: number;
  /** What the function wrote, line by line. */
  onLine?: (line: string) => void;
}

/** The function failed: it threw, it ended, or it took too long. */
export class LambdaError extends Error {
  override readonly name = "LambdaError";
  readonly errorType: string;
  constructor(errorType: string, message: string) {
    super(message);
    this.errorType = errorType;
  }
}

/** What an invocation gave: a value, or a body that arrives while the function works. */
export type LambdaResult = { kind: "value"; value: unknown } | { kind: "stream"; body: IncomingMessage };

interface Invocation {
  id: string;
  event: unknown;
  resolve(result: LambdaResult): void;
  reject(error: LambdaError): void;
}

/** Lambda's own default is 3 s; functions behind API Gateway are given its 30 s. */
const timeoutMsDefault = 30_000;
const bootstrap = join(import.meta.dirname, "lambda-bootstrap.ts");

/** One execution environment: a process and the Runtime API that it alone is served by. */
class Environment {
  readonly #options: LambdaOptions;
  readonly #server: Server;
  readonly #closed: Promise<void>;
  #child: ChildProcess | null = null;
  #current: { invocation: Invocation; timer: NodeJS.Timeout; settle: (() => void) | null } | null = null;
  #asking: ServerResponse | null = null;
  /** Called when it can take an invocation. */
  onIdle: () => void = () => {};
  onEnd: () => void = () => {};

  constructor(options: LambdaOptions) {
    this.#options = options;
    this.#server = createServer((request, reply) => void this.#served(request, reply));
    this.#closed = new Promise((resolve) => this.#server.once("close", resolve));
  }

  async start(first: Invocation): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the Runtime API has no port");
    const { file, handler = "handler", env, onLine = () => {} } = this.#options;
    const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", bootstrap], {
      env: {
        ...env,
        AWS_LAMBDA_RUNTIME_API: `127.0.0.1:${address.port}`,
        LAMBDA_TASK_ROOT: dirname(file),
        _HANDLER: `${basename(file, ".mjs")}.${handler}`,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on("line", onLine);
    child.once("exit", (code, signal) => {
      this.#fail("Runtime.ExitError", `the process ended (${signal ?? code})`);
      this.#server.close();
      this.#server.closeAllConnections();
      this.onEnd();
    });
    this.#begin(first);
  }

  /** Only when it is idle. */
  invoke(invocation: Invocation): void {
    this.#begin(invocation);
    this.#hand();
  }

  async end(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#closed;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  #begin(invocation: Invocation): void {
    const timeoutMs = this.#options.timeoutMs ?? timeoutMsDefault;
    const timer = setTimeout(() => {
      this.#fail("Sandbox.Timedout", `Task timed out after ${(timeoutMs / 1000).toFixed(2)} seconds`);
      void this.end();
    }, timeoutMs);
    this.#current = { invocation, timer, settle: null };
  }

  #hand(): void {
    const reply = this.#asking;
    const current = this.#current;
    if (reply === null || current === null) return;
    this.#asking = null;
    reply.writeHead(200, {
      "content-type": "application/json",
      "lambda-runtime-aws-request-id": current.invocation.id,
      "lambda-runtime-deadline-ms": String(Date.now() + (this.#options.timeoutMs ?? timeoutMsDefault)),
    });
    reply.end(JSON.stringify(current.invocation.event ?? null));
  }

  #fail(errorType: string, message: string): void {
    const current = this.#current;
    this.#current = null;
    if (current === null) return;
    clearTimeout(current.timer);
    current.invocation.reject(new LambdaError(errorType, message));
  }

  async #served(request: IncomingMessage, reply: ServerResponse): Promise<void> {
    const path = (request.url ?? "").replace("/2018-06-01/runtime/", "");
    if (path === "invocation/next") {
      this.#asking = reply;
      const done = this.#current;
      // It asks for the next one: only now is the last one over, as nothing of it can still run.
      if (done === null || done.settle === null) return this.#hand();
      clearTimeout(done.timer);
      this.#current = null;
      done.settle();
      return this.onIdle();
    }
    if (request.headers["lambda-runtime-function-response-mode"] === "streaming" && this.#current !== null) {
      this.#current.invocation.resolve({ kind: "stream", body: request });
      this.#current.settle = () => {};
      request.once("close", () => reply.writeHead(202).end());
      return;
    }
    const body: unknown = JSON.parse(await text(request));
    const current = this.#current;
    if (path === "init/error") this.#fail(fieldOf(body, "errorType"), fieldOf(body, "errorMessage"));
    else if (current !== null && path.endsWith("/response"))
      current.settle = () => current.invocation.resolve({ kind: "value", value: body });
    else if (current !== null && path.endsWith("/error")) {
      const error = new LambdaError(fieldOf(body, "errorType"), fieldOf(body, "errorMessage"));
      current.settle = () => current.invocation.reject(error);
    }
    reply.writeHead(202).end();
  }
}

const fieldOf = (body: unknown, name: string): string =>
  typeof body === "object" && body !== null && name in body
    ? String(Object.getOwnPropertyDescriptor(body, name)?.value)
    : "";

export class LambdaFunction {
  readonly #options: LambdaOptions;
  readonly #alive = new Set<Environment>();
  readonly #idle: Environment[] = [];
  /** Processes that were started, and invocations: what a cold start costs is told by their ratio. */
  starts = 0;
  invocations = 0;
  /** Wall time of all invocations that are over, starts included: what a bill is made of. */
  busyMs = 0;
  #isClosed = false;

  constructor(options: LambdaOptions) {
    this.#options = options;
  }

  /** The ids of the processes that live now. */
  get pids(): number[] {
    return [...this.#alive].flatMap(({ pid }) => (pid === undefined ? [] : [pid]));
  }

  /** Throws `LambdaError`. */
  run(event: unknown): Promise<LambdaResult> {
    if (this.#isClosed) return Promise.reject(new LambdaError("Closed", "the function was closed"));
    this.invocations += 1;
    const fromMs = performance.now();
    return new Promise<LambdaResult>((resolve, reject) => {
      const invocation = { id: randomUUID(), event, resolve, reject };
      const idle = this.#idle.pop();
      if (idle === undefined) this.#start(invocation).catch(reject);
      else idle.invoke(invocation);
    }).finally(() => {
      this.busyMs += performance.now() - fromMs;
    });
  }

  /** The value of a function that does not stream. Throws `LambdaError`. */
  async invoke(event: unknown): Promise<unknown> {
    const result = await this.run(event);
    if (result.kind === "stream") throw new Error("the function streams its answer");
    return result.value;
  }

  /** Ends every process, and waits until they are gone. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.all([...this.#alive].map((environment) => environment.end()));
  }

  async #start(invocation: Invocation): Promise<void> {
    const environment = new Environment(this.#options);
    this.#alive.add(environment);
    this.starts += 1;
    environment.onEnd = () => {
      this.#alive.delete(environment);
      const place = this.#idle.indexOf(environment);
      if (place !== -1) this.#idle.splice(place, 1);
    };
    environment.onIdle = () => {
      if (this.#options.mode === "cold") void environment.end();
      else this.#idle.push(environment);
    };
    await environment.start(invocation);
  }
}
