/**
 * A host's own shutdown on the real local control plane: workerd, a real websocket, the embedded DynamoDB, a rule from a file. The timer comes no more often than
 * once an hour, so what is seen here is seen at once.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import * as z from "zod/mini";
import { startUp, type Up } from "#functions/cli/up";
import { numbered } from "#test/fake/evacuation-fleet";
import { run } from "#test/fake/memory-terminal";
import { ScriptedShim, type Table } from "#test/fake/scripted-shim";
import { until } from "#test/fake/until";

const minuteMs = 60_000;
let folder: string;
let up: Up;
const table: Table = new Map();
const shims: ScriptedShim[] = [];

const env = () => ({ HOME: folder, VMFERRY_CONFIG: join(folder, "config.json") });
const vmferry = (...argv: string[]) => run(argv, { env: env(), pace: { retryMs: 50, retryMsMax: 500 } });
const evacuationSchema = z.object({
  id: z.string(),
  status: z.string(),
  host: z.string(),
  deadlineAt: z.nullable(z.string()),
  origin: z.object({ rule: z.nullable(z.string()) }),
});

/** What the API lists, through the command line's own token. */
async function evacuations() {
  const { out } = await vmferry("evacuations", "--json");
  return z.array(z.object({ id: z.string(), status: z.string() })).parse(JSON.parse(out));
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-up-shutdown-"));
  const quiet = () => undefined;
  up = await startUp({
    listen: "127.0.0.1:0",
    dataDir: join(folder, "data"),
    timerMs: 60 * minuteMs,
    env: env(),
    out: quiet,
    err: quiet,
  });
  const { token } = z
    .object({ token: z.string() })
    .parse(JSON.parse((await vmferry("join-token", "create", "--uses", "2", "--json")).out));
  for (const index of [1, 2]) shims.push(await ScriptedShim.enrol(up.url, token, index, table));
  for (const index of [1, 2]) {
    const domain = numbered(index, { snapshots: 0 });
    table.set(domain.uuid, { domain, hostId: shims[0]?.hostId ?? "" });
  }
  for (const shim of shims) await shim.connect();
  await until(
    "the inventory",
    async () => (await vmferry("domains", "--json")).out,
    (out) => z.array(z.unknown()).parse(JSON.parse(out)).length === table.size,
  );
});
after(async () => {
  for (const shim of shims) shim.close();
  await up?.close();
  await rm(folder, { recursive: true, force: true });
});

describe("a host's own shutdown on vmferry up", () => {
  test("without a rule it is heard, and nothing is moved", async () => {
    const [host1] = shims;
    host1?.shutdown("now-1", "requested", 15 * minuteMs);
    await until(
      "the answer",
      () => host1?.heard ?? [],
      (heard) => heard.includes("now-1 requested"),
    );
    host1?.shutdown("now-1", "withdrawn", 0);
    await until(
      "the answer",
      () => host1?.heard ?? [],
      (heard) => heard.includes("now-1 withdrawn"),
    );
    assert.deepEqual(await evacuations(), []);
  });

  test("with one the host is emptied at once, by the time that the host has said", async () => {
    const file = join(folder, "off.yaml");
    await writeFile(
      file,
      "name: off\nwhen:\n  kind: host-shutdown\nwhich:\n  labels:\n    rack: a\nhow:\n  coolDown: 1m\n",
    );
    const applied = await vmferry("rule", "apply", "-f", file);
    assert.equal(applied.exit, 0, applied.err);
    const [host1, host2] = shims;
    const saidMs = Date.now();
    host1?.shutdown("now-2", "requested", 15 * minuteMs);
    const [begun] = await until("the evacuation", evacuations, (found) => found.length > 0);
    const shown = evacuationSchema.parse(
      JSON.parse((await vmferry("evacuation", "show", begun?.id ?? "", "--json")).out),
    );
    assert.deepEqual([shown.host, shown.origin.rule], ["host1", "off"]);
    const leftMs = Date.parse(shown.deadlineAt ?? "") - saidMs;
    assert.ok(leftMs >= 15 * minuteMs && leftMs < 16 * minuteMs, String(leftMs));
    assert.deepEqual(host1?.heard.at(-1), "now-2 requested");
    const watched = await vmferry("evacuation", "watch", shown.id);
    assert.match(watched.out, /^completed: evacuate host1: 2 moved/m);
    assert.ok([...table.values()].every(({ hostId }) => hostId === host2?.hostId));
  });

  test("a host that the rule does not mean is left alone", async () => {
    const [, host2] = shims;
    host2?.shutdown("now-3", "requested", 15 * minuteMs);
    await until(
      "the answer",
      () => host2?.heard ?? [],
      (heard) => heard.includes("now-3 requested"),
    );
    assert.equal((await evacuations()).length, 1);
  });
});
