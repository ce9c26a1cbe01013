/**
 * An order for moves whose ends are given. Who leaves makes room for who comes, and two that wait for each other's room (a swap) are taken apart by a
 * stop on a third host. First what cannot stand at the end is taken out; then an order is searched for, with few stops; where none is found,
 * the least urgent of those that wait for each other stays, and the rest is tried again.
 *
 * Invariants: run one after the other, the steps never bring a host over its room, a moving domain counting on both sides. Each wanted move ends
 * in the steps or among those that stay, with its cause.
 */
import { type Fleet, hostAt, isAllowed, isProven, type Ledger, type Load } from "./placement-ledger.ts";
import { type Blocker, blockerOf, cut, obstaclesOn } from "./placement-obstacle.ts";
import { runs, type Step } from "./placement-schedule.ts";

/**
 * Domains and hosts that all searches of one plan may look at: one half for orders of everything, one for those of single knots. Some tenths
 * of a second; a tangle of six domains on four hosts needs far less.
 */
export const sequenceLooksMax = 4_000_000;
/** The same for one knot, so that a hopeless one leaves something for the others. */
export const knotLooksMax = 400_000;
/** Stops in one search: more make a plan that nobody follows. */
export const stopsMax = 4;
/** Hosts tried for a stop, the roomiest first. */
const stopHostsMax = 4;

export interface Item {
  load: Load;
  from: number;
  to: number;
}

export interface Sequence {
  steps: Step[];
  stays: { item: Item; blocker: Blocker }[];
}

/** `items`: by urgency, each domain once, held by its `from` in `ledger`. `stops`: the hosts that may hold a domain on its way. */
export function sequence(fleet: Fleet, ledger: Ledger, items: readonly Item[], stops: readonly number[]): Sequence {
  const stuck = new Map<Item, Blocker>();
  const budget: Budget = { whole: sequenceLooksMax / 2, knots: sequenceLooksMax / 2 };
  for (;;) {
    const candidates = items.filter((item) => !stuck.has(item));
    const { standing, end } = standingOf(ledger, candidates);
    const attempt = orderOf(ledger, standing, stops, budget);
    if ("steps" in attempt) {
      const kept = new Set(standing);
      const falls = candidates.filter((item) => !kept.has(item));
      const stays = new Map([...stuck, ...falls.map((item) => [item, endBlocker(fleet, end, item)] as const)]);
      return { steps: attempt.steps, stays: [...stays].map(([item, blocker]) => ({ item, blocker })) };
    }
    for (const { items: knot, exhausted } of attempt.knots) {
      const last = knot.at(-1);
      if (last !== undefined) stuck.set(last, swapBlocker(fleet, last, knot, exhausted));
    }
  }
}

interface Budget {
  whole: number;
  knots: number;
}

/** Those that wait for each other, and for nobody else. */
interface Knot {
  items: readonly Item[];
  exhausted: boolean;
}

/**
 * The plain order first; then one without stops; then what is left of the plain order knot by knot, for knots share no host; at last all at once
 * with stops. At least one knot is in the answer where there is no order.
 */
function orderOf(
  ledger: Ledger,
  items: readonly Item[],
  stops: readonly number[],
  budget: Budget,
): { steps: Step[] } | { knots: Knot[] } {
  const straight = straightOf(ledger, items);
  if (straight.left.length === 0) return { steps: straight.steps };
  const search = (stopsFrom: number, stopsTo: number): Step[] | null => {
    const whole = new OrderSearch(ledger, items, stops, budget.whole);
    const steps = whole.run(stopsFrom, stopsTo);
    budget.whole -= whole.looks;
    return steps;
  };
  const plain = search(0, 0);
  if (plain !== null) return { steps: plain };
  const steps = [...straight.steps];
  const knots: Knot[] = [];
  const room = ledger.clone();
  runs(room, steps);
  for (const knot of knotsOf(straight.left)) {
    const one = new OrderSearch(room, knot, stops, Math.min(knotLooksMax, budget.knots));
    const found = one.run(0, stopsMax);
    budget.knots -= one.looks;
    if (found === null) knots.push({ items: knot, exhausted: one.exhausted });
    else {
      runs(room, found);
      steps.push(...found);
    }
  }
  if (knots.length === 0) return { steps };
  const stopping = search(1, stopsMax);
  return stopping === null ? { knots } : { steps: stopping };
}

/** The items in groups that share no host. */
function knotsOf(items: readonly Item[]): Item[][] {
  let knots: { slots: Set<number>; items: Item[] }[] = [];
  for (const item of items) {
    const touched = knots.filter(({ slots }) => slots.has(item.from) || slots.has(item.to));
    const joined = {
      slots: new Set([item.from, item.to, ...touched.flatMap(({ slots }) => [...slots])]),
      items: [...touched.flatMap((knot) => knot.items), item],
    };
    knots = [...knots.filter((knot) => !touched.includes(knot)), joined];
  }
  const place = new Map(items.map((item, index) => [item, index]));
  return knots.map((knot) => knot.items.sort((one, other) => (place.get(one) ?? 0) - (place.get(other) ?? 0)));
}

/** Those that all fit where they are wanted once all have moved, the more urgent before the others, and the ledger of that end. */
function standingOf(ledger: Ledger, items: readonly Item[]): { standing: Item[]; end: Ledger } {
  let standing = [...items];
  for (;;) {
    const end = ledger.clone();
    for (const { load, from } of standing) end.remove(load, from);
    const fitting = standing.filter(({ load, to }) => {
      const fits = end.fits(load, to);
      if (fits) end.add(load, to);
      return fits;
    });
    if (fitting.length < standing.length) {
      standing = fitting;
      continue;
    }
    // One that fell for another one that fell later may stand after all.
    for (let again = true; again; ) {
      again = false;
      for (const item of items) {
        if (standing.includes(item) || !end.fits(item.load, item.to)) continue;
        end.remove(item.load, item.from);
        end.add(item.load, item.to);
        standing.push(item);
        again = true;
      }
    }
    const kept = new Set(standing);
    return { standing: items.filter((item) => kept.has(item)), end };
  }
}

/** Whatever can start starts, one after the other, by urgency and without a stop; `left` is what waits for each other then. */
function straightOf(ledger: Ledger, items: readonly Item[]): { steps: Step[]; left: Item[] } {
  const room = ledger.clone();
  const steps: Step[] = [];
  let left = [...items];
  for (;;) {
    const next = left.filter((item) => {
      const step = { ...item, after: null };
      const ran = runs(room, [step]);
      if (ran) steps.push(step);
      return !ran;
    });
    if (next.length === left.length) return { steps, left };
    left = next;
  }
}

class OrderSearch {
  looks = 0;
  exhausted = false;
  readonly #room: Ledger;
  readonly #items: readonly Item[];
  readonly #stops: readonly number[];
  readonly #looksMax: number;
  readonly #steps: Step[] = [];
  /** Where each of those left is, by its place in `items`; undefined: it has arrived. */
  readonly #at: (number | undefined)[];
  readonly #stopped: (Step | null)[];
  #failed = new Set<string>();

  constructor(ledger: Ledger, items: readonly Item[], stops: readonly number[], looksMax: number) {
    this.#room = ledger.clone();
    this.#items = items;
    this.#stops = stops;
    this.#looksMax = looksMax;
    this.#at = items.map(({ from }) => from);
    this.#stopped = items.map(() => null);
  }

  /** The steps in an order that fits, with as many stops as stated; null: none was found. To be run once. */
  run(stopsFrom: number, stopsTo: number): Step[] | null {
    for (let stops = stopsFrom; stops <= Math.min(stopsTo, this.#items.length); stops += 1) {
      // What is safe for the end may still take the room of a stop, so with stops the orders without that short cut are tried as well.
      for (const direct of stops === 0 ? [true] : [true, false]) {
        this.#failed = new Set();
        if (this.#descend(stops, direct)) return [...this.#steps];
        if (this.exhausted) return null;
      }
    }
    return null;
  }

  #descend(stopsLeft: number, direct: boolean): boolean {
    const depth = this.#steps.length;
    if (direct) this.#runSafe();
    if (this.#at.every((slot) => slot === undefined)) return true;
    const key = `${stopsLeft} ${this.#at.join(",")}`;
    if (!this.#failed.has(key)) {
      this.looks += 3 * this.#items.length;
      if (this.looks > this.#looksMax) this.exhausted = true;
      else if (this.#branches(stopsLeft, direct)) return true;
      this.#failed.add(key);
    }
    while (this.#steps.length > depth) this.#back();
    return false;
  }

  #branches(stopsLeft: number, direct: boolean): boolean {
    for (const [index, { load, to }] of this.#items.entries()) {
      if (this.exhausted) return false;
      if (this.#at[index] === undefined || !this.#room.fits(load, to)) continue;
      this.#go(index, to);
      if (this.#descend(stopsLeft, direct)) return true;
      this.#back();
    }
    if (stopsLeft === 0) return false;
    // The smallest first: the least to carry twice.
    const order = [...this.#items.keys()].sort(
      (one, other) =>
        (this.#items[one]?.load.memoryKiB ?? 0) - (this.#items[other]?.load.memoryKiB ?? 0) || other - one,
    );
    for (const index of order) {
      if (this.#at[index] === undefined || this.#stopped[index] !== null) continue;
      for (const slot of this.#stopHosts(index)) {
        if (this.exhausted) return false;
        this.#go(index, slot);
        if (this.#descend(stopsLeft - 1, direct)) return true;
        this.#back();
      }
    }
    return false;
  }

  #stopHosts(index: number): number[] {
    const item = this.#items[index];
    if (item === undefined) return [];
    const { load, to } = item;
    this.looks += this.#stops.length;
    return this.#stops
      .filter((slot) => slot !== to && slot !== this.#at[index] && this.#room.fits(load, slot) && isAllowed(load, slot))
      .sort(
        (one, other) =>
          Number(isProven(load, other)) - Number(isProven(load, one)) ||
          this.#room.shareAfter(load, other) - this.#room.shareAfter(load, one) ||
          one - other,
      )
      .slice(0, stopHostsMax);
  }

  /** What goes where nobody is still to leave takes nobody's way, for the end fits: it goes at once. */
  #runSafe(): void {
    for (let again = true; again; ) {
      again = false;
      const leaving = new Set(this.#at);
      for (const [index, { load, to }] of this.#items.entries()) {
        if (this.#at[index] === undefined || leaving.has(to) || !this.#room.fits(load, to)) continue;
        this.#go(index, to);
        again = true;
      }
    }
  }

  #go(index: number, to: number): void {
    const item = this.#items[index];
    const from = this.#at[index];
    if (item === undefined || from === undefined) throw new Error("nothing is left to go");
    const step: Step = { load: item.load, from, to, after: this.#stopped[index] ?? null };
    this.#steps.push(step);
    this.#room.add(item.load, to);
    this.#room.remove(item.load, from);
    const arrived = to === item.to;
    this.#at[index] = arrived ? undefined : to;
    if (!arrived) this.#stopped[index] = step;
  }

  #back(): void {
    const step = this.#steps.pop();
    const index = this.#items.findIndex(({ load }) => load === step?.load);
    if (step === undefined || index < 0) throw new Error("nothing to take back");
    this.#room.add(step.load, step.from);
    this.#room.remove(step.load, step.to);
    this.#at[index] = step.from;
    if (step.after === null) this.#stopped[index] = null;
  }
}

function endBlocker(fleet: Fleet, end: Ledger, { load, to }: Item): Blocker {
  const [first] = obstaclesOn(fleet, end, load, to, null).filter(
    ({ kind }) => kind === "room" || kind === "antiAffinity",
  );
  if (first === undefined) throw new Error("one that fits at the end was taken out");
  return blockerOf(first);
}

function swapBlocker(fleet: Fleet, { load, to }: Item, remaining: readonly Item[], exhausted: boolean): Blocker {
  const host = hostAt(fleet, to);
  const names = remaining
    .filter(({ from, load: other }) => from === to && other !== load)
    .map((item) => item.load.domain.name);
  const shown =
    names.length === 0
      ? "others"
      : `${names.slice(0, 3).join(", ")}${names.length > 3 ? ` and ${names.length - 3} more` : ""}`;
  const why = exhausted
    ? "no order was found among those that were tried"
    : "no third host has the room to hold one of them in the meantime";
  return {
    code: "placement.swap",
    cause: cut(`${load.domain.name} can go to ${host.name} only after ${shown} left it, which waits in turn: ${why}.`),
    action: `Free room on any third host, or move one of them by hand first: vmferry migrate ${load.domain.name} --to HOST`,
  };
}
