/**
 * Evacuations on the real local control plane: workerd, its objects and its timer, the embedded DynamoDB, real websockets, the real command line. Only the
 * hosts are invented. One evacuation survives a control plane that is stopped in its middle.
 */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import * as z from "zod/mini";
import { startUp, type Up } from "#functions/cli/up";
import { numbered } from "#test/fake/evacuation-fleet";
import { type Ran, run } from "#test/fake/memory-terminal";
import { ScriptedShim, type Table } from "#test/fake/scripted-shim";

let folder: string;
let up: Up;
const table: Table = new Map();
const shims: ScriptedShim[] = [];
const said: string[] = [];

const start = (listen = "127.0.0.1:0") =>
  startUp({
    listen,
    dataDir: join(folder, "data"),
    timerMs: 1_000,
    env: { HOME: folder, VMFERRY_CONFIG: join(folder, "config.json") },
    out: (line) => said.push(line),
    err: (line) => said.push(line),
  });

const vmferry = (...argv: string[]): Promise<Ran> =>
  run(argv, {
    env: { HOME: folder, VMFERRY_CONFIG: join(folder, "config.json") },
    pace: { retryMs: 50, retryMsMax: 500 },
  });

async function says(exit: number, ran: Promise<Ran>, ...patterns: RegExp[]): Promise<Ran> {
  const { exit: found, out, err } = await ran;
  assert.equal(found, exit, `${out}---\n${err}---\n${said.slice(-20).join("\n")}`);
  for (const pattern of patterns) assert.match(`${out}---\n${err}`, pattern);
  return ran;
}

const placesNow = (): string[] =>
  [...table.values()].map(({ domain, hostId }) => {
    const host = shims.findIndex((shim) => shim.hostId === hostId) + 1;
    return `${domain.name} on host${host}`;
  });

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-evacuation-"));
  up = await start();
  const token = (await vmferry("join-token", "create", "--uses", "3", "--json")).out;
  const parsed: { token?: unknown } = JSON.parse(token);
  for (const index of [1, 2, 3]) shims.push(await ScriptedShim.enrol(up.url, String(parsed.token), index, table));
  for (const index of [1, 2, 3, 4]) {
    const labels = index === 4 ? { pinned: "license" } : {};
    const domain = numbered(index, { snapshots: 0, labels });
    table.set(domain.uuid, { domain, hostId: shims[0]?.hostId ?? "" });
  }
  await connectAll();
});
after(async () => {
  for (const shim of shims) shim.close();
  await up?.close();
  await rm(folder, { recursive: true, force: true });
});

/** Until the inventory of each is known, which comes behind its welcome. */
async function connectAll(): Promise<void> {
  for (const shim of shims) await shim.connect();
  while (z.array(z.unknown()).parse(JSON.parse((await vmferry("domains", "--json")).out)).length < table.size)
    await new Promise((resolve) => setTimeout(resolve, 20));
}

describe("evacuations on vmferry up", () => {
  test("the hosts show their labels", async () => {
    await says(0, vmferry("hosts"), /rack=a/, /rack=b/);
  });

  test("a dry run plans and changes nothing", async () => {
    const before = placesNow();
    await says(
      1,
      vmferry("evacuate", "host1", "--dry-run"),
      /3 domains would move, 1 would stay/,
      /web4 on host1: placement\.pinned/,
      /^the way home$/m,
    );
    assert.deepEqual(placesNow(), before);
  });

  let id = "";
  test("evacuate empties the host but for what stays, and says so", async () => {
    const { out } = await says(1, vmferry("evacuate", "host1"), /^partial: evacuate host1: 3 moved, 1 stay, 0 failed/m);
    id = /\((e_\w+)\)/.exec(out)?.[1] ?? "";
    assert.deepEqual(
      placesNow().filter((place) => place.endsWith("host1")),
      ["web4 on host1"],
    );
    await says(0, vmferry("hosts"), /^host1 +connected, cordoned/m);
  });

  test("undo brings all of it back, over a control plane that is stopped in the middle", async () => {
    const { host } = new URL(up.url);
    const detached = await says(0, vmferry("evacuation", "undo", id, "--detach", "--parallel", "1"));
    const undo = detached.out.trim();
    await up.close();
    for (const shim of shims) shim.close();
    up = await start(host);
    for (const shim of shims) await shim.connect();
    await says(0, vmferry("evacuation", "watch", undo), /^completed: undo host1: 3 moved/m);
    assert.ok(placesNow().every((place) => place.endsWith("host1")));
    await says(0, vmferry("evacuations"), /undo +host1 +completed +3/, /evacuate +host1 +partial +3/);
  });

  test("restore has nothing left to bring home", async () => {
    await says(0, vmferry("restore", "host1"), /^completed: restore host1: 0 moved/m);
    assert.ok((await readFile(join(folder, "config.json"), "utf8")).includes(up.url));
  });
});
