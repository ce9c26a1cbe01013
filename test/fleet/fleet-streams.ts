/**
 * Memory on its way between two simulated QEMUs of a fleet, also between those of two processes: by the rules of sim-stream.ts. A token names the process
 * in which the incoming side waits.
 */
import { ErrorCode, PausedReason, RunningReason, ShutoffReason } from "#libvirt/constants";
import { refusal, type SimDomain } from "#test/simulation/sim-domain";
import type { Reply, SimLibvirtd } from "#test/simulation/sim-libvirtd";
import { Streams } from "#test/simulation/sim-stream";
import type { World } from "#test/simulation/world";

const perform = "domain_migrate_perform3_params";

export type StreamMessage =
  /** From the source: is there anybody waiting, and where may broken streams be told. */
  | { type: "dial"; token: string; from: number }
  | { type: "dialled"; token: string; found: boolean }
  | { type: "complete"; token: string; from: number; life: number | null }
  | { type: "completed"; token: string; taken: boolean }
  /** From the source: it broke. */
  | { type: "broke"; token: string }
  /** From the destination: nobody waits any more. */
  | { type: "closed"; token: string };

interface Outgoing {
  source: SimLibvirtd;
  domain: SimDomain;
  reply: Reply;
  wasRunning: boolean;
  takesMs: number;
}

export class FleetStreams extends Streams {
  readonly #world: World;
  readonly #process: number;
  readonly #send: (process: number, message: StreamMessage) => void;
  readonly #takesMs: (uuid: string) => number;
  readonly #daemons: SimLibvirtd[] = [];
  readonly #outgoing = new Map<string, Outgoing>();
  /** Incoming tokens of this process to the process of their source, once it has dialled. */
  readonly #sources = new Map<string, number>();
  #tokens = 0;

  /** `send`: to the streams of a process, this one included. */
  constructor(
    world: World,
    parts: { process: number; send(process: number, message: StreamMessage): void; takesMs(uuid: string): number },
  ) {
    super(world);
    this.#world = world;
    this.#process = parts.process;
    this.#send = parts.send;
    this.#takesMs = parts.takesMs;
  }

  override join(daemon: SimLibvirtd): void {
    this.#daemons.push(daemon);
  }

  override token(): string {
    this.#tokens += 1;
    return `p${this.#process}-${this.#tokens}`;
  }

  override begin(source: SimLibvirtd, domain: SimDomain, token: string, _breaks: boolean, reply: Reply): void {
    const connection = domain.job?.connection ?? null;
    const wasRunning = domain.qemu?.cpu === "running";
    const there = processOf(token);
    if (there === null) {
      domain.job = null;
      throw refusal(perform, ErrorCode.SYSTEM_ERROR, "unable to connect to server: Connection refused");
    }
    domain.job = { kind: "outgoing", phase: "performing", token, connection, wasRunning };
    this.#outgoing.set(token, { source, domain, reply, wasRunning, takesMs: this.#takesMs(domain.uuid) });
    this.#send(there, { type: "dial", token, from: this.#process });
  }

  /** What another process's streams, or this one's, say. */
  take(message: StreamMessage): void {
    const { token } = message;
    switch (message.type) {
      case "dial": {
        const found = this.#incoming(token) !== null;
        if (found) this.#sources.set(token, message.from);
        this.#send(message.from, { type: "dialled", token, found });
        return;
      }
      case "dialled":
        if (!message.found) this.cut(token, "unable to connect to server: Connection refused", ErrorCode.SYSTEM_ERROR);
        else this.#flow(token);
        return;
      case "complete": {
        const there = this.#incoming(token);
        const taken = there !== null && there.domain.qemu !== null;
        if (there?.domain.qemu != null) there.domain.qemu.life = message.life;
        if (taken) this.#sources.delete(token);
        this.#send(message.from, { type: "completed", token, taken });
        return;
      }
      case "completed":
        this.#completed(token, message.taken);
        return;
      case "broke": {
        const there = this.#incoming(token);
        this.#sources.delete(token);
        if (there !== null) there.daemon.endIncoming(there.domain, ShutoffReason.FAILED, "stream broken");
        return;
      }
      case "closed":
        this.cut(token, "the destination closed the stream");
        return;
    }
  }

  #incoming(token: string): { daemon: SimLibvirtd; domain: SimDomain } | null {
    for (const daemon of this.#daemons)
      for (const domain of daemon.domains.values())
        if (domain.job?.kind === "incoming" && domain.job.token === token) return { daemon, domain };
    return null;
  }

  /** The memory flows; at its end the source stands still. */
  #flow(token: string): void {
    const stream = this.#outgoing.get(token);
    if (stream === undefined) return;
    const { source, domain, wasRunning, takesMs } = stream;
    this.#world.time.after(takesMs, () => {
      if (this.#outgoing.get(token) !== stream) return;
      if (domain.job?.kind === "outgoing") domain.job.phase = "switching";
      if (wasRunning) source.pause(domain, PausedReason.MIGRATION);
      const to = processOf(token);
      if (to !== null)
        this.#send(to, { type: "complete", token, from: this.#process, life: domain.qemu?.life ?? null });
    });
  }

  #completed(token: string, taken: boolean): void {
    const stream = this.#outgoing.get(token);
    if (stream === undefined) return;
    if (!taken) {
      this.cut(token, "the destination is gone");
      return;
    }
    this.#outgoing.delete(token);
    const { domain, reply, wasRunning } = stream;
    if (domain.job?.kind === "outgoing") domain.job.phase = "done";
    reply.answer({ cookieOut: Buffer.from(JSON.stringify({ cookie: "C", token, wasRunning })) });
  }

  override cut(token: string, why: string, code: number = ErrorCode.OPERATION_FAILED): void {
    const stream = this.#outgoing.get(token);
    if (stream === undefined) return;
    this.#outgoing.delete(token);
    const { source, domain, reply } = stream;
    const { job } = domain;
    const stoodStill = job?.kind === "outgoing" && job.phase === "switching" && job.wasRunning;
    if (job?.kind === "outgoing") domain.job = null;
    if (stoodStill && domain.qemu !== null) source.run(domain, RunningReason.MIGRATION_CANCELED, "Perform failed");
    const there = processOf(token);
    if (there !== null) this.#send(there, { type: "broke", token });
    reply.refuse(refusal(perform, code, `operation failed: ${why}`));
  }

  override incomingEnded(token: string): void {
    const source = this.#sources.get(token);
    this.#sources.delete(token);
    if (source !== undefined) this.#send(source, { type: "closed", token });
  }
}

function processOf(token: string): number | null {
  const digits = /^p(\d+)-\d+$/.exec(token)?.[1];
  return digits === undefined ? null : Number(digits);
}
