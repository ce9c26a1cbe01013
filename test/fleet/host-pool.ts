/** The processes of a simulated fleet, as their parent has them: forked, told what to do side by side, and ended. */
import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import type { FromProcess, HostProcessOptions, Look, Order, ToProcess } from "./host-process.ts";

export class HostPool {
  readonly #children: ChildProcess[];
  readonly #waiting = new Map<number, (message: Extract<FromProcess, { type: "done" }>) => void>();
  #numbers = 0;
  #ending = false;

  private constructor(children: ChildProcess[]) {
    this.#children = children;
    for (const [index, child] of children.entries()) {
      child.on("message", (message: FromProcess) => this.#heard(message));
      child.on("exit", (code, signal) => {
        if (!this.#ending) throw new Error(`process ${index} of the simulated fleet ended (${code ?? signal})`);
      });
    }
  }

  static start(options: Omit<HostProcessOptions, "process">): HostPool {
    const children = Array.from({ length: options.processes }, (_, index) =>
      fork(join(import.meta.dirname, "host-process.ts"), [JSON.stringify({ ...options, process: index })], {
        stdio: ["ignore", "inherit", "inherit", "ipc"],
        execArgv: ["--max-old-space-size=6000"],
      }),
    );
    return new HostPool(children);
  }

  get pids(): number[] {
    return this.#children.flatMap(({ pid }) => pid ?? []);
  }

  #heard(message: FromProcess): void {
    if (message.type === "stream") {
      const to: ToProcess = { type: "stream", message: message.message };
      this.#children[message.to]?.send(to);
      return;
    }
    this.#waiting.get(message.number)?.(message);
    this.#waiting.delete(message.number);
  }

  #order(child: ChildProcess, order: Order): Promise<Look | null> {
    this.#numbers += 1;
    const number = this.#numbers;
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, ({ look, error }) => (error === null ? resolve(look) : reject(new Error(error))));
      const message: ToProcess = { type: "order", number, order };
      child.send(message);
    });
  }

  /** Enrols every host and opens its shim, without a session. */
  async open(): Promise<void> {
    await Promise.all(this.#children.map((child) => this.#order(child, "open")));
  }

  /** Every shim dials at once. */
  async connect(): Promise<void> {
    await Promise.all(this.#children.map((child) => this.#order(child, "connect")));
  }

  /** `count`: without domains and spans. */
  async look(order: "look" | "count" = "look"): Promise<Look[]> {
    const looks = await Promise.all(this.#children.map((child) => this.#order(child, order)));
    return looks.flatMap((look) => (look === null ? [] : [look]));
  }

  /** Ends the processes as a power cut would: nothing of them is needed any more. */
  async end(): Promise<void> {
    this.#ending = true;
    const ended = this.#children.map((child) =>
      child.exitCode !== null || child.signalCode !== null
        ? Promise.resolve()
        : new Promise<void>((resolve) => child.once("exit", () => resolve())),
    );
    for (const child of this.#children) child.kill("SIGKILL");
    await Promise.all(ended);
  }
}
