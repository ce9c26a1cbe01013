/**
 * One lock of systemd-logind, held by a child: `systemd-inhibit` keeps it for as long as the program under it lives, and that one reads from a pipe of
 * ours. So the lock goes when it is given back and when this process ends, however it ends. (The lock itself is a file descriptor in a D-Bus answer,
 * which Node cannot receive.)
 *
 * A child that ends by itself is followed by another after a pause that grows; a lock that is refused is tried again the same way.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { type Clock, jitteredMs } from "./clock.ts";
import type { Log } from "./log.ts";

export type InhibitMode = "block" | "block-weak" | "delay";

/** Between two tries: a bus that was restarted is back within a second, one that is gone need not be asked more than once a minute. */
export const inhibitBackoff = { baseMs: 1_000, capMs: 60_000 } as const;

/** A child that ends neither by its pipe nor by being asked; nothing of it is worth more. */
const endMsMax = 2_000;

/** Said once the lock is there, since it is taken before the program is started. */
const holder = ["sh", "-c", "echo held; exec cat >/dev/null"];

export interface InhibitorParts {
  mode: InhibitMode;
  clock: Clock;
  log: Log;
  /** Tests put another program in its place. */
  program?: string | undefined;
}

export class Inhibitor {
  readonly #parts: InhibitorParts;
  #wanted: string | null = null;
  /** The one that counts. */
  #child: Holding | null = null;
  /** Every one that has not ended. */
  readonly #children = new Set<Holding>();
  #retry: AbortController | null = null;
  #failures = 0;

  constructor(parts: InhibitorParts) {
    this.#parts = parts;
  }

  /** The lock is there now. */
  get isHeld(): boolean {
    return this.#child?.isHeld === true;
  }

  /** Takes it with this reason, or takes it anew where the reason is another; the older lock goes once the newer one is there, and only then. */
  hold(why: string): void {
    if (this.#wanted === why) return;
    this.#wanted = why;
    if (this.#retry === null) this.#start();
  }

  /** Gives it back. Resolves when it is gone. */
  async release(): Promise<void> {
    this.#wanted = null;
    this.#retry?.abort();
    this.#retry = null;
    this.#failures = 0;
    this.#child = null;
    await Promise.all([...this.#children].map((child) => child.end()));
  }

  #start(): void {
    const why = this.#wanted;
    if (why === null) return;
    const { mode, program = "systemd-inhibit" } = this.#parts;
    const older = this.#child;
    const args = ["--what=shutdown", `--mode=${mode}`, "--who=vmferry", `--why=${why}`, ...holder];
    const child = new Holding(program, args, why);
    this.#child = child;
    this.#children.add(child);
    void child.held.then(() => {
      this.#failures = 0;
      void older?.end();
    });
    void child.ended.then((cause) => {
      this.#children.delete(child);
      if (this.#child !== child) return;
      if (older !== null && this.#children.has(older) && older.isHeld) {
        // The newer reason was refused: the lock stays with the older one.
        this.#child = older;
        this.#wanted = older.why;
      } else this.#lost(cause);
    });
  }

  #lost(cause: string): void {
    const { mode, clock, log } = this.#parts;
    this.#child = null;
    const waitMs = inhibitBackoff.baseMs + jitteredMs(this.#failures, inhibitBackoff, clock.random);
    // The same refusal every minute tells nothing new.
    log.write(this.#failures < 3 ? "warn" : "debug", "a lock against shutdown is not held", {
      mode,
      cause,
      again: `${waitMs} ms`,
    });
    this.#failures += 1;
    const retry = new AbortController();
    this.#retry = retry;
    void clock.sleep(waitMs, retry.signal).then(() => {
      if (this.#retry !== retry) return;
      this.#retry = null;
      this.#start();
    });
  }
}

/** A child and what it has said. */
class Holding {
  readonly #process: ChildProcess;
  isHeld = false;
  /** Resolves when the lock is there; pending where it never is. */
  readonly held: Promise<void>;
  /** Why it ended. */
  readonly ended: Promise<string>;
  readonly why: string;

  constructor(program: string, args: readonly string[], why: string) {
    this.why = why;
    // Of its own group: what a terminal sends to ours must not take the lock before we give it back.
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"], detached: true });
    this.#process = child;
    let said = "";
    const held = Promise.withResolvers<void>();
    this.held = held.promise;
    child.stdout.on("data", () => {
      this.isHeld = true;
      held.resolve();
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said = `${said}${text}`.slice(-500);
    });
    // A child that has gone does not read.
    child.stdin.on("error", () => {});
    const ended = Promise.withResolvers<string>();
    this.ended = ended.promise;
    child.once("error", (error) => ended.resolve(error.message));
    child.once("close", (code, signal) =>
      ended.resolve(said.trim() === "" ? `${program} ended with ${signal ?? code}` : said.trim()),
    );
    void this.ended.then(() => {
      this.isHeld = false;
    });
  }

  async end(): Promise<void> {
    this.#process.stdin?.end();
    const timer = setTimeout(() => this.#process.kill("SIGKILL"), endMsMax);
    await this.ended;
    clearTimeout(timer);
  }
}
