/** Migrations over HTTP: a person's wish to stop and a person's statement that a host is fenced, and what becomes of each. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { type Migration, migrationSchema } from "#functions/http/migration-resource";
import { problemSchema } from "#functions/http/problem";
import { domainNamed, hostId, type MemoryFleet, memoryFleet, refusal, webUuid } from "#test/fake/memory-fleet";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

async function started(): Promise<Migration> {
  const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
  assert.equal(response.status, 202);
  return migrationSchema.parse(await response.json());
}

const show = async (id: string): Promise<Migration> =>
  migrationSchema.parse(await (await fleet.ask(`/v1/migrations/${id}`)).json());

describe("cancel", () => {
  test("turns it back, and names who did it", async () => {
    const { id } = await started();
    const response = await fleet.ask(`/v1/migrations/${id}/cancel`, { method: "POST" });
    assert.equal(response.status, 202);
    await fleet.serve();
    const { status, error, cancel } = await show(id);
    assert.equal(status, "cancelled");
    assert.equal(error?.cause, "Cancelled by admin.");
    assert.deepEqual([cancel?.by, cancel?.outcome], ["admin", "won"]);
  });

  test("during Perform it is not decided yet, and late when the guest had gone over", async () => {
    const { id } = await started();
    await fleet.serve({}, "perform");
    const asked = migrationSchema.parse(
      await (await fleet.ask(`/v1/migrations/${id}/cancel`, { method: "POST" })).json(),
    );
    assert.deepEqual([asked.step, asked.cancel?.outcome], ["perform", "pending"]);
    await fleet.serve();
    const ended = await show(id);
    assert.deepEqual([ended.status, ended.cancel?.outcome], ["completed", "late"]);
  });

  test("of an ended or unknown one is refused", async () => {
    const { id } = await started();
    await fleet.serve();
    const late = await fleet.ask(`/v1/migrations/${id}/cancel`, { method: "POST" });
    assert.deepEqual(await refusal(late), [409, "request.conflict"]);
    const unknown = await fleet.ask("/v1/migrations/m_01JD0000000000000000000077/cancel", { method: "POST" });
    assert.deepEqual(await refusal(unknown), [404, "request.notFound"]);
  });
});

describe("resolve", () => {
  const statement = { fenced: "host2", reason: "its power supply is in my hand" };
  const resolve = (id: string, body: object = statement, token?: string) =>
    fleet.ask(`/v1/migrations/${id}/resolve`, { body, ...(token === undefined ? {} : { token }) });
  /** Perform has returned, the destination was not reached and is asked by command: it stays away. */
  async function waiting(): Promise<string> {
    const { id } = await started();
    await finishing();
    fleet.pass(36_000);
    return id;
  }
  async function finishing(): Promise<void> {
    fleet.script.relayed = true;
    await fleet.serve({}, "finish");
    fleet.script.pushed.length = 0;
  }
  const refused = async (response: Promise<Response>): Promise<string> => {
    const problem = problemSchema.parse(await (await response).json());
    assert.deepEqual([problem.status, problem.code], [409, "request.conflict"]);
    return problem.cause;
  };

  test("of a destination that stays away gives the domain back to the source; who and why are told", async () => {
    const id = await waiting();
    const made = await fleet.ask("/v1/api-tokens", { body: { name: "night shift" } });
    const { token } = z.object({ token: z.string() }).parse(await made.json());
    const response = await resolve(id, statement, token);
    assert.equal(response.status, 202);
    const { fenced, timeline } = migrationSchema.parse(await response.json());
    assert.deepEqual(
      [fenced?.host, fenced?.side, fenced?.by, fenced?.reason],
      ["host2", "destination", "night shift", statement.reason],
    );
    assert.ok(timeline.some(({ note }) => note.includes("night shift") && note.includes(statement.reason)));
    await fleet.serve({}, "unstage");
    const ended = await show(id);
    assert.deepEqual([ended.status, ended.step, ended.sweep], ["rolledBack", "sweep", ["unstage"]]);
    assert.deepEqual([ended.receipt?.outcome, ended.receipt?.evidence], ["destroyed", "fenced"]);
    // The domain is free at once; the host that is gone may be forgotten, and nothing waits for it any more.
    assert.equal(await fleet.ports.migrations.domainLock(webUuid), null);
    assert.equal((await fleet.ask("/v1/hosts/host2", { method: "DELETE" })).status, 204);
    assert.deepEqual(await fleet.ports.migrations.migrationsOf(hostId(2)), []);
  });

  test("of a destination that had the guest: forgotten, it will never say how that ended, so the end is told", async () => {
    const { id } = await started();
    fleet.script.relayed = true;
    await fleet.serve({}, "settle");
    fleet.pass(36_000);
    assert.equal((await resolve(id)).status, 202);
    const { status, step } = await show(id);
    assert.deepEqual([status, step], ["stranded", "sweep"]);
    assert.equal(await fleet.ports.chronicle.find(`${id}-ended`), null);
    assert.equal((await fleet.ask("/v1/hosts/host2", { method: "DELETE" })).status, 204);
    const told = (await fleet.ports.chronicle.find(`${id}-ended`))?.event;
    assert.equal(told?.type === "dev.vmferry.migration.ended" && told.data.status, "stranded");
  });

  test("is refused while the host speaks: heard of lately, or answering though the records say nothing", async () => {
    const id = await waiting();
    await fleet.ports.hosts.seen(hostId(2), { at: fleet.ports.clock.now() });
    assert.match(await refused(resolve(id)), /host2 was heard of at/);
    fleet.pass(36_000);
    const fault = { code: "domain.absent", cause: "not here", action: "look", retry: "never" } as const;
    fleet.script.answers.set(`${hostId(2)} describeDomain`, { ok: false, fault });
    assert.match(await refused(resolve(id)), /host2 answers/);
    assert.equal((await show(id)).fenced, null);
  });

  test("is refused where that host is not what is waited for, and twice", async () => {
    const { id } = await started();
    fleet.pass(36_000);
    assert.match(await refused(resolve(id)), /does not wait for host2/);
    await finishing();
    assert.equal((await resolve(id)).status, 202);
    assert.match(await refused(resolve(id)), /already/);
    await fleet.serve();
    assert.match(await refused(resolve(id)), /ended/);
  });

  test("of another host, an unknown one, an unknown migration; without a reason", async () => {
    const id = await waiting();
    await fleet.addHost(3);
    assert.match(await refused(resolve(id, { ...statement, fenced: "host3" })), /takes no part/);
    assert.deepEqual(await refusal(await resolve(id, { ...statement, fenced: "nope" })), [404, "host.absent"]);
    assert.deepEqual(await refusal(await resolve("m_01JD0000000000000000000077")), [404, "request.notFound"]);
    for (const body of [{ fenced: "host2" }, { ...statement, reason: "" }, { ...statement, reason: "x".repeat(501) }])
      assert.deepEqual(await refusal(await resolve(id, body)), [400, "request.malformed"]);
  });
});
