/** `vmferry events` and `vmferry audit` against the real app over a real port. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { afterEach, beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { chronicleEventSchema, eventHead } from "#core/chronicle-event";
import { hostEnrolled } from "#core/chronicle-host";
import { ruleSchema } from "#core/rule";
import { createApp } from "#functions/http/app";
import { type EvacuationFleet, evacuationFleet, numbered } from "#test/fake/evacuation-fleet";
import { adminToken, hostId } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run, says } from "#test/fake/memory-terminal";

let fleet: EvacuationFleet;
let server: MemoryServer;
const app = () =>
  createApp({
    ports: fleet.ports,
    runner: fleet.runner,
    evacuations: fleet.evacuations,
    rules: fleet.rules,
    adminTokenSha256: createHash("sha256").update(adminToken).digest("hex"),
    eventsPollMs: 2,
    eventsIdleMs: 20,
  });
beforeEach(async () => {
  fleet = await evacuationFleet([numbered(1), numbered(2)]);
  server = new MemoryServer(app().fetch);
  await server.start();
});
afterEach(() => server.stop());

const env = () => ({ VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken });
const vmferry = (...argv: string[]) => run(argv, { env: env() });

describe("events", () => {
  test("nothing yet is said; then lines in the order of time, each with who asked", async () => {
    says(await vmferry("events"), 0, /Nothing of that kind/);
    await fleet.ask("/v1/migrations", { body: { domain: "web1", source: "host1", destination: "host2" } });
    await fleet.work();
    const ran = await vmferry("events");
    says(
      ran,
      0,
      /request.received +admin asked: POST \/v1\/migrations/,
      /web1 from host1 to host2 \(m_\w+\), asked by admin/,
    );
    assert.deepEqual(
      ran.out
        .trimEnd()
        .split("\n")
        .map((line) => line.split(/ {2,}/)[1]),
      ["request.received", "migration.started", "migration.ended"],
    );
    says(await vmferry("events", "--type", "migration.ended"), 0, /web1 from host1 to host2: completed after /);
    assert.match((await vmferry("events", "--limit", "1")).out, /^\S+ {2}migration.ended [^\n]*\n$/);
    const json = z.array(chronicleEventSchema).parse(JSON.parse((await vmferry("events", "--json")).out));
    assert.equal(json.length, 3);
  });

  test("since a time or a duration; a type that there is not is a usage error", async () => {
    await fleet.ask("/v1/hosts/host2", { method: "PATCH", body: { cordoned: true } });
    says(await vmferry("events", "--since", "2026-11-22T09:00:00Z"), 0, /PATCH \/v1\/hosts\/host2/);
    says(await vmferry("events", "--since", "2026-11-22T11:00:00+00:00"), 0, /Nothing of that kind/);
    says(await vmferry("events", "--since", "soon"), 64, /--since takes a time such as/);
    says(await vmferry("events", "--type", "moon"), 64, /no event of the type moon/);
  });

  test("--follow goes on over a control plane that was away, and tells each line once", async () => {
    const stop = new AbortController();
    let out = "";
    const cordon = (cordoned: boolean) => fleet.ask("/v1/hosts/host2", { method: "PATCH", body: { cordoned } });
    await cordon(true);
    const { out: before } = await vmferry("events", "--json");
    const following = run(["events", "--follow", "--since", "2026-11-22T09:00:00Z", "--json"], {
      env: env(),
      signal: stop.signal,
      pace: { silenceMsMax: 2_000 },
      onOut: (text) => {
        out = text;
      },
    });
    const lines = async (count: number) => {
      for (let tries = 0; out.trimEnd().split("\n").filter(Boolean).length < count; tries += 1) {
        assert.ok(tries < 500, out);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    };
    await lines(1);
    await server.stop();
    await cordon(false);
    await server.start();
    await lines(2);
    await cordon(true);
    await lines(3);
    stop.abort();
    assert.equal((await following).exit, 130);
    const told = out
      .trimEnd()
      .split("\n")
      .map((line) => chronicleEventSchema.parse(JSON.parse(line)).id);
    assert.equal(told.length, 3);
    assert.equal(new Set(told).size, 3);
    assert.ok(before.includes(told[0] ?? ""));
  });

  test("every kind of event is one line", async () => {
    const at = fleet.ports.clock.now();
    await fleet.ports.chronicle.append(hostEnrolled({ id: hostId(1), name: "host1", enrolledAt: at }, "01JE"));
    await fleet.ports.chronicle.append({
      ...eventHead("s_1", hostId(1), at),
      type: "dev.vmferry.host.shutdownRequested",
      data: { host: { id: hostId(1), name: "host1" }, requestId: "s_1" },
    });
    says(await vmferry("events"), 0, /host1 \(h_\w+\) with the join token 01JE/, /host1 is to be shut down/);
  });
});

describe("audit", () => {
  const rule = ruleSchema.parse({
    name: "empty-host1",
    when: { kind: "webhook" },
    which: { names: ["host1"] },
    how: { coolDown: "1h" },
  });

  async function ranRule() {
    await fleet.rules.book.put(rule, "test", null);
    const ran = await vmferry("rule", "run", "empty-host1");
    assert.equal(ran.exit, 0, ran.err);
    await fleet.live();
    const record = await fleet.rules.book.load("empty-host1");
    await fleet.rules.runner.step(record);
  }

  test("of a migration leads to the evacuation, to the rule's run and to the person who ran it", async () => {
    await ranRule();
    const { items } = await fleet.ports.migrations.list({ limit: 10, cursor: null, active: false });
    assert.equal(items.length, 2);
    const ran = await vmferry("audit", items[0]?.id ?? "");
    const words = ran.out
      .trimEnd()
      .split("\n")
      .map((line) => line.trim().split(/ {2,}/)[1]);
    assert.deepEqual(words, ["rule.run.started", "evacuation.started", "migration.started", "migration.ended"]);
    says(ran, 0, /set off by person .* of person admin|set off by person/, /asked by rule empty-host1 through r_/);
    says(ran, 0, /asked by rule empty-host1 through e_/);
    says(await vmferry("migration", "show", items[0]?.id ?? ""), 0, /^asked by {5}rule empty-host1, by e_\w+$/m);
  });

  test("of a rule's run leads to everything that it started, and how that ended", async () => {
    await ranRule();
    const state = await fleet.rules.rules.state("empty-host1");
    const id = state?.past[0]?.id ?? state?.run?.id ?? "";
    const ran = await vmferry("audit", id);
    const words = ran.out
      .trimEnd()
      .split("\n")
      .map((line) => line.replace(/\S+ {2}(\S+).*/, "$1"));
    assert.deepEqual(words, [
      "rule.run.started",
      "  evacuation.started",
      "    migration.started",
      "    migration.ended",
      "    migration.started",
      "    migration.ended",
      "  evacuation.ended",
      "rule.run.ended",
    ]);
  });

  test("of a name finds every line that names it; without one, who asked for what", async () => {
    await fleet.ask("/v1/migrations", { body: { domain: "web1", source: "host1", destination: "host2" } });
    await fleet.work();
    says(await vmferry("audit", "web1"), 0, /migration.started/, /migration.ended/);
    assert.doesNotMatch((await vmferry("audit", "web1")).out, /request.received/);
    const all = await vmferry("audit");
    says(all, 0, /admin asked: POST \/v1\/migrations/, /migration.started/);
    assert.doesNotMatch(all.out, /migration.ended/);
    says(await vmferry("audit", "nobody"), 66, /No line of the chronicle tells of nobody/);
    says(await vmferry("audit", "m_01JE0000000000000000000099"), 66, /No line/);
    says(await vmferry("audit", "a", "b"), 64, /one argument too many/);
  });
});

test("the usage names the argument that may be left out", async () => {
  says(await run(["audit", "--help"], {}), 0, /usage: vmferry audit \[ID\|NAME\] \[OPTIONS\]/);
});
