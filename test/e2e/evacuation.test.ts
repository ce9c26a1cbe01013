/**
 * A host is emptied and filled again, for real: three libvirt hosts, eight counting guests with snapshot trees, of which one may not move. Half-way one
 * destination loses its daemon and its shim, and the control plane is killed once. Each guest's serial counter tells that none was stopped or
 * started again.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import type { SnapshotRecord } from "#lab/virsh";
import { type Evacuation, evacuationPlanSchema, evacuationSchema } from "../../functions/http/evacuation-resource.ts";
import { eventually, treeOf, World } from "./world.ts";

/** Eight guests under emulation share two cores. */
const tickMs = 180_000;
/** The whole of it, with retries after a dead destination: minutes of backoff are part of it. */
const endMsMax = 1_200_000;
const pinnedLabel = '<v:labels xmlns:v="https://vmferry.dev/labels/1"><v:label name="pinned">yes</v:label></v:labels>';

describe("a host is emptied", { timeout: 3_000_000 }, () => {
  let world: World;
  let h1: Host;
  let h2: Host;
  let h3: Host;
  const guests: Guest[] = [];
  const trees = new Map<string, SnapshotRecord[]>();
  const pinned = "g8";
  let first: Evacuation;

  before(async () => {
    world = await World.start({ hosts: 3 });
    [h1, h2, h3] = [world.lab.host(0), world.lab.host(1), world.lab.host(2)];
    for (let number = 1; number <= 8; number += 1) {
      const name = `g${number}`;
      // Slow counters: eight of them are to leave the machine's two cores time for the migrations.
      const guest = await bootGuest(h1, {
        name,
        memoryMiB: 128,
        tickPauseMs: 50,
        ...(name === pinned ? { metadata: pinnedLabel } : {}),
      });
      guests.push(guest);
      await h1.virsh.snapshotCreate(name, "base");
      if (number % 2 === 0) await h1.virsh.snapshotCreate(name, "leaf");
    }
    for (const { name } of guests) {
      await world.heardOf(name, [h1]);
      trees.set(name, await treeOf(h1, name));
    }
  });
  after(async () => {
    if (world === undefined) return;
    for (const guest of guests) await destroyGuest(guest, world.lab.hosts);
    await world.stop();
  });

  const evacuation = async (id: string): Promise<Evacuation> =>
    evacuationSchema.parse(await world.get(`/v1/evacuations/${id}`));

  async function ended(id: string): Promise<Evacuation> {
    let seen: Evacuation | null = null;
    await eventually(
      () => `${id} has ended: ${JSON.stringify(seen, null, 1)}`,
      async () => {
        // While the control plane is away nobody can tell.
        seen = await evacuation(id).catch(() => null);
        return seen !== null && seen.endedAt !== null;
      },
      endMsMax,
    );
    return evacuation(id);
  }

  /** Runs where it should, with its tree, counting on since it was booted. */
  async function unharmed(guest: Guest, on: Host): Promise<void> {
    assert.equal(await on.virsh.domstate(guest.name), "running", `${guest.name} on ${on.name}`);
    assert.deepEqual(await treeOf(on, guest.name), trees.get(guest.name), `${guest.name}: the tree differs`);
    for (const host of world.lab.hosts) if (host.name !== on.name) await world.assertNothingOn(host, guest.name);
    await guest.witness.waitForTicks(3, tickMs);
    assert.deepEqual(guest.witness.violations, [], guest.name);
    assert.equal(guest.witness.boots, 1, `${guest.name} was started again`);
    assert.equal(guest.witness.diskErrors, 0);
  }

  const hostOf = (name: string | null): Host => {
    const host = world.lab.hosts.find((each) => each.name === name);
    assert.ok(host, `${name} is no host`);
    return host;
  };

  test("the plan says where to, why, how long, what is in the way, and the way home; nothing changes", async () => {
    const before = await world.seen(h1);
    const { finished, value } = await world.json(["evacuate", h1.name, "--dry-run"]);
    const plan = evacuationPlanSchema.parse(value);
    assert.equal(plan.moves.length, 7, finished.stderr);
    assert.deepEqual(
      plan.blocked.map(({ domain, blocker }) => [domain.name, blocker.code]),
      [[pinned, "placement.pinned"]],
    );
    for (const move of plan.moves) {
      assert.ok([h2.name, h3.name].includes(move.to));
      assert.ok(move.reason.length > 10 && move.proven, `${move.domain.name}: ${move.reason}`);
      assert.ok(move.endMs > move.startMs);
    }
    assert.deepEqual(
      plan.home.map(({ domain }) => domain.name).sort(),
      plan.moves.map(({ domain }) => domain.name).sort(),
    );
    const text = await world.fleet.run(["evacuate", h1.name, "--dry-run"]);
    for (const { name } of guests) assert.match(text.stdout, new RegExp(`\\b${name}\\b`));
    assert.match(text.stdout, /placement\.pinned/);
    assert.deepEqual(await world.seen(h1), before);
  });

  test("it is emptied, whatever dies meanwhile; what cannot move stays and holds nobody", async () => {
    const running = world.fleet.start(["evacuate", h1.name]);
    await running.says(/\be_[0-9A-Z]{26}\b/);
    const [id = ""] = /\be_[0-9A-Z]{26}\b/.exec(running.output) ?? [];
    const movedOf = async () =>
      (await evacuation(id).catch(() => null))?.domains.filter(({ state }) => state === "moved").length ?? 0;
    await eventually("two have moved", async () => (await movedOf()) >= 2);

    await world.fleet.controlPlane?.kill();
    await world.fleet.startControlPlane();

    await eventually("one is on its way to h3, or all have moved", async () => {
      const { domains } = await evacuation(id);
      return (
        domains.some(({ state, destination }) => state === "moving" && destination === h3.name) ||
        domains.every(({ state }) => state !== "waiting" && state !== "moving")
      );
    });
    await world.fleet.shim(h3).kill();
    await h3.kill9();
    await eventually("the others go on to h2", async () => (await movedOf()) >= 5, endMsMax);
    await h3.start();
    await world.fleet.startShim(h3);

    first = await ended(id);
    const story = `${JSON.stringify(first, null, 1)}\n${running.output}`;
    assert.equal(first.status, "partial", story);
    const states = new Map(first.domains.map((each) => [each.domain.name, each]));
    assert.equal(states.get(pinned)?.state, "stays", story);
    assert.equal(states.get(pinned)?.reason?.code, "placement.pinned");
    for (const guest of guests) {
      const stated = states.get(guest.name);
      if (guest.name === pinned) await unharmed(guest, h1);
      else {
        assert.equal(stated?.state, "moved", story);
        await unharmed(guest, hostOf(stated?.destination ?? null));
      }
    }
    assert.equal(await running.exited, 1, running.output);
    const { stdout } = await world.fleet.mustRun(["hosts"]);
    assert.match(stdout, new RegExp(`${h1.name} .*cordoned`), "the emptied host takes nobody");
  });

  test("restore brings home what belongs there, trees complete", async () => {
    const restored = await world.fleet.run(["restore", h1.name]);
    assert.equal(restored.code, 0, restored.stdout + restored.stderr);
    for (const guest of guests) await unharmed(guest, h1);
  });

  test("and an evacuation that was a mistake is undone by its id", async () => {
    const { finished, value } = await world.json(["evacuate", h1.name, "--to", h2.name]);
    const again = evacuationSchema.parse(value);
    assert.equal(finished.code, 1, finished.stderr);
    assert.equal(again.domains.filter(({ state }) => state === "moved").length, 7, JSON.stringify(again, null, 1));
    const undone = await world.fleet.run(["evacuation", "undo", again.id]);
    assert.equal(undone.code, 0, undone.stdout + undone.stderr);
    for (const guest of guests) await unharmed(guest, h1);
  });
});
