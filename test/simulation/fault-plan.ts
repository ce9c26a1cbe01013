/**
 * Where something can go wrong, and what: every crossing between two actors is a point, named by what crosses, and each
 * time it is reached it is asked for faults. A plan names points exactly (all single faults, pairs); a swarm draws lots.
 */
import type { Chance } from "./virtual-time.ts";

export const sides = ["source", "destination"] as const;
export type SideName = (typeof sides)[number];

/** What crosses at a point. `look` are libvirt calls that change nothing. */
export type PointClass =
  | "disk"
  | "bundle"
  | "libvirt"
  | "look"
  | "stream"
  | "store"
  | "bucket"
  | "down"
  | "up"
  | "peer";

export interface Point {
  class: PointClass;
  /** Whose point it is: a side, or the functions. */
  actor: SideName | "functions";
  /** `intent begin`, `domainMigratePerform3Params`, `commit preparing`, `command begin`... */
  what: string;
}

/** Faults of the crossing itself. */
const ownKinds = {
  disk: ["crashBefore", "crashTorn", "crashAfter", "diskFull"],
  bundle: ["crashBefore", "crashAfter", "diskFull"],
  libvirt: ["crashBefore", "crashAfter", "daemonBefore", "daemonAfter", "refused"],
  look: ["crashBefore", "daemonBefore"],
  stream: ["breaks"],
  store: ["crashBefore", "crashAfter", "ambiguous", "throttled"],
  bucket: ["crashBefore", "crashAfter", "away"],
  down: ["lost", "repeated", "delayed", "stale"],
  up: ["lost", "repeated", "delayed", "stale", "twice"],
  peer: ["lost", "replyLost", "repeated", "delayed", "cut"],
} as const satisfies Record<PointClass, readonly string[]>;

/** Faults of the world around, at the moment when a point is reached. */
export const worldKinds = [
  "cancel",
  "snapshot",
  "crash:source",
  "crash:destination",
  "daemon:source",
  "daemon:destination",
  "power:source",
  "power:destination",
  "powerLong:source",
  "powerLong:destination",
  "socket:source",
  "socket:destination",
  "peerCut",
  "streamCut",
  "functionsAway",
  "bucketAway",
  "diskFull:source",
  "diskFull:destination",
] as const;
export type WorldKind = (typeof worldKinds)[number];
export type OwnKind = (typeof ownKinds)[PointClass][number];
export type FaultKind = OwnKind | WorldKind;

const isWorldKind = (kind: FaultKind): kind is WorldKind => (worldKinds as readonly string[]).includes(kind);

export interface PlannedFault {
  /** `class actor what#nth`, nth from 1. */
  at: string;
  kind: FaultKind;
}

/** Which of libvirt's answers may be a refusal: those whose failure the protocol must survive. */
const refusable: ReadonlySet<string> = new Set([
  "domain_define_xml_flags",
  "domain_migrate_begin3_params",
  "domain_migrate_prepare3_params",
  "domain_migrate_perform3_params",
  "domain_migrate_finish3_params",
  "domain_migrate_confirm3_params",
  "domain_snapshot_create_xml",
  "domain_undefine_flags",
]);

export function ownKindsOf(point: Point): readonly OwnKind[] {
  const kinds = ownKinds[point.class];
  if (point.class !== "libvirt" || refusable.has(point.what)) return kinds;
  return kinds.filter((kind) => kind !== "refused");
}

/** How a run gets its faults. */
export type FaultSource =
  | { type: "none" }
  | { type: "planned"; faults: readonly PlannedFault[] }
  /** After so many points, lots are drawn with `likelihood` at each until `faultsMax` have been; only these kinds. */
  | { type: "swarm"; likelihood: number; faultsMax: number; kinds: ReadonlySet<FaultKind>; afterPoints: number };

const none: ReadonlySet<OwnKind> = new Set();

export class FaultBook {
  readonly #source: FaultSource;
  readonly #chance: Chance;
  readonly #reached = new Map<string, number>();
  #points = 0;
  readonly #onWorld: (kind: WorldKind) => void;
  /** Every point reached, in order, while `recording`. */
  readonly points: { at: string; point: Point }[] = [];
  readonly injected: PlannedFault[] = [];
  recording = false;
  /** Set when the world is to heal: no fault after this. */
  closed = false;

  constructor(source: FaultSource, chance: Chance, onWorld: (kind: WorldKind) => void) {
    this.#source = source;
    this.#chance = chance;
    this.#onWorld = onWorld;
  }

  /** The faults of the crossing that is about to happen; those of the world around are set off on the way. */
  at(point: Point): ReadonlySet<OwnKind> {
    if (this.closed) return none;
    if (point.class !== "look") this.#points += 1;
    const name = `${point.class} ${point.actor} ${point.what}`;
    const nth = (this.#reached.get(name) ?? 0) + 1;
    this.#reached.set(name, nth);
    const at = `${name}#${nth}`;
    if (this.recording) this.points.push({ at, point });
    const kinds = this.#kinds(at, point);
    if (kinds.length === 0) return none;
    const own = new Set<OwnKind>();
    for (const kind of kinds) {
      this.injected.push({ at, kind });
      if (isWorldKind(kind)) this.#onWorld(kind);
      else own.add(kind);
    }
    return own;
  }

  #kinds(at: string, point: Point): readonly FaultKind[] {
    const source = this.#source;
    switch (source.type) {
      case "none":
        return [];
      case "planned":
        return source.faults.filter((fault) => fault.at === at).map(({ kind }) => kind);
      case "swarm": {
        const { likelihood, faultsMax, kinds, afterPoints } = source;
        if (this.#points < afterPoints) return [];
        // A look is one of hundreds; the points that change something are what matters.
        const likely = point.class === "look" ? likelihood / 8 : likelihood;
        if (this.injected.length >= faultsMax || !this.#chance.is(likely)) return [];
        const own = ownKindsOf(point).filter((kind) => kinds.has(kind));
        const around = worldKinds.filter((kind) => kinds.has(kind));
        const from: readonly FaultKind[] = this.#chance.is(0.7) && own.length > 0 ? own : around;
        return from.length === 0 ? [] : [this.#chance.pick(from)];
      }
    }
  }
}

/** Every kind there is, for mixes. */
export const allKinds: readonly FaultKind[] = [
  ...new Set<FaultKind>([...Object.values(ownKinds).flat(), ...worldKinds]),
];
