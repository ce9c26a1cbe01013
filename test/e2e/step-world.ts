/** Two lab hosts, one guest with a branching tree, and what tests of the steps ask of them again and again. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { type Lab, startLab } from "#lab/lab";
import { type TakenTree, takeBranchingTree } from "#lab/snapshot-tree";
import type { SnapshotRecord } from "#lab/virsh";
import type { DomainRef, MigrateOptions } from "#protocol/command";
import { Crossing, live } from "./step-driver.ts";

/** Beside other tests on two cores everything takes longer; nothing is measured. */
export const timeout = 900_000;
export const tickMs = 60_000;

export class StepWorld {
  readonly lab: Lab;
  readonly h1: Host;
  readonly h2: Host;
  readonly guest: Guest;
  readonly taken: TakenTree;
  readonly #open: Crossing[] = [];
  #crossings = 0;

  private constructor(lab: Lab, guest: Guest, taken: TakenTree) {
    this.lab = lab;
    this.h1 = lab.host(0);
    this.h2 = lab.host(1);
    this.guest = guest;
    this.taken = taken;
  }

  /** Boots the guest on h1. Nothing stays when it fails. */
  static async start(): Promise<StepWorld> {
    const lab = await startLab({ hosts: 2 });
    try {
      const guest = await bootGuest(lab.host(0));
      return new StepWorld(lab, guest, await takeBranchingTree(lab.host(0), guest));
    } catch (error) {
      await lab.stop();
      throw error;
    }
  }

  async stop(): Promise<void> {
    await destroyGuest(this.guest, [this.h1, this.h2]);
    await this.lab.stop();
  }

  async crossing(from: Host, to: Host, of: DomainRef = this.guest, options: MigrateOptions = live): Promise<Crossing> {
    this.#crossings += 1;
    const dir = join(this.lab.dir, `c${this.#crossings}`);
    const made = await Crossing.start({ source: from, destination: to }, of, dir, options);
    this.#open.push(made);
    return made;
  }

  /** After each test: connections go, and what a failed test left staged, so that the next one does not fail for it. */
  async sweep(): Promise<void> {
    for (const crossing of this.#open.splice(0)) await crossing.close();
    for (const host of [this.h1, this.h2]) {
      const other = host === this.h1 ? this.h2 : this.h1;
      for (const name of await host.virsh.domains()) {
        const stale =
          (await host.virsh.domstate(name)) === "shut off" && (await other.virsh.domstate(name)) === "running";
        if (name !== this.guest.name || stale) await host.virsh.undefine(name);
      }
    }
  }

  /** The host that has the guest now. */
  async home(): Promise<{ here: Host; there: Host }> {
    const atFirst = (await this.h1.virsh.domstate(this.guest.name)) !== undefined;
    return atFirst ? { here: this.h1, there: this.h2 } : { here: this.h2, there: this.h1 };
  }

  /** Tree, XML included, as virsh sees it; siblings in the order of their names. */
  async treeOn(host: Host, name: string = this.guest.name): Promise<SnapshotRecord[]> {
    const tree = await host.virsh.snapshotTree(name);
    return tree.toSorted((one, other) => (one.name < other.name ? -1 : 1));
  }

  /** The source is as it was: runs, counts, has its tree; the destination has nothing. */
  async assertAsBefore({ source, destination }: Crossing, before: readonly SnapshotRecord[]): Promise<void> {
    assert.equal(await source.host.virsh.domstate(this.guest.name), "running");
    assert.deepEqual(await this.treeOn(source.host), before);
    assert.deepEqual(await destination.host.virsh.domains(), []);
    assert.deepEqual(await destination.host.qemus(), []);
    await this.guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(this.guest.witness.violations, []);
  }
}
