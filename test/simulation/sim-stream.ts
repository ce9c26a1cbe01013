/**
 * The memory's way from one QEMU to the other. Until it is complete any break ends it: the source goes on, the destination
 * is ended. When it is complete the source stands still (PERFORM3_DONE) and the guest is in both, running in neither.
 */
import { ErrorCode, PausedReason, RunningReason, ShutoffReason } from "#libvirt/constants";
import { refusal, type SimDomain } from "./sim-domain.ts";
import type { Reply, SimLibvirtd } from "./sim-libvirtd.ts";
import type { World } from "./world.ts";

const perform = "domain_migrate_perform3_params";

interface Stream {
  token: string;
  source: SimLibvirtd;
  domain: SimDomain;
  reply: Reply;
}

export class Streams {
  readonly #world: World;
  readonly #daemons: SimLibvirtd[] = [];
  /** Under way, by the token of the Prepare that waits for it. */
  readonly #streams = new Map<string, Stream>();
  #tokens = 0;
  isCut = false;

  constructor(world: World) {
    this.#world = world;
    world.onHeal(() => {
      this.isCut = false;
    });
  }

  join(daemon: SimLibvirtd): void {
    this.#daemons.push(daemon);
  }

  token(): string {
    this.#tokens += 1;
    return `t${this.#tokens}`;
  }

  cutFor(ms: number): void {
    this.isCut = true;
    for (const token of [...this.#streams.keys()]) this.cut(token, "the network between the hosts is cut");
    this.#world.time.after(ms, () => {
      this.isCut = false;
    });
  }

  #incoming(token: string): { daemon: SimLibvirtd; domain: SimDomain } | null {
    for (const daemon of this.#daemons)
      for (const domain of daemon.domains.values())
        if (domain.job?.kind === "incoming" && domain.job.token === token && daemon.hasPower) return { daemon, domain };
    return null;
  }

  /** Perform: the source's CPUs run on until the end of it. */
  begin(source: SimLibvirtd, domain: SimDomain, token: string, breaks: boolean, reply: Reply): void {
    const { chance, time } = this.#world;
    const connection = domain.job?.connection ?? null;
    if (this.#incoming(token) === null || this.isCut) {
      domain.job = null;
      throw refusal(perform, ErrorCode.SYSTEM_ERROR, "unable to connect to server: Connection refused");
    }
    const wasRunning = domain.qemu?.cpu === "running";
    domain.job = { kind: "outgoing", phase: "performing", token, connection, wasRunning };
    const stream: Stream = { token, source, domain, reply };
    this.#streams.set(token, stream);
    const takesMs = chance.between(5, 3_000);
    time.after(takesMs / 2, () => {
      if (this.#streams.get(token) === stream) this.#mayBreak(stream, "half way");
    });
    time.after(takesMs, () => {
      if (this.#streams.get(token) !== stream) return;
      if (breaks) {
        this.cut(token, "the stream broke");
        return;
      }
      if (this.#mayBreak(stream, "before the switch")) return;
      if (domain.job?.kind === "outgoing") domain.job.phase = "switching";
      if (wasRunning) source.pause(domain, PausedReason.MIGRATION);
      if (this.#mayBreak(stream, "in the switch")) return;
      time.after(chance.between(0, 40), () => {
        if (this.#streams.get(token) === stream) this.#complete(stream, wasRunning);
      });
    });
  }

  /** A point while the memory is on its way. */
  #mayBreak({ token, source }: Stream, what: string): boolean {
    const kinds = this.#world.faults.at({ class: "stream", actor: source.side, what });
    if (!kinds.has("breaks")) return false;
    this.#world.note(`*** the stream breaks ${what}`);
    this.cut(token, "the stream broke");
    return true;
  }

  #complete({ token, source, domain, reply }: Stream, wasRunning: boolean): void {
    const there = this.#incoming(token);
    if (there === null || there.domain.qemu === null) {
      this.cut(token, "the destination is gone");
      return;
    }
    this.#streams.delete(token);
    there.domain.qemu.life = domain.qemu?.life ?? null;
    // A daemon that is away learns nothing of it: it finds a Perform to cancel when it is back.
    if (domain.job?.kind === "outgoing" && source.isUp) domain.job.phase = "done";
    this.#world.note(`${source.side} memory is complete over there`);
    reply.answer({ cookieOut: Buffer.from(JSON.stringify({ cookie: "C", token, wasRunning })) });
  }

  /** A stream that is not complete breaks: Perform fails, the source goes on, the destination's QEMU dies of it. */
  cut(token: string, why: string, code: number = ErrorCode.OPERATION_FAILED): void {
    const stream = this.#streams.get(token);
    if (stream === undefined) return;
    this.#streams.delete(token);
    const { source, domain, reply } = stream;
    const { job } = domain;
    const stoodStill = job?.kind === "outgoing" && job.phase === "switching" && job.wasRunning;
    if (domain.job?.kind === "outgoing" && source.isUp) domain.job = null;
    if (stoodStill && source.isUp && domain.qemu !== null)
      source.run(domain, RunningReason.MIGRATION_CANCELED, "Perform failed");
    const there = this.#incoming(token);
    if (there !== null) there.daemon.endIncoming(there.domain, ShutoffReason.FAILED, "stream broken");
    if (source.isUp) reply.refuse(refusal(perform, code, `operation failed: ${why}`));
  }

  incomingEnded(token: string): void {
    this.cut(token, "the destination closed the stream");
  }
}
