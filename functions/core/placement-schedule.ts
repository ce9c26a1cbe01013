/**
 * When each move starts: list scheduling. Whenever something ends, the moves that are left are walked in their order and each starts that may:
 * within the limits (out of a host, into a host, of a network, of all), with room on its destination at that instant, and without closing the way for one before it.
 * Times are estimates from the memory and the measured rate; that moves which run side by side share a line, and that a busy guest writes
 * its memory again, is not modelled.
 *
 * Invariants: no host is over its room at any instant, a moving domain counts on both sides; no limit is exceeded at any instant, and none is when
 * the plan is run wave by wave.
 */
import { touched } from "./network.ts";
import { type Fleet, hostAt, type Ledger, type Load } from "./placement-ledger.ts";
import type { PlacementPolicy } from "./placement-view.ts";

/** One hop of a domain. `after`: the hop of the same domain before it, where it stops over. */
export interface Step {
  load: Load;
  from: number;
  to: number;
  after: Step | null;
}

export interface ScheduledStep {
  step: Step;
  wave: number;
  startMs: number;
  endMs: number;
}

/** Hops that may come before their turn are looked for among so many that need a proof of it; the others wait for theirs. */
const overtakeProofsMax = 32;

/** How long a move takes, as far as can be told: an off domain has no memory to carry. */
export function estimateMs(
  { memoryKiB }: Pick<Load, "memoryKiB">,
  { overheadMs, bytesPerSecond }: PlacementPolicy,
): number {
  return overheadMs + Math.ceil((memoryKiB * 1024 * 1000) / bytesPerSecond);
}

/** What uses the limits: a host that is not among the fleet's slots has none of its own to keep, its network may. */
interface Line {
  from: number;
  to: number;
  networks: readonly string[];
}

/** Who uses how much of the limits. */
class Lines {
  readonly #policy: PlacementPolicy;
  readonly #out = new Map<number, number>();
  readonly #into = new Map<number, number>();
  readonly #networks = new Map<string, number>();
  #all = 0;

  constructor(policy: PlacementPolicy) {
    this.#policy = policy;
  }

  get full(): boolean {
    return this.#all >= this.#policy.fleetMax;
  }

  mayTake({ from, to, networks }: Line): boolean {
    const { outMax, inMax, networkMax } = this.#policy;
    if (this.full || (this.#out.get(from) ?? 0) >= outMax || (this.#into.get(to) ?? 0) >= inMax) return false;
    return networkMax === null || networks.every((network) => (this.#networks.get(network) ?? 0) < networkMax);
  }

  enter({ from, to, networks }: Line, sign: 1 | -1): void {
    for (const network of networks) this.#networks.set(network, (this.#networks.get(network) ?? 0) + sign);
    this.#all += sign;
    this.#out.set(from, (this.#out.get(from) ?? 0) + sign);
    this.#into.set(to, (this.#into.get(to) ?? 0) + sign);
  }
}

/**
 * `steps`: in an order that can be run one after the other from `ledger`, which is not changed. `fresh`: nothing else is under way when it starts;
 * otherwise what the view shows to be under way uses the limits for as long as it would take from the start.
 */
export function schedule(fleet: Fleet, ledger: Ledger, steps: readonly Step[], fresh: boolean): ScheduledStep[] {
  const { policy } = fleet;
  const room = ledger.clone();
  const lines = new Lines(policy);
  const running: Running[] = fresh ? [] : underWayLines(fleet);
  for (const line of running) lines.enter(line, 1);
  const lineOf = linesOf(fleet, steps);
  // Hosts that something still leaves: what goes there early may take the room of one before it.
  const leavers = new Map<number, number>();
  for (const { from } of steps) leavers.set(from, (leavers.get(from) ?? 0) + 1);
  const ended = new Set<Step>();
  const scheduled: ScheduledStep[] = [];
  let left = [...steps];
  let nowMs = 0;
  while (left.length > 0) {
    const started = new Set<Step>();
    let proofs = 0;
    for (const [index, step] of left.entries()) {
      if (lines.full) break;
      if (step.after !== null && !ended.has(step.after)) continue;
      const line = lineOf(step);
      if (!lines.mayTake(line) || !room.fits(step.load, step.to)) continue;
      const isFirst = index === started.size;
      if (!isFirst && (leavers.get(step.to) ?? 0) > 0) {
        proofs += 1;
        if (proofs > overtakeProofsMax) continue;
        const others = left.filter((other) => other !== step && !started.has(other));
        if (!canFollow(room, running, step, others)) continue;
      }
      started.add(step);
      room.add(step.load, step.to);
      lines.enter(line, 1);
      leavers.set(step.from, (leavers.get(step.from) ?? 0) - 1);
      const endMs = nowMs + estimateMs(step.load, policy);
      running.push({ step, ...line, endMs });
      scheduled.push({ step, wave: 0, startMs: nowMs, endMs });
    }
    left = left.filter((step) => !started.has(step));
    if (left.length === 0) break;
    const nextMs = running.reduce((least, { endMs }) => Math.min(least, endMs), Number.POSITIVE_INFINITY);
    if (nextMs === Number.POSITIVE_INFINITY) throw new Error("the steps cannot be run in the order given");
    nowMs = nextMs;
    for (let index = running.length - 1; index >= 0; index -= 1) {
      const line = running[index];
      if (line === undefined || line.endMs > nowMs) continue;
      running.splice(index, 1);
      lines.enter(line, -1);
      if (line.step === null) continue;
      room.remove(line.step.load, line.step.from);
      ended.add(line.step);
    }
  }
  return withWaves(policy, ledger, scheduled, lineOf);
}

interface Running extends Line {
  step: Step | null;
  endMs: number;
}

/** The line of each step, looked up once: a plan asks for it at every instant. */
function linesOf(fleet: Fleet, steps: readonly Step[]): (step: Step) => Line {
  const lineOf = ({ from, to }: Step): Line => {
    const networks = touched(fleet.view.networks, hostAt(fleet, from).id, hostAt(fleet, to).id);
    return { from, to, networks };
  };
  const lines = new Map(steps.map((step) => [step, lineOf(step)]));
  return (step) => lines.get(step) ?? lineOf(step);
}

function underWayLines({ policy, slotOf, view, loadsOf }: Fleet): Running[] {
  return view.moving.map(({ domainUuid, sourceId, destinationId }) => {
    const load = loadsOf.get(domainUuid)?.[0] ?? { memoryKiB: 0 };
    return {
      from: slotOf.get(sourceId) ?? -1,
      to: slotOf.get(destinationId) ?? -1,
      networks: touched(view.networks, sourceId, destinationId),
      endMs: estimateMs(load, policy),
      step: null,
    };
  });
}

/** Whether the others can still be run one after the other once `step` and all that runs have ended. */
function canFollow(
  room: Ledger,
  running: readonly { step: Step | null }[],
  step: Step,
  others: readonly Step[],
): boolean {
  const later = room.clone();
  for (const line of running) if (line.step !== null) later.remove(line.step.load, line.step.from);
  later.add(step.load, step.to);
  later.remove(step.load, step.from);
  return runs(later, others);
}

/** Runs the steps one after the other; `ledger` is changed. False: one of them did not fit. */
export function runs(ledger: Ledger, steps: readonly Step[]): boolean {
  for (const { load, from, to } of steps) {
    if (!ledger.fits(load, to)) return false;
    ledger.add(load, to);
    ledger.remove(load, from);
  }
  return true;
}

/** In the order of their starts, each joins the wave before it when that may hold it too, or opens the next. */
function withWaves(
  policy: PlacementPolicy,
  ledger: Ledger,
  scheduled: readonly ScheduledStep[],
  lineOf: (step: Step) => Line,
): ScheduledStep[] {
  const room = ledger.clone();
  let lines = new Lines(policy);
  let members: Step[] = [];
  let wave = 0;
  return scheduled.map((entry) => {
    const { step } = entry;
    const line = lineOf(step);
    const joins =
      lines.mayTake(line) && room.fits(step.load, step.to) && (step.after === null || !members.includes(step.after));
    if (!joins) {
      for (const member of members) room.remove(member.load, member.from);
      lines = new Lines(policy);
      members = [];
      wave += 1;
    }
    room.add(step.load, step.to);
    lines.enter(line, 1);
    members.push(step);
    return { ...entry, wave };
  });
}

export const makespanOf = (scheduled: readonly { endMs: number }[]): number =>
  scheduled.reduce((most, { endMs }) => Math.max(most, endMs), 0);
