/**
 * Sees everything that happens in a simulated world, also what no actor can see, and says when an invariant is broken: on
 * every change of a CPU, a record, a receipt, a state. It only looks.
 */

import type { MigrationState } from "#core/state";
import { PausedReason } from "#libvirt/constants";
import type { Command } from "#protocol/command";
import { canonical } from "#shim/canonical";
import type { SideName } from "./fault-plan.ts";
import type { SimBucket, SimBundleFiles } from "./sim-bundles.ts";
import type { SimDomain } from "./sim-domain.ts";
import type { SimLibvirtd } from "./sim-libvirtd.ts";
import type { World } from "./world.ts";

export interface Places {
  daemons: Record<SideName, SimLibvirtd>;
  files: Record<SideName, SimBundleFiles>;
  bucket: SimBucket;
}

/** A snapshot as its owner knows it. */
const recordKey = (name: string, createdAt: number) => `${name}@${createdAt}`;

export class Witness {
  readonly #world: World;
  #places: Places | null = null;
  /** The life of the guest that is going on; 0 before its first boot. */
  life = 0;
  /** A host lost its power with this life in it: then its end is nobody's fault. */
  powerTouched = false;
  /** Where this life's CPUs ran last. */
  #ranAt: SideName = "source";
  /** The guest had been paused by its owner when it was to move. */
  ownerPaused = false;
  /** The newest state of each migration. */
  readonly states = new Map<string, MigrationState>();
  /** Statements of how Finish ended, by migration. */
  readonly #outcomes = new Map<string, string>();
  /** A person has stated that the destination runs nothing. */
  fenced = new Set<SideName>();
  readonly #bodies = new Map<string, string>();
  readonly #states = new Map<string, { version: number; epoch: number }>();
  readonly #epochs = new Map<string, number>();
  /** Epoch of each command as the functions sent it. */
  readonly #sent = new Map<string, number>();
  /** Points that a side's journal has for good: a milestone's name, with what decides of it. */
  readonly #points = new Set<string>();
  readonly #performs = new Map<string, number>();

  constructor(world: World) {
    this.#world = world;
  }

  look(places: Places): void {
    this.#places = places;
  }

  #other(side: SideName): SimLibvirtd | undefined {
    return this.#places?.daemons[side === "source" ? "destination" : "source"];
  }

  /** Where the guest's CPU ran last. */
  get ranAt(): SideName {
    return this.#ranAt;
  }

  newLife(daemon: SimLibvirtd): number {
    this.life += 1;
    this.ownerPaused &&= this.life === 1;
    this.#ranAt = daemon.side;
    this.#world.note(`${daemon.side} a new life of the guest begins (${this.life})`);
    return this.life;
  }

  /** I1. */
  ran(daemon: SimLibvirtd, domain: SimDomain, by: string): void {
    if (this.#other(daemon.side)?.domains.get(domain.uuid)?.qemu?.cpu === "running")
      this.#world.violate("I1", `the guest runs on both hosts: on the ${daemon.side} by ${by}`);
    // A copy that stood still while the other one ran knows nothing of what was written since.
    if (domain.qemu?.life === this.life) {
      if (this.#ranAt === "destination" && daemon.side === "source" && !this.fenced.has("destination"))
        this.#world.violate("I1", `the source goes on (${by}) from before the guest ran on the destination`);
      this.#ranAt = daemon.side;
    }
    if (this.ownerPaused && by !== "client resumes")
      this.#world.violate("I2", `a guest that its owner had paused runs on the ${daemon.side} by ${by}`);
  }

  /** I2: a shim lets the source go on only with a receipt that nothing is left over there. */
  resuming(daemon: SimLibvirtd, domain: SimDomain, by: string): void {
    const { qemu } = domain;
    if (qemu?.cpu !== "paused" || qemu.reason !== PausedReason.MIGRATION) return;
    const there = this.#other(daemon.side)?.domains.get(domain.uuid)?.qemu ?? null;
    if (there !== null)
      this.#world.violate("I2", `the ${daemon.side} is resumed (${by}) while the other copy is ${there.cpu}`);
    if (![...this.#outcomes.values()].includes("destroyed") && !this.fenced.has("destination"))
      this.#world.violate("I2", `the ${daemon.side} is resumed (${by}) without any receipt that says so`);
  }

  /** I8. */
  killed(daemon: SimLibvirtd, domain: SimDomain, by: string): void {
    const { qemu } = domain;
    if (qemu === null || qemu.life === null || qemu.life !== this.life) return;
    const there = this.#other(daemon.side)?.domains.get(domain.uuid)?.qemu ?? null;
    const isWholeThere = there !== null && there.life === qemu.life;
    if (by === "Confirm" || by === "client destroys") {
      const mayStand = this.ownerPaused ? isWholeThere : isWholeThere && there.cpu === "running";
      if (!mayStand && !this.powerTouched)
        this.#world.violate("I8", `the ${daemon.side}'s copy was ended by ${by} while the other one does not run`);
    } else if (!isWholeThere && !this.powerTouched)
      this.#world.violate("I8", `the only copy of the guest was ended on the ${daemon.side} (${by})`);
  }

  lostByPower(_daemon: SimLibvirtd, domain: SimDomain): void {
    if (domain.qemu?.life === this.life) this.powerTouched = true;
  }

  /** I6: one Perform for one command. */
  performing(daemon: SimLibvirtd, domain: SimDomain): void {
    const key = `${daemon.side} ${domain.uuid}`;
    const count = (this.#performs.get(key) ?? 0) + 1;
    this.#performs.set(key, count);
    if (!this.#points.has("destination armed") || !this.#points.has("source armed"))
      this.#world.violate("I10", "Perform is called although the destination was not armed: nobody could end it alone");
    if (count > 1) this.#world.violate("I6", "Perform was called twice for one migration");
  }

  /** I7: libvirt is asked only for what the journal has decided. */
  finishing(cancelled: boolean): void {
    if (!this.#points.has(`destination finishing ${cancelled}`))
      this.#world.violate(
        "I7",
        `Finish (${cancelled ? "cancelled" : "started"}) is called before that decision is on disk`,
      );
  }

  /** I3: a record is taken away only while it is complete over there, and kept by the journal and the bucket. */
  stripping(daemon: SimLibvirtd, domain: SimDomain, name: string): void {
    const createdAt = domain.snapshots.records.get(name)?.createdAt;
    if (createdAt === undefined) return;
    if (!this.#isBundled(daemon.side, name, createdAt))
      this.#world.violate("I3", `"${name}" is being stripped while its bundle is not on this disk and in the bucket`);
    const there = this.#other(daemon.side)?.domains.get(domain.uuid);
    if (there?.snapshots.records.get(name)?.createdAt !== createdAt)
      this.#world.violate("I3", `"${name}" is being stripped on the ${daemon.side} before it is staged over there`);
  }

  /** I3: the last record of a snapshot is never thrown away. */
  undefining(daemon: SimLibvirtd, domain: SimDomain): void {
    const there = this.#other(daemon.side)?.domains.get(domain.uuid);
    for (const [name, { createdAt }] of domain.snapshots.records)
      if (there?.snapshots.records.get(name)?.createdAt !== createdAt && !this.#isInBucket(name, createdAt))
        this.#world.violate("I3", `"${name}" goes with the ${daemon.side}'s definition and is nowhere else`);
  }

  #isBundled(side: SideName, name: string, createdAt: number): boolean {
    const key = recordKey(name, createdAt);
    const here = [...(this.#places?.files[side].files.values() ?? [])];
    return here.some((bundle) => keysOf(bundle.entries).has(key)) && this.#isInBucket(name, createdAt);
  }

  #isInBucket(name: string, createdAt: number): boolean {
    const key = recordKey(name, createdAt);
    return [...(this.#places?.bucket.objects.values() ?? [])].some((bundle) => keysOf(bundle.entries).has(key));
  }

  /** I5, I7: a state that was committed. */
  committed(state: MigrationState): void {
    // Two instances that decide the very same thing at once have written one state.
    const newest = this.states.get(state.id);
    if (newest?.version === state.version && canonical(newest) === canonical(state)) return;
    const last = this.#states.get(state.id);
    if (last !== undefined && (state.version !== last.version + 1 || state.epoch < last.epoch))
      this.#world.violate("I5", `version ${last.version}, epoch ${last.epoch} became ${state.version}, ${state.epoch}`);
    this.states.set(state.id, state);
    this.#states.set(state.id, { version: state.version, epoch: state.epoch });
    if (state.receipt !== null && state.receipt.evidence !== "fenced")
      this.stated(state.id, state.receipt.outcome, "the functions' state");
  }

  /** I7. */
  stated(migrationId: string, outcome: string, where: string): void {
    const standing = this.#outcomes.get(migrationId);
    if (standing === undefined) this.#outcomes.set(migrationId, outcome);
    else if (standing !== outcome)
      this.#world.violate("I7", `${where} says ${outcome} of a Finish that was stated to have ended as ${standing}`);
  }

  /** I6: one body for an id, whoever sends it. */
  commanded(command: Command): void {
    const body = canonical(command);
    this.#sent.set(command.id, command.epoch);
    const known = this.#bodies.get(command.id);
    if (known === undefined) this.#bodies.set(command.id, body);
    else if (known !== body) this.#world.violate("I6", `command ${command.id} has two bodies`);
  }

  /** I5, I7: an entry that is on a disk for good. */
  journalled(side: SideName, path: string, line: Buffer): void {
    const text = line.toString("utf8", 18);
    if (text.startsWith('{"type":"intent"')) {
      const id = /"id":"([^"]*)"/.exec(text)?.[1] ?? "";
      const epoch = this.#sent.get(id) ?? Number(/"epoch":(\d+)/.exec(text)?.[1] ?? 0);
      const key = `${side} ${path}`;
      if (epoch < (this.#epochs.get(key) ?? 0))
        this.#world.violate(
          "I5",
          `the ${side} begins a command of epoch ${epoch} after one of ${this.#epochs.get(key)}`,
        );
      this.#epochs.set(key, epoch);
    }
    const name = /"type":"milestone".*?"name":"([a-zA-Z]+)"/.exec(text)?.[1];
    if (name !== undefined)
      this.#points.add(`${side} ${name}${name === "finishing" ? ` ${text.includes('"cancelled":true')}` : ""}`);
    if (name === "finished") {
      const id = /([mb]_[0-9A-Z]{26})\.jsonl$/.exec(path)?.[1] ?? "";
      this.stated(id, /"outcome":"([a-z]+)"/.exec(text)?.[1] ?? "?", `the ${side}'s journal`);
    }
  }

  forgot(side: SideName, path: string): void {
    this.#epochs.delete(`${side} ${path}`);
  }
}

const keys = new WeakMap<object, ReadonlySet<string>>();

function keysOf(entries: readonly { name: string; xml: string }[]): ReadonlySet<string> {
  const known = keys.get(entries);
  if (known !== undefined) return known;
  const made = new Set(
    entries.map(({ name, xml }) => recordKey(name, Number(/<creationTime>(\d+)</.exec(xml)?.[1] ?? 0))),
  );
  keys.set(entries, made);
  return made;
}
