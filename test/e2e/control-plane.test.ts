/**
 * The control plane itself goes away: killed, or without its store. What was begun goes on by itself when it is back, and
 * whoever watched sees it to its end.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { startTcpProxy, type TcpProxy } from "#lab/tcp-proxy";
import { grantWaitMs } from "#shim/grants";
import { transferTryMs } from "#shim/payloads";
import { type EmbeddedDynamo, openDynalite } from "../../functions/cli/up-dynalite.ts";
import { problemSchema } from "../../functions/http/problem.ts";
import { commandMark, FailureScene, slowly } from "./failure-scene.ts";
import { eventually, refusalOf, rows, treeOf } from "./world.ts";

const timeout = 900_000;

describe("the control plane is killed and started again on the same data", { timeout }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  test("during Perform: it completes under the eyes of the command that watched from the start", async () => {
    const { fleet } = scene.world;
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    await fleet.controlPlane?.kill("SIGKILL");
    await scene.hurry();
    // The shims are alone now: Perform ends, and its report waits for somebody to take it.
    await eventually("Perform has ended without a control plane", () =>
      scene.hasReported(scene.source, attempt, "perform"),
    );
    await fleet.startControlPlane();
    await scene.completed(attempt);
    const watched = await fleet.run(["migration", "watch", attempt.id]);
    assert.equal(watched.code, 0, watched.stderr);
    assert.match(watched.stdout, /^completed: /m);
  });

  test("while it relays between shims that are parted: the guest waits, then runs there", async () => {
    const { fleet } = scene.world;
    const proxy = scene.proxy(scene.destination);
    const finishing = proxy.cutWhen(commandMark("finish"), { direction: "down", when: "before" });
    const attempt = await scene.relayed();
    await scene.hurry();
    await finishing;
    await fleet.controlPlane?.kill("SIGKILL");
    assert.equal(await scene.source.virsh.domstate(scene.guest.name), "paused", "no answer is no answer");
    proxy.heal();
    await fleet.startControlPlane();
    await scene.completed(attempt);
  });
});

describe("DynamoDB is away", { timeout }, () => {
  let dir: string;
  let dynamo: EmbeddedDynamo;
  let store: TcpProxy;
  let scene: FailureScene;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), "vmferry-dynamo-"));
    dynamo = await openDynalite(dir);
    store = await startTcpProxy({ targetPort: Number(new URL(dynamo.endpoint).port) });
    scene = await FailureScene.start({ up: ["--dynamodb", `http://127.0.0.1:${store.port}`] });
  });
  after(async () => {
    await scene?.stop();
    await store?.close();
    await dynamo?.close();
    await rm(dir, { recursive: true, force: true });
  });
  beforeEach(() => {
    store.heal();
    return scene.ready();
  });

  /** Takes the store away as the source is told to export. */
  async function awayAtExport() {
    const { source } = scene;
    const exporting = scene.proxy(source).stallWhen(commandMark("export"), { direction: "down" });
    const attempt = await scene.migrate();
    await exporting;
    store.cut();
    scene.proxy(source).heal();
    return attempt;
  }

  test("at the export: the API says store.unreachable meanwhile, and it completes when the store is back", async () => {
    const { world, source } = scene;
    const attempt = await awayAtExport();
    const answer = await world.ask(`/v1/migrations/${attempt.id}`);
    assert.equal(answer.status, 503);
    assert.equal(problemSchema.parse(await answer.json()).code, "store.unreachable");
    assert.match(answer.headers.get("retry-after") ?? "", /^\d+$/);
    const asked = await world.fleet.run(["migrations"]);
    assert.equal(asked.code, 69);
    assert.equal(refusalOf(asked).code, "store.unreachable");
    await eventually("the export waits for its bucket", async () =>
      world.fleet.shim(source).output.includes("a transfer failed and is tried again"),
    );
    store.heal();
    await scene.completed(attempt);
  });

  test("at the export for longer than the shim tries: bundle.unreachable, rolled back when the store is back", async () => {
    // Another tree than before: an object that is in the bucket already is not sent again.
    const { source, guest, world } = scene;
    await source.virsh.snapshotCreate(guest.name, "unsent");
    // Told within the outage, the changed inventory ends the session, and a grant waits longer for a session than for a bucket. It may still happen
    // (a rescan sees something else), so the wait below is as long as both together.
    const { length } = await treeOf(source, guest.name);
    await eventually("the inventory has it", async () =>
      rows(await world.get("/v1/domains")).some(({ name, snapshots }) => name === guest.name && snapshots === length),
    );
    const attempt = await awayAtExport();
    await eventually(
      "the export was given up",
      () => scene.hasReported(scene.source, attempt, "export"),
      2 * (grantWaitMs + transferTryMs),
    );
    store.heal();
    await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: "bundle.unreachable" });
    await scene.nextCompletes();
  });

  test("as Perform ends: the shims need no store, the guest runs there, and it completes when the store is back", async () => {
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    store.cut();
    await scene.hurry();
    await eventually("Perform has ended", () => scene.hasReported(scene.source, attempt, "perform"));
    assert.equal(await scene.destination.virsh.domstate(scene.guest.name), "running");
    store.heal();
    await scene.completed(attempt);
  });

  test("as Perform ends between shims that are parted: the guest waits, and it completes when the store is back", async () => {
    const attempt = await scene.relayed();
    store.cut();
    await scene.hurry();
    await eventually("Perform has ended", () => scene.hasReported(scene.source, attempt, "perform"));
    assert.equal(await scene.source.virsh.domstate(scene.guest.name), "paused", "no answer is no answer");
    store.heal();
    await scene.completed(attempt);
  });
});
