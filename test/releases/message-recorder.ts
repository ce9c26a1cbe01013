/**
 * Records what a release's shims and functions say to each other, on real libvirt: a check, crossings, a cancel, a lost
 * daemon, bundles by hand, a host that is turned away. Of each shape of message one is kept. It runs inside a checkout of
 * that release (record.ts puts it there) and only uses what release 0.1.0 had already.
 *
 *   node test/releases/message-recorder.ts FOLDER
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createRunner } from "#functions/runner";
import { receive } from "#functions/session";
import { bootGuest } from "#lab/guest";
import type { Host } from "#lab/host";
import { takeBranchingTree } from "#lab/snapshot-tree";
import { eventually, World } from "#test/e2e/world";
import { hostId, memoryFleet } from "#test/fake/memory-fleet";
import { type RecordingProxy, startRecordingProxy } from "#test/releases/recording-proxy";

/** Fields whose value says what a message is: they are part of its shape. */
const telling = new Set(["type", "kind", "ok", "in", "op", "purpose", "reachable", "outcome", "evidence", "method"]);

function shapeOf(value: unknown, field = ""): string {
  if (Array.isArray(value)) return `[${[...new Set(value.map((each) => shapeOf(each)))].sort().join("|")}]`;
  if (typeof value === "object" && value !== null)
    return `{${Object.entries(value)
      .map(([name, each]) => `${name}:${shapeOf(each, name)}`)
      .join(",")}}`;
  return telling.has(field) ? String(value) : value === null ? "null" : typeof value;
}

class Kept {
  readonly #shapes = new Set<string>();
  readonly lines: string[] = [];

  hear(direction: "up" | "down", text: string): void {
    const message: unknown = JSON.parse(text);
    const shape = `${direction} ${shapeOf(message)}`;
    if (this.#shapes.has(shape)) return;
    this.#shapes.add(shape);
    this.lines.push(JSON.stringify({ [direction]: message }));
  }
}

/** A grant that the functions refuse: no shim of the release asks for one by itself. */
async function refusedGrant(kept: Kept): Promise<void> {
  const { ports } = await memoryFleet();
  const [ulid, digest] = ["01JE0000000000000000000001", "a".repeat(64)];
  const want = { op: "put" as const, purpose: "bundle" as const, sha256: digest, bytes: 10 };
  const ask = { type: "grant" as const, request: "1", migrationId: `m_${ulid}`, commandId: `m_${ulid}:export:1`, want };
  const session = { hostId: hostId(1), nonce: "n", publicUrl: "http://functions", session: "s" };
  for (const reply of (await receive(ports, createRunner(ports), session, ask)).replies)
    kept.hear("down", JSON.stringify(reply));
}

async function performing(source: Host, name: string): Promise<void> {
  await eventually("the guest's memory is under way", async () => {
    const info = await source.virsh.run(["domjobinfo", name]).catch(() => "");
    return /Memory processed: +[1-9]/.test(info);
  });
}

async function play(world: World): Promise<void> {
  const { lab, fleet } = world;
  const [h1, h2] = [lab.host(0), lab.host(1)];
  const guest = await bootGuest(h1);
  await takeBranchingTree(h1, guest);
  await world.heardOf(guest.name, [h1]);
  await fleet.run(["check", guest.name, "--to", h2.name]);
  await fleet.run(["domain", "show", guest.name]);
  await world.migrate([guest.name, "--to", h2.name]);
  await world.heardOf(guest.name, [h2]);

  const slow = async () => {
    const cli = fleet.start(["migrate", guest.name, "--to", h1.name, "--bandwidth", "1"]);
    await cli.says(/\bm_[0-9A-Z]{26}: /);
    await performing(h2, guest.name);
    return { cli, id: /\bm_[0-9A-Z]{26}/.exec(cli.output)?.[0] ?? "" };
  };
  const cancelled = await slow();
  await fleet.mustRun(["migration", "cancel", cancelled.id]);
  await cancelled.cli.exited;
  const lost = await slow();
  await h1.kill9();
  await eventually("the shim has noticed", async () => /closed|lost|ended/.test(fleet.shim(h1).output));
  await h1.start();
  await lost.cli.exited;

  await world.define(h1, "still");
  await h1.virsh.snapshotCreate("still", "base");
  await world.heardOf("still", [h1]);
  const file = join(fleet.dir, "still.bundle");
  await fleet.mustRun(["bundle", "export", "still", "-o", file]);
  await h1.virsh.run(["snapshot-delete", "still", "--metadata", "base"]);
  await fleet.run(["bundle", "restore", file, "--host", h1.name]);
  await world.heardOf("still", [h1]);
  await world.migrate(["still", "--to", h2.name]);
  await world.define(h1, "bare");
  await world.heardOf("bare", [h1]);
  await world.migrate(["bare", "--to", h2.name]);
  await world.forget("bare");
  await eventually("its end is told", async () => (await fleet.run(["domain", "show", "bare"])).code !== 0);

  await guest.witness.stop();
  await world.forget(guest.name);
  await fleet.run(["host", "remove", h1.name]);
  await new Promise((resolve) => setTimeout(resolve, 5_000));
}

async function main(folder: string): Promise<void> {
  const kept = new Kept();
  let proxy: RecordingProxy | null = null;
  const world = await World.start(
    { hosts: 2 },
    {
      async shimUrl(port) {
        proxy ??= await startRecordingProxy(port, (direction, text) => kept.hear(direction, text));
        return `http://127.0.0.1:${proxy.port}`;
      },
    },
  );
  try {
    await play(world);
  } catch (error) {
    for (const one of [world.fleet.controlPlane, ...world.fleet.shims.values()]) console.log(one?.label, one?.output);
    throw error;
  } finally {
    await world.stop();
    await (proxy as RecordingProxy | null)?.close();
  }
  await refusedGrant(kept);
  await writeFile(join(folder, "messages.jsonl"), kept.lines.map((line) => `${line}\n`).join(""));
  const types = kept.lines.map((line) => /^\{"(\w+)":\{"type":"(\w+)"/.exec(line)?.slice(1).join(" ") ?? line);
  for (const type of [...new Set(types)].sort()) console.log(`${type}: ${types.filter((one) => one === type).length}`);
}

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error("name the folder to write into");
await main(folder);
