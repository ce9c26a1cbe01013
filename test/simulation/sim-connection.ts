/**
 * One libvirt connection of a simulated shim. A call is one crossing: it reaches the daemon after a while and is executed
 * there whether or not its sender still lives; a connection that ends leaves every waiting call without an answer.
 */
import type { CallOptions, LibvirtConnection, Subscription } from "#libvirt/client";
import { type CloseReason, LibvirtClosedError } from "#libvirt/error";
import type { Procedure } from "#libvirt/procedures";
import type { PointClass } from "./fault-plan.ts";
import type { SimLibvirtd } from "./sim-libvirtd.ts";
import { type Life, never } from "./world.ts";

/** Calls that only look: they are many, and nothing is lost with one of them. */
const isLook = (name: string) => /_(get|list|lookup|is|has|num|current)(_|$)/.test(name) && !name.includes("migrate");

const subscription: Subscription = { callbackId: 1, cancel: async () => {} };

export class SimConnection implements LibvirtConnection {
  readonly closed: Promise<LibvirtClosedError>;
  readonly #daemon: SimLibvirtd;
  readonly #life: Life;
  readonly #resolveClosed: (error: LibvirtClosedError) => void;
  readonly #waiting = new Set<(error: LibvirtClosedError) => void>();
  /** Calls that the daemon works on for longer: it keeps a connection's things until they have ended. */
  busy = 0;
  #ended = false;
  #closing = false;

  constructor(daemon: SimLibvirtd, life: Life) {
    this.#daemon = daemon;
    this.#life = life;
    const { promise, resolve } = Promise.withResolvers<LibvirtClosedError>();
    this.closed = promise;
    this.#resolveClosed = resolve;
    life.onEnd(() => this.#leave());
  }

  get isOpen(): boolean {
    return !this.#ended && !this.#closing;
  }

  /** The daemon's side of it is there. */
  get isServed(): boolean {
    return !this.#ended;
  }

  call<A, R>(procedure: Procedure<A, R>, args: A, _options: CallOptions = {}): Promise<R> {
    const { name } = procedure;
    if (!this.#life.isAlive) return never();
    if (!this.isOpen) return Promise.reject(this.#closedError("local", name, false));
    const { world, side } = this.#daemon;
    const pointClass: PointClass = isLook(name) ? "look" : "libvirt";
    const kinds = world.faults.at({ class: pointClass, actor: side, what: name });
    if (kinds.size > 0) world.note(`*** ${[...kinds].join(" ")} at ${pointClass} ${side} ${name}`);
    if (kinds.has("crashBefore")) this.#life.end();
    if (kinds.has("daemonBefore")) this.#daemon.restart();
    if (!this.#life.isAlive) return never();
    if (this.#ended) return Promise.reject(this.#closedError("peer", name, true));
    return new Promise<R>((resolve, reject) => {
      const isOurs = this.#life;
      this.#waiting.add(reject);
      this.busy += 1;
      let isDone = false;
      const done = (settle: () => void): void => {
        if (isDone) return;
        isDone = true;
        this.busy -= 1;
        this.#waiting.delete(reject);
        if (kinds.has("crashAfter")) isOurs.end();
        if (kinds.has("daemonAfter")) this.#daemon.restart();
        // The answer was on its way when the connection ended.
        if (isOurs.isAlive && this.#ended) reject(this.#closedError("peer", name, true));
        else if (isOurs.isAlive) settle();
        this.#daemon.quiet(this);
      };
      world.time.after(world.chance.between(0, 3), () => {
        if (!this.#daemon.serves(this)) return;
        if (pointClass === "libvirt") world.note(`${side} libvirt ${name}`);
        try {
          this.#daemon.execute(this, name, args, kinds.has("refused"), {
            answer: (value) => done(() => resolve(value as R)),
            refuse: (error) =>
              done(() => {
                if (pointClass === "libvirt") world.note(`${side} libvirt ${name} refused: ${String(error)}`);
                reject(error);
              }),
          });
        } catch (error) {
          done(() => {
            if (pointClass === "libvirt") world.note(`${side} libvirt ${name} refused: ${String(error)}`);
            reject(error);
          });
        }
      });
    });
  }

  onLifecycle = async (): Promise<Subscription> => subscription;
  onJobCompleted = async (): Promise<Subscription> => subscription;
  onMigrationIteration = async (): Promise<Subscription> => subscription;

  close(): Promise<void> {
    if (!this.#life.isAlive) return never();
    if (!this.#ended && !this.#closing) {
      this.#closing = true;
      this.#daemon.world.time.after(1, () => this.#end("local", true));
    }
    return this.closed.then(() => {});
  }

  destroy(): void {
    this.#end("local", true);
  }

  /** The daemon is gone: nobody answers any more. */
  broken(): void {
    this.#end("peer", false);
  }

  /** The process is gone; the daemon notices by the closed socket. */
  #leave(): void {
    this.#daemon.world.time.after(this.#daemon.world.chance.between(0, 5), () => this.#end("local", true));
  }

  #end(reason: CloseReason, tellsDaemon: boolean): void {
    if (this.#ended) return;
    this.#ended = true;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    if (tellsDaemon) this.#daemon.left(this);
    if (!this.#life.isAlive) return;
    for (const reject of waiting) reject(this.#closedError(reason, "a call", true));
    this.#resolveClosed(this.#closedError(reason, "the connection", true));
  }

  #closedError(reason: CloseReason, procedure: string, sent: boolean): LibvirtClosedError {
    return new LibvirtClosedError(reason, "the simulated daemon is gone", { procedure, sent });
  }
}
