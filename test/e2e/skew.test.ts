/**
 * Releases side by side on real libvirt: shims and functions one minor release apart carry a running guest with its tree, and what was
 * begun under one release is ended under the next. The older release runs as it was shipped (test/releases).
 */
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { version } from "#functions/version";
import { Running } from "#lab/fleet";
import type { Host } from "#lab/host";
import { doorPath } from "#protocol/identity";
import { keptReleases, releaseFile } from "#test/releases/release";
import { FailureScene, slowly } from "./failure-scene.ts";
import { treeOf } from "./world.ts";

/** `null`: the present code. */
type Release = string | null;

const minorOf = (release: string) => release.split(".").slice(0, 2).join(".");
/** The minor release before the present one, also once the present one has been cut. */
const older = keptReleases.findLast((release) => minorOf(release) !== minorOf(version)) ?? keptReleases[0] ?? "";
const present: Release = null;

describe(`beside release ${older}`, { timeout: 900_000 }, () => {
  let scene: FailureScene;
  const running: { controlPlane: Release; shims: Map<string, Release> } = { controlPlane: present, shims: new Map() };

  before(async () => {
    scene = await FailureScene.start({
      controlPlane({ port, data }) {
        if (running.controlPlane === null) return null;
        return [
          releaseFile(running.controlPlane, "vmferry.mjs"),
          "up",
          "--listen",
          `127.0.0.1:${port}`,
          "--data",
          data,
        ];
      },
      shimProgram(host) {
        const release = running.shims.get(host.name) ?? present;
        return release === null ? null : [releaseFile(release, "shim.mjs")];
      },
    });
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  /** Has that release's shim run on the host. */
  async function shim(host: Host, release: Release): Promise<void> {
    if ((running.shims.get(host.name) ?? present) === release) return;
    running.shims.set(host.name, release);
    const { fleet } = scene.world;
    await fleet.shim(host).stop();
    await fleet.startShim(host);
  }

  /** Has that release's control plane run, on the same data. */
  async function controlPlane(release: Release): Promise<void> {
    if (running.controlPlane === release) return;
    running.controlPlane = release;
    const { fleet } = scene.world;
    await fleet.controlPlane?.stop();
    await fleet.startControlPlane();
  }

  /** What runs is what was meant to: of the shims by the programs that were started, of the functions by their door. */
  async function assertRunning(): Promise<void> {
    const { fleet, lab } = scene.world;
    for (const host of lab.hosts) {
      const release = running.shims.get(host.name) ?? present;
      const word = release === null ? "shim" : releaseFile(release, "shim.mjs");
      const { spawnargs } = fleet.shim(host).child;
      assert.ok(spawnargs.includes(word), `${host.name} runs ${spawnargs.join(" ")}`);
    }
    const door = await fetch(`${fleet.url}${doorPath}`);
    assert.equal(door.status, running.controlPlane === "0.1.0" ? 404 : 200, "the door of shims came with 0.2.0");
  }

  const crossings: [string, { functions: Release; source: Release; destination: Release }][] = [
    ["an older source and a newer destination", { functions: present, source: older, destination: present }],
    ["a newer source and an older destination", { functions: present, source: present, destination: older }],
    ["two older shims under newer functions", { functions: present, source: older, destination: older }],
    ["two newer shims under older functions", { functions: older, source: present, destination: present }],
    [
      "a newer source and an older destination under older functions",
      { functions: older, source: present, destination: older },
    ],
  ];
  for (const [what, { functions, source, destination }] of crossings)
    test(`${what}: the guest crosses with its tree`, async () => {
      await controlPlane(functions);
      await shim(scene.source, source);
      await shim(scene.destination, destination);
      await assertRunning();
      await scene.nextCompletes();
    });

  test("an older command line checks, migrates and watches under newer functions", async () => {
    await controlPlane(present);
    for (const host of scene.world.lab.hosts) await shim(host, present);
    const { fleet } = scene.world;
    const say = (...words: string[]) =>
      new Running(`vmferry ${older}`, [process.execPath, releaseFile(older, "vmferry.mjs"), ...words], fleet.env);
    const { name } = scene.guest;
    const [from, to] = [scene.source, scene.destination];
    const tree = await treeOf(from, name);
    const looks = [["hosts"], ["domains"], ["domain", "show", name], ["check", name, "--to", to.name]];
    for (const words of looks) {
      const looking = say(...words);
      assert.equal(await looking.exited, 0, looking.output);
    }
    const migrating = say("migrate", name, "--to", to.name);
    assert.equal(await migrating.exited, 0, migrating.output);
    [scene.source, scene.destination] = [to, from];
    await scene.isOn(to, tree);
  });

  test("functions are upgraded while memory flows: the migration ends under the newer ones", async () => {
    await controlPlane(older);
    for (const host of scene.world.lab.hosts) await shim(host, older);
    const { fleet } = scene.world;
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    await fleet.controlPlane?.kill();
    running.controlPlane = present;
    await fleet.startControlPlane();
    await assertRunning();
    await scene.hurry();
    await scene.completed(attempt);
  });

  test("functions are taken back to the older release while memory flows: the migration ends under these", async () => {
    await controlPlane(present);
    const { fleet } = scene.world;
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    await fleet.controlPlane?.kill();
    running.controlPlane = older;
    await fleet.startControlPlane();
    await assertRunning();
    await scene.hurry();
    await scene.completed(attempt);
  });

  for (const side of ["source", "destination"] as const)
    test(`an older shim of the ${side} dies while memory flows: the newer one goes by its journal`, async () => {
      await controlPlane(present);
      for (const host of scene.world.lab.hosts) await shim(host, older);
      const { fleet } = scene.world;
      const host = scene[side];
      const attempt = await scene.migrate(slowly);
      await scene.performing(attempt);
      await fleet.shim(host).kill();
      running.shims.set(host.name, present);
      await fleet.startShim(host);
      await scene.rolledBack(attempt, {
        exit: 1,
        status: "rolledBack",
        code: ["shim.restarted", "source.lost", "destination.lost", "perform.failed"],
      });
      await scene.nextCompletes();
    });
});
