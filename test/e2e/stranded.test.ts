/**
 * A host that stays away, in the one moment in which nobody else can say whether it runs the guest. The migration is
 * stranded then and only then; what it tells the person to do is done here to the letter, and the guest runs again. When the
 * host comes back it keeps nothing.
 *
 * "Gone" is a host whose shim, daemon and QEMU are killed and stay so. The wait is real: 35 s until a host counts as away, a
 * minute of patience, and the timer's minute.
 */
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import type { Host } from "#lab/host";
import { type Attempt, commandMark, FailureScene } from "./failure-scene.ts";
import { eventually } from "./world.ts";

/** Exit code of a stranded migration (interface.md). */
const strandedExit = 4;

describe("a host that stays away", { timeout: 900_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  /** Holds that command of the relay on its way, with the shims parted: whatever it says is not known to the other side. */
  async function heldAt(side: "source" | "destination", kind: "finish" | "confirm"): Promise<Attempt> {
    const held = scene.proxy(scene[side]).stallWhen(commandMark(kind), { direction: "down" });
    const attempt = await scene.relayed();
    await scene.hurry();
    await held;
    return attempt;
  }

  async function powerOff(host: Host): Promise<void> {
    await scene.world.fleet.shim(host).kill();
    await host.kill9();
    await host.killQemu();
  }

  /** As after its boot: the definitions of its disk are there, and nothing runs. */
  async function powerOn(host: Host): Promise<void> {
    await host.start();
    scene.proxy(host).heal();
    await scene.world.fleet.startShim(host);
  }

  /** Takes the command out of what was printed, fills in the reason, and runs it; a person at a terminal is asked the name. */
  async function followLiterally(attempt: Attempt, host: Host): Promise<string> {
    const [line] = /vmferry migration resolve .*--reason WHY/.exec(attempt.cli.output) ?? [];
    assert.ok(line !== undefined, `no command is told:\n${attempt.cli.output}`);
    assert.ok(line.includes(`--fenced ${host.name} `), line);
    const words = line.replace("vmferry ", "").replace("WHY", "its-mainboard-burnt").split(" ");
    const resolving = scene.cli([...words, "--yes"]);
    await resolving.exited;
    return resolving.output;
  }

  /** The returned host has swept what it kept, and the same guest can be moved onto it. */
  async function sweptAndUsable(attempt: Attempt): Promise<void> {
    await eventually(
      "the returned host has swept",
      async () => (await scene.world.migration(attempt.id)).step === "ended",
    );
    const { name } = scene.guest;
    await scene.world.assertNothingOn(scene.destination, name);
    await scene.world.assertJournalsEmpty(scene.destination);
    await scene.nextCompletes();
  }

  test("the destination, before it has stated how Finish ended: the guest goes on on its source", async () => {
    const attempt = await heldAt("destination", "finish");
    await powerOff(scene.destination);
    assert.equal(await scene.exitOf(attempt), strandedExit, attempt.cli.output);
    assert.equal((await scene.world.migration(attempt.id)).status, "stranded");
    assert.equal(await scene.source.virsh.domstate(scene.guest.name), "paused");
    assert.match(attempt.cli.output, /host\.offline: /);

    // A host that speaks is not fenced.
    const wrong = await scene.world.fleet.run([
      "migration",
      "resolve",
      attempt.id,
      "--fenced",
      scene.source.name,
      "--reason",
      "x",
      "--yes",
    ]);
    assert.notEqual(wrong.code, 0, wrong.stdout);

    const said = await followLiterally(attempt, scene.destination);
    const resolved = await scene.world.migration(attempt.id);
    assert.equal(resolved.status, "rolledBack", said);
    assert.equal(resolved.fenced?.reason, "its-mainboard-burnt");
    await scene.runsAgain(scene.source, attempt.before);
    await powerOn(scene.destination);
    await sweptAndUsable(attempt);
  });

  test("the source, after the guest has arrived: it stays on the destination, and is settled there", async () => {
    const attempt = await heldAt("source", "confirm");
    assert.equal(await scene.destination.virsh.domstate(scene.guest.name), "running");
    await powerOff(scene.source);
    assert.equal(await scene.exitOf(attempt), strandedExit, attempt.cli.output);
    assert.match(attempt.cli.output, new RegExp(`The domain runs on ${scene.destination.name}`));
    const said = await followLiterally(attempt, scene.source);
    const resolved = await scene.world.migration(attempt.id);
    assert.equal(resolved.status, "completed", said);
    await scene.runsAgain(scene.destination, attempt.before);
    await powerOn(scene.source);
    [scene.source, scene.destination] = [scene.destination, scene.source];
    await sweptAndUsable(attempt);
  });
});
