/**
 * Breadth first through every reachable state. Of a visited state only two hashes, its parent and which of the parent's steps
 * led here are kept; a story is told by walking the steps again from the first state. Two different states with equal
 * hashes would hide one of them: with 64 bits and ten million states the odds of any such pair are below 3 in 10^6.
 */
import { brokenIn, isAtRest } from "./invariants.ts";
import { type Model, successorsOf } from "./successors.ts";
import { type ModelWorld, worldText } from "./world.ts";

export interface Violation {
  rule: string;
  /** The shortest way to it, one line for each step. */
  story: string[];
}

export interface Exploration {
  states: number;
  transitions: number;
  depth: number;
  ms: number;
  functionsStates: number;
  /** States in which the migration has ended and nobody remembers it. */
  ends: number;
  /** How the migration stands in them. */
  statuses: Record<string, number>;
  violation: Violation | null;
  /** The bound of states was met: the rest is not explored. */
  isCut: boolean;
}

export interface ExploreOptions {
  /** Above this the exploration is cut, and says so. */
  statesMax: number;
  onLevel?: (level: { depth: number; states: number; transitions: number }) => void;
}

const noParent = 0xffffffff;

/** Numbers for texts by their hashes: open addressing, at most half full. */
class Seen {
  #high = new Uint32Array(1 << 16);
  #low = new Uint32Array(1 << 16);
  #number = new Uint32Array(1 << 16);
  #mask = (1 << 16) - 1;
  count = 0;

  /** The text's number, and whether it is new. */
  add(text: string): { number: number; isNew: boolean } {
    let high = 0x811c9dc5;
    let low = 0xdeadbeef;
    for (let index = 0; index < text.length; index += 1) {
      const code = text.charCodeAt(index);
      high = Math.imul(high ^ code, 0x85ebca6b);
      low = Math.imul(low ^ code, 0x9e3779b1);
    }
    high = Math.imul(high ^ (high >>> 16), 0xc2b2ae35) ^ Math.imul(low ^ (low >>> 13), 0x27d4eb2f);
    low = Math.imul(low ^ (low >>> 16), 0x165667b1) ^ Math.imul(high ^ (high >>> 13), 0x85ebca77);
    const slot = this.#find(high >>> 0, low >>> 0);
    const known = this.#number[slot] ?? 0;
    if (known !== 0) return { number: known - 1, isNew: false };
    const number = this.count;
    this.count += 1;
    this.#put(slot, high >>> 0, low >>> 0, number + 1);
    if (this.count * 2 > this.#mask) this.#grow();
    return { number, isNew: true };
  }

  #find(high: number, low: number): number {
    let slot = low & this.#mask;
    while (this.#number[slot] !== 0 && (this.#high[slot] !== high || this.#low[slot] !== low))
      slot = (slot + 1) & this.#mask;
    return slot;
  }

  #put(slot: number, high: number, low: number, number: number): void {
    this.#high[slot] = high;
    this.#low[slot] = low;
    this.#number[slot] = number;
  }

  #grow(): void {
    const [highs, lows, numbers] = [this.#high, this.#low, this.#number];
    const size = (this.#mask + 1) * 2;
    this.#high = new Uint32Array(size);
    this.#low = new Uint32Array(size);
    this.#number = new Uint32Array(size);
    this.#mask = size - 1;
    for (let slot = 0; slot < numbers.length; slot += 1) {
      const number = numbers[slot] ?? 0;
      if (number === 0) continue;
      const [high, low] = [highs[slot] ?? 0, lows[slot] ?? 0];
      this.#put(this.#find(high, low), high, low, number);
    }
  }
}

/** A growing row of 32-bit numbers. */
class Row {
  #values = new Uint32Array(1 << 16);
  length = 0;

  push(value: number): void {
    if (this.length === this.#values.length) {
      const longer = new Uint32Array(this.length * 2);
      longer.set(this.#values);
      this.#values = longer;
    }
    this.#values[this.length] = value;
    this.length += 1;
  }

  at(index: number): number {
    return this.#values[index] ?? 0;
  }
}

export function explore(first: ModelWorld, model: Model, options: ExploreOptions): Exploration {
  const startedAt = process.hrtime.bigint();
  const seen = new Seen();
  const parents = new Row();
  const ordinals = new Row();
  /** Steps that are no faults, as pairs. */
  const froms = new Row();
  const tos = new Row();
  const resting: number[] = [];
  const statuses: Record<string, number> = {};
  let transitions = 0;
  let depth = 0;
  let isCut = false;

  const result = (violation: Violation | null): Exploration => ({
    states: seen.count,
    transitions,
    depth,
    ms: Number((process.hrtime.bigint() - startedAt) / 1_000_000n),
    functionsStates: model.functions.count,
    ends: resting.length,
    statuses,
    violation,
    isCut,
  });
  const tell = (number: number, rule: string): Exploration => {
    const { story } = wayTo(number, { first, model, parents, ordinals });
    return result({ rule, story });
  };

  seen.add(worldText(first));
  parents.push(noParent);
  ordinals.push(0);
  let level: { number: number; world: ModelWorld }[] = [{ number: 0, world: first }];
  while (level.length > 0 && !isCut) {
    const nextLevel: typeof level = [];
    for (const { number, world } of level) {
      const successors = successorsOf(world, model);
      for (const [ordinal, successor] of successors.entries()) {
        transitions += 1;
        const { number: to, isNew } = seen.add(worldText(successor.world));
        if (!successor.isFault && to !== number) {
          froms.push(number);
          tos.push(to);
        }
        if (!isNew) {
          if (successor.world.broken !== "") {
            const { story } = wayTo(number, { first, model, parents, ordinals });
            return result({ rule: successor.world.broken, story: [...story, successor.label] });
          }
          continue;
        }
        parents.push(number);
        ordinals.push(ordinal);
        const rule = brokenIn(successor.world, model.functions);
        if (rule !== "") return tell(to, rule);
        if (isAtRest(successor.world, model.functions)) {
          resting.push(to);
          const { status } = model.functions.state(successor.world.functions);
          statuses[status] = (statuses[status] ?? 0) + 1;
        }
        nextLevel.push({ number: to, world: successor.world });
      }
      if (seen.count > options.statesMax) {
        isCut = true;
        break;
      }
    }
    level = nextLevel;
    if (level.length > 0) depth += 1;
    options.onLevel?.({ depth, states: seen.count, transitions });
  }
  if (isCut) return result(null);
  const lost = firstWithoutEnd(seen.count, resting, froms, tos);
  return lost === null
    ? result(null)
    : tell(lost, "I10: from here no end can be reached any more, without any further fault");
}

/** The earliest state from which no end can be reached by steps that are no faults; null: there is none. */
function firstWithoutEnd(count: number, ends: readonly number[], froms: Row, tos: Row): number | null {
  const heads = new Uint32Array(count).fill(noParent);
  const nexts = new Uint32Array(froms.length);
  for (let edge = 0; edge < froms.length; edge += 1) {
    const to = tos.at(edge);
    nexts[edge] = heads[to] ?? noParent;
    heads[to] = edge;
  }
  const reaches = new Uint8Array(count);
  const stack = [...ends];
  for (const end of ends) reaches[end] = 1;
  for (let number = stack.pop(); number !== undefined; number = stack.pop())
    for (let edge = heads[number] ?? noParent; edge !== noParent; edge = nexts[edge] ?? noParent) {
      const from = froms.at(edge);
      if (reaches[from] === 1) continue;
      reaches[from] = 1;
      stack.push(from);
    }
  const lost = reaches.indexOf(0);
  return lost < 0 ? null : lost;
}

interface Walk {
  first: ModelWorld;
  model: Model;
  parents: Row;
  ordinals: Row;
}

function wayTo(number: number, { first, model, parents, ordinals }: Walk): { story: string[]; world: ModelWorld } {
  const way: number[] = [];
  for (let at = number; parents.at(at) !== noParent; at = parents.at(at)) way.push(ordinals.at(at));
  let world = first;
  const story: string[] = [];
  for (const ordinal of way.reverse()) {
    const successor = successorsOf(world, model)[ordinal];
    if (successor === undefined) throw new TypeError("a step of the way cannot be walked again");
    story.push(`${successor.label}${where(successor.world, model)}`);
    world = successor.world;
  }
  return { story, world };
}

/** What an onlooker sees after a step. */
function where(world: ModelWorld, { functions }: Model): string {
  const { source, destination } = world;
  const job = source.job === "" ? "" : `/${source.job}`;
  return `   [${functions.state(world.functions).step}; source ${source.defined ? source.cpu : "gone"}${job}; destination ${destination.qemu === "" ? (destination.defined ? "defined" : "none") : destination.qemu}]`;
}
