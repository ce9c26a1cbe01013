/**
 * What has really happened on the simulated hosts of one process, told by their libvirts and by nothing of vmferry's: where each guest's CPUs ran from when
 * to when, which life it lives, and which migrations were on a host at which time. Times are of the machine's one monotonic clock, so that what
 * several processes saw fits together.
 */
import type { SimDomain } from "#test/simulation/sim-domain";
import type { SimLibvirtd } from "#test/simulation/sim-libvirtd";
import { Witness } from "#test/simulation/witness";

/** A stretch of time in ms of the machine's monotonic clock; `toMs` null: it goes on. */
export interface Span {
  uuid: string;
  host: number;
  kind: "runs" | "leaves" | "arrives";
  fromMs: number;
  toMs: number | null;
}

/** A domain as the simulated libvirt of a host has it. */
export interface HeldDomain {
  uuid: string;
  name: string;
  host: number;
  state: "running" | "paused" | "shutoff";
  persistent: boolean;
  snapshots: string;
  /** Of the guest: 1 from the beginning; a guest that was started anew has another one. */
  life: number | null;
}

/** Shared by all processes of a machine. */
export const machineMs = (): number => Number(process.hrtime.bigint() / 1_000n) / 1_000;

export class FleetTruth {
  readonly spans: Span[] = [];
  readonly violations: string[] = [];
  /** Migrations, counted by how they ended for the source's libvirt. */
  readonly counts = { performs: 0, confirmed: 0, broken: 0 };
  readonly #open = new Map<string, Span>();

  begin(kind: Span["kind"], uuid: string, host: number): void {
    const key = `${kind} ${uuid} ${host}`;
    if (this.#open.has(key)) return;
    const span: Span = { uuid, host, kind, fromMs: machineMs(), toMs: null };
    this.#open.set(key, span);
    this.spans.push(span);
  }

  end(kind: Span["kind"], uuid: string, host: number): void {
    const key = `${kind} ${uuid} ${host}`;
    const span = this.#open.get(key);
    if (span !== undefined) span.toMs = machineMs();
    this.#open.delete(key);
  }

  violate(text: string): void {
    this.violations.push(text);
  }
}

/** The simulation's witness watches one guest; a fleet's truth is kept by `FleetTruth`, so this one looks away. */
export class NoWitness extends Witness {
  override newLife(): number {
    return 1;
  }
  override ran(_daemon: SimLibvirtd, _domain: SimDomain): void {}
  override resuming(): void {}
  override killed(): void {}
  override lostByPower(): void {}
  override performing(): void {}
  override finishing(): void {}
  override stripping(): void {}
  override undefining(): void {}
}
