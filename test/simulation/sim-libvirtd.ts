/**
 * One host's libvirtd with its QEMUs, by the connection and restart rules of reference/libvirt.md, section 6. The daemon
 * may restart under its QEMUs; the host may lose its power with all of them.
 */

import type { LibvirtConnection } from "#libvirt/client";
import { ErrorCode, PausedReason, RunningReason, ShutoffReason } from "#libvirt/constants";
import { LibvirtUnreachableError } from "#libvirt/error";
import type { SideName } from "./fault-plan.ts";
import { SimConnection } from "./sim-connection.ts";
import { refusal, type SimDomain } from "./sim-domain.ts";
import { handlers } from "./sim-procedures.ts";
import type { Streams } from "./sim-stream.ts";
import type { Witness } from "./witness.ts";
import { type Life, never, type World } from "./world.ts";

/** How long libvirt lets a change wait for a job that keeps it out (30 s, then error 68). */
const jobWaitMs = 30_000;

export interface Reply {
  answer(value: unknown): void;
  refuse(error: unknown): void;
}

export class SimLibvirtd {
  readonly world: World;
  readonly side: SideName;
  readonly witness: Witness;
  readonly streams: Streams;
  readonly domains = new Map<string, SimDomain>();
  readonly #connections = new Set<SimConnection>();
  /** Connections whose client has left while a call of theirs still runs. */
  readonly #leaving = new Set<SimConnection>();
  #ids = 0;
  isUp = true;
  hasPower = true;

  constructor(world: World, side: SideName, witness: Witness, streams: Streams) {
    this.world = world;
    this.side = side;
    this.witness = witness;
    this.streams = streams;
    streams.join(this);
  }

  connect(life: Life): Promise<LibvirtConnection> {
    if (!life.isAlive) return never();
    return new Promise((resolve, reject) => {
      this.world.time.after(this.world.chance.between(0, 3), () => {
        if (!life.isAlive) return;
        if (!this.isUp) {
          reject(new LibvirtUnreachableError("libvirtd is not there", "Start it."));
          return;
        }
        const connection = new SimConnection(this, life);
        this.#connections.add(connection);
        resolve(connection);
      });
    });
  }

  serves(connection: SimConnection): boolean {
    return this.isUp && (this.#connections.has(connection) || this.#leaving.has(connection));
  }

  execute(connection: SimConnection, name: string, args: unknown, refused: boolean, reply: Reply): void {
    const handler = handlers.get(name);
    if (handler === undefined) throw new TypeError(`the simulated libvirt does not know ${name}`);
    handler({ daemon: this, connection, name, refused, reply }, args);
  }

  domain(name: string, uuid: string): SimDomain {
    const domain = this.domains.get(uuid);
    if (domain !== undefined) return domain;
    throw refusal(name, ErrorCode.NO_DOMAIN, `Domain not found: no domain with matching uuid '${uuid}'`);
  }

  /** A change that needs the domain's job: waits for one that keeps it out, and is refused after 30 s. */
  changing(name: string, domain: SimDomain, reply: Reply, act: () => unknown): void {
    const attempt = (): void => {
      try {
        reply.answer(act());
      } catch (error) {
        reply.refuse(error);
      }
    };
    if (domain.job === null) {
      attempt();
      return;
    }
    const untilMs = this.world.time.nowMs + jobWaitMs;
    const look = (): void => {
      if (!this.isUp) return;
      if (domain.job === null) attempt();
      else if (this.world.time.nowMs >= untilMs)
        reply.refuse(refusal(name, ErrorCode.OPERATION_TIMEOUT, "cannot acquire state change lock"));
      else this.world.time.after(1_000, look);
    };
    look();
  }

  /** A new QEMU for a domain, with a guest's life in it or empty. */
  start(domain: SimDomain, life: number | null, cpu: "running" | "paused", reason: number): void {
    this.#ids += 1;
    domain.id = this.#ids;
    domain.qemu = { life, cpu: "paused", reason };
    if (cpu === "running") this.run(domain, reason, "start");
  }

  /** Lets the CPUs run. */
  run(domain: SimDomain, reason: number, by: string): void {
    if (domain.qemu === null) return;
    domain.qemu.reason = reason;
    if (domain.qemu.cpu === "running") return;
    domain.qemu.cpu = "running";
    this.world.note(`${this.side} CPUs run (${by})`);
    this.witness.ran(this, domain, by);
  }

  pause(domain: SimDomain, reason: number): void {
    if (domain.qemu === null) return;
    domain.qemu.cpu = "paused";
    domain.qemu.reason = reason;
    this.world.note(`${this.side} CPUs paused`);
  }

  /** Ends a QEMU. `by` is who wanted it: `client` for a call that means it. */
  kill(domain: SimDomain, reason: number, by: string): void {
    const { qemu } = domain;
    if (qemu === null) return;
    this.world.note(`${this.side} QEMU ended (${by})`);
    this.witness.killed(this, domain, by);
    domain.qemu = null;
    domain.job = null;
    domain.shutoffReason = reason;
    if (!domain.persistent) this.domains.delete(domain.uuid);
  }

  remove(domain: SimDomain): void {
    this.domains.delete(domain.uuid);
  }

  /** A client has closed its connection or died; what hangs on it goes when its last call has ended. */
  left(connection: SimConnection): void {
    this.#connections.delete(connection);
    this.#leaving.add(connection);
    this.quiet(connection);
  }

  quiet(connection: SimConnection): void {
    if (!this.#leaving.has(connection) || connection.busy > 0) return;
    this.#leaving.delete(connection);
    for (const domain of [...this.domains.values()]) {
      const { job } = domain;
      if (job?.connection !== connection) continue;
      if (job.kind === "incoming") {
        this.world.note(`${this.side} autodestroy`);
        this.endIncoming(domain, ShutoffReason.DESTROYED, "autodestroy");
      } else if (job.phase === "done") {
        // "We don't know if the domain was successfully started on the destination": it stays paused, without a job.
        this.world.note(`${this.side} outgoing job dropped, still paused`);
        domain.job = null;
      }
    }
  }

  endIncoming(domain: SimDomain, reason: number, by: string): void {
    const { job } = domain;
    if (job?.kind !== "incoming") return;
    if (domain.qemu !== null) this.kill(domain, reason, by);
    else if (!domain.persistent) this.remove(domain);
    domain.job = null;
    this.streams.incomingEnded(job.token);
  }

  /** The daemon goes and comes back; QEMUs stay. */
  restart(): void {
    if (!this.isUp || !this.hasPower) return;
    this.#goDown("libvirtd restarts");
    this.world.time.after(this.world.chance.between(100, 3_000), () => {
      if (this.hasPower) this.#comeUp();
    });
  }

  #goDown(why: string): void {
    this.world.note(`${this.side} ${why}`);
    this.isUp = false;
    const gone = [...this.#connections, ...this.#leaving];
    this.#connections.clear();
    this.#leaving.clear();
    for (const connection of gone) connection.broken();
  }

  /** Reconnects to its QEMUs (qemu_process.c, table in section 6). */
  #comeUp(): void {
    this.isUp = true;
    this.world.note(`${this.side} libvirtd is back`);
    for (const domain of [...this.domains.values()]) {
      const { job } = domain;
      if (job === null) continue;
      if (job.kind === "incoming") this.endIncoming(domain, ShutoffReason.DAEMON, "unfinished incoming");
      else {
        domain.job = null;
        if (job.phase !== "done") {
          this.streams.cut(job.token, "the source's daemon was restarted");
          if (domain.qemu?.cpu === "paused" && domain.qemu.reason === PausedReason.MIGRATION)
            this.run(domain, RunningReason.MIGRATION_CANCELED, "daemon restart cancels Perform");
        }
      }
    }
  }

  /** How often this host has booted. */
  boots = 1;

  losePower(): void {
    if (!this.hasPower) return;
    this.hasPower = false;
    if (this.isUp) this.#goDown("loses power");
    for (const domain of [...this.domains.values()]) {
      const { job, qemu } = domain;
      if (qemu !== null) this.witness.lostByPower(this, domain);
      domain.qemu = null;
      domain.job = null;
      domain.shutoffReason = ShutoffReason.UNKNOWN;
      if (job !== null) {
        if (job.kind === "incoming") this.streams.incomingEnded(job.token);
        else if (job.phase !== "done") this.streams.cut(job.token, "the source lost power");
      }
      if (!domain.persistent) this.domains.delete(domain.uuid);
    }
  }

  regainPower(): void {
    if (this.hasPower) return;
    this.hasPower = true;
    this.boots += 1;
    this.isUp = true;
    this.world.note(`${this.side} boots`);
    for (const domain of this.domains.values())
      if (domain.persistent && domain.autostart)
        this.start(domain, this.witness.newLife(this), "running", RunningReason.BOOTED);
  }
}
