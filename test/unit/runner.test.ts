/**
 * The loop around the transition: what is written before what, what is pushed, what is found again. Two scripted shims
 * answer every command with success, through the same `receive` that a real socket uses.
 */
import assert from "node:assert/strict";
import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { beforeEach, describe, test } from "node:test";
import type { StoredBlob } from "#core/state";
import { type Ports, paceOf } from "#functions/ports";
import { createRunner, type Runner } from "#functions/runner";
import { challenge, receive, type Session } from "#functions/session";
import type { InlineBlob } from "#protocol/blob";
import type { Command, ReportBody } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { helloSignedText } from "#protocol/identity";
import { heartbeatMs } from "#protocol/limits";
import type { DownMessage, HostFacts } from "#protocol/message";
import { controlSigner } from "#test/fake/control-key";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { MemoryShutdowns } from "#test/fake/memory-shutdowns";
import {
  MemoryBundleTasks,
  MemoryEvacuations,
  MemoryHosts,
  MemoryMigrations,
  MemoryTokens,
} from "#test/fake/memory-store";
import { bundleRef, freshMigration, migrationRequest, successes } from "#test/fake/migration";

const request = migrationRequest;
const facts: HostFacts = {
  shimVersion: "0",
  nodeVersion: "24",
  migrationAddress: null,
  libvirt: { reachable: false, cause: "not asked" },
};

/** A world in memory with a clock that only tests move, and sockets that remember or lose what is pushed. */
function world() {
  let nowMs = Date.parse("2026-11-22T10:00:00.000Z");
  let serial = 0;
  const pushed: { hostId: string; message: DownMessage }[] = [];
  const requests: string[] = [];
  const counted = <T extends object>(port: T): T =>
    new Proxy(port, {
      get(target, name) {
        const member: unknown = Reflect.get(target, name);
        if (typeof member !== "function") return member;
        return (...words: unknown[]) => {
          requests.push(String(name));
          return Reflect.apply(member, target, words);
        };
      },
    });
  const clock = { now: () => new Date(nowMs).toISOString() };
  const granted = { url: "u", headers: {} };
  const state = { losePushes: false, bucket: new Map<string, number>([[bundleRef.key, bundleRef.bytes]]) };
  const ports: Ports = {
    clock,
    ids: {
      ulid: () => `01JD000000000000000000${String(++serial).padStart(4, "0")}`,
      secret: () => createHash("sha256").update(String(++serial)).digest("base64url"),
    },
    migrations: counted(new MemoryMigrations(clock)),
    tasks: counted(new MemoryBundleTasks()),
    evacuations: new MemoryEvacuations(clock),
    chronicle: new MemoryChronicle(positionsBy(clock)),
    shutdowns: new MemoryShutdowns(),
    hosts: new MemoryHosts(),
    tokens: new MemoryTokens(),
    bundles: {
      grantPut: async ({ sha256 }) => ({ ...granted, method: "PUT", key: `bundles/${sha256}`, present: false }),
      grantGet: async ({ key }) => ({ ...granted, method: "GET", key, present: true }),
      head: async (key) => {
        const bytes = state.bucket.get(key);
        return bytes === undefined ? null : { bytes };
      },
      remove: async (key) => {
        state.bucket.delete(key);
      },
    },
    sockets: {
      push: async (hostId, message) => {
        if (state.losePushes) return false;
        pushed.push({ hostId, message });
        return true;
      },
      query: async () => null,
      progress: async () => null,
      drop: async () => undefined,
    },
    feed: { publish: async () => undefined, subscribe: async function* () {} },
    tickets: controlSigner(),
    pace: paceOf(heartbeatMs),
    log: { write: () => undefined },
  };
  const runner = createRunner(ports);
  return { ports, runner, pushed, requests, state, pass: (ms: number) => (nowMs += ms) };
}

const digested: InlineBlob = {
  in: "inline",
  base64: Buffer.from("cookie").toString("base64"),
  sha256: createHash("sha256").update("cookie").digest("hex"),
  bytes: 6,
};

/** The first success of a kind with payloads whose digests are true. */
function answer(command: Command): ReportBody {
  const body = Object.values(successes(command.kind))[0];
  assert.ok(body);
  if (body.kind === "inspectSource") return { ...body, facts: digested };
  if (body.kind === "begin") return { ...body, cookie: digested, xml: digested };
  if (body.kind === "prepare" || body.kind === "perform") return { ...body, cookie: digested };
  return body.kind === "finish" ? { ...body, cookie: digested } : body;
}

const reportOf = (command: Command, body: ReportBody = answer(command)) => ({
  commandId: command.id,
  migrationId: command.migrationId,
  epoch: command.epoch,
  ms: 3,
  result: { ok: true as const, body },
});

/** Answers what is pushed until nothing more comes; returns the kinds in order. */
async function serve(pushed: { hostId: string; message: DownMessage }[], runner: Runner): Promise<string[]> {
  const kinds: string[] = [];
  for (let next = pushed.shift(); next !== undefined; next = pushed.shift()) {
    if (next.message.type !== "command") continue;
    kinds.push(next.message.command.kind);
    await runner.reported(next.hostId, reportOf(next.message.command));
  }
  return kinds;
}

describe("runner", () => {
  let it = world();
  beforeEach(() => {
    it = world();
  });

  test("a migration with snapshots runs through and leaves nothing held", async () => {
    await it.runner.request(request);
    const kinds = await serve(it.pushed, it.runner);
    // Finish and Confirm are the shims' own affair, by the ticket.
    assert.equal(kinds.length, 8);
    const state = await it.ports.migrations.load(request.id);
    assert.equal(state?.status, "completed");
    for (const name of ["A", "B", "C"] as const) {
      const stored: StoredBlob | undefined = state?.blobs[name];
      assert.ok(stored);
      const bytes: Uint8Array | null = await it.ports.migrations.getBlob(request.id, stored);
      assert.equal(Buffer.from(bytes ?? []).toString(), "cookie");
    }
    assert.equal(await it.ports.migrations.domainLock(request.domain.uuid), null);
    assert.deepEqual(await it.ports.migrations.migrationsOf(request.source.id), []);
    assert.deepEqual(await it.ports.migrations.migrationsOf(request.destination.id), []);
  });

  test("a whole migration costs at most 40 requests to the store", async () => {
    await it.runner.request(request);
    await serve(it.pushed, it.runner);
    assert.ok(it.requests.length > 20 && it.requests.length <= 40, `${it.requests.length}: ${it.requests.join(" ")}`);
  });

  for (const { code, kept } of [
    { code: "bundle.altered", kept: false },
    { code: "bundle.unreachable", kept: true },
  ] as const)
    test(`a staging that ends in ${code} ${kept ? "leaves the bundle" : "takes the bundle out of the bucket"}`, async () => {
      await it.runner.request(request);
      for (let next = it.pushed.shift(); next !== undefined; next = it.pushed.shift()) {
        if (next.message.type !== "command") continue;
        const { command } = next.message;
        const fault = { code, cause: "c", action: "a", retry: "safe" } as const;
        const report = reportOf(command);
        const failed = { ...report, result: { ok: false as const, fault } };
        await it.runner.reported(next.hostId, command.kind === "stage" ? failed : report);
      }
      assert.equal((await it.ports.migrations.load(request.id))?.status, "rolledBack");
      // What is still there counts as present at the next export of the same tree, whatever it holds.
      assert.equal(it.state.bucket.has(bundleRef.key), kept);
    });

  test("what is pushed and lost comes again, the very same, until its report is stored", async () => {
    it.state.losePushes = true;
    await it.runner.request(request);
    const first = await it.runner.pendingOf(request.source.id);
    assert.equal(first.length, 1);
    assert.deepEqual(await it.runner.pendingOf(request.source.id), first);
    assert.deepEqual(await it.runner.pendingOf(request.destination.id), []);
    const command = first[0];
    assert.ok(command);
    await it.runner.reported(request.source.id, reportOf(command));
    assert.deepEqual(await it.runner.pendingOf(request.source.id), []);
    const second = await it.runner.pendingOf(request.destination.id);
    assert.deepEqual(
      second.map(({ kind }) => kind),
      ["inspectDestination"],
    );
    const carried = second[0];
    assert.ok(carried?.kind === "inspectDestination");
    assert.deepEqual(carried.facts, digested);
  });

  test("a repeated report changes nothing, a stranger's neither", async () => {
    await it.runner.request(request);
    const message = it.pushed[0]?.message;
    assert.ok(message?.type === "command");
    const report = reportOf(message.command);
    await it.runner.reported(request.destination.id, report);
    assert.equal((await it.ports.migrations.load(request.id))?.step, "inspectingSource");
    await it.runner.reported(request.source.id, report);
    const after = await it.ports.migrations.load(request.id);
    assert.equal(after?.step, "inspectingDestination");
    await it.runner.reported(request.source.id, report);
    assert.deepEqual(await it.ports.migrations.load(request.id), after);
  });

  test("a second migration of the domain is refused with the first one's id and ends as refused", async () => {
    await it.runner.request(request);
    const other = { ...request, id: "m_01JD0000000000000000000009" };
    await assert.rejects(
      it.runner.request(other),
      (error) => error instanceof Fault && error.code === "domain.busy" && error.action.includes(request.id),
    );
    const refused = await it.ports.migrations.load(other.id);
    assert.equal(refused?.status, "refused");
    assert.equal(refused?.failure?.code, "domain.busy");
    assert.deepEqual(await it.ports.migrations.domainLock(request.domain.uuid), { migrationId: request.id });
  });

  test("the same request twice is one migration and one command", async () => {
    await it.runner.request(request);
    await it.runner.request(request);
    assert.equal(it.pushed.length, 1);
  });

  test("a request that died between lock and start is started by the timer", async () => {
    await it.ports.migrations.create({ ...freshMigration(), source: request.source });
    await it.ports.migrations.lockDomain({
      domainUuid: request.domain.uuid,
      migrationId: request.id,
      source: request.source.id,
      destination: request.destination.id,
    });
    assert.equal(await it.runner.tick(), 1);
    assert.deepEqual(await serve(it.pushed, it.runner).then((kinds) => kinds.length), 8);
  });

  test("a lock whose migration ended is freed by the timer", async () => {
    await it.ports.migrations.create({ ...freshMigration(), step: "ended", status: "completed" });
    await it.ports.migrations.lockDomain({
      domainUuid: request.domain.uuid,
      migrationId: request.id,
      source: "x",
      destination: "y",
    });
    await it.runner.tick();
    assert.equal(await it.ports.migrations.domainLock(request.domain.uuid), null);
  });

  test("a payload with a wrong digest, or a bundle that is not in the bucket, is not stored", async () => {
    await it.runner.request(request);
    const message = it.pushed[0]?.message;
    assert.ok(message?.type === "command");
    const body = answer(message.command);
    assert.ok(body.kind === "inspectSource");
    const altered = { ...body, facts: { ...digested, base64: "AAAA" } };
    await assert.rejects(
      it.runner.reported(request.source.id, reportOf(message.command, altered)),
      (error) => error instanceof Fault && error.code === "cookie.altered",
    );
    it.state.bucket.clear();
    await assert.rejects(
      serve(it.pushed, it.runner),
      (error) => error instanceof Fault && error.code === "bundle.unreachable",
    );
    assert.equal((await it.ports.migrations.load(request.id))?.bundle, null);
  });

  test("a host that stays away before Perform is given up, and what was staged is swept", async () => {
    await it.runner.request(request);
    it.pass(5 * 60_000);
    await it.runner.tick();
    const state = await it.ports.migrations.load(request.id);
    assert.equal(state?.status, "refused");
    assert.equal(state?.failure?.code, "host.offline");
  });

  test("only the host that a pending command was sent to may use the objects of its migration", async () => {
    await it.runner.request(request);
    const id = `${request.id}:inspectSource:1`;
    await it.runner.authorise(request.source.id, { migrationId: request.id, commandId: id, key: null });
    for (const [host, want] of [
      [request.destination.id, { migrationId: request.id, commandId: id, key: null }],
      [request.source.id, { migrationId: request.id, commandId: `${request.id}:export:1`, key: null }],
      [request.source.id, { migrationId: request.id, commandId: id, key: "bundles/another" }],
    ] as const)
      await assert.rejects(
        it.runner.authorise(host, want),
        (error) => error instanceof Fault && error.code === "request.forbidden",
      );
  });

  test("one migration that cannot be read does not keep the others of its host waiting", async () => {
    it.state.losePushes = true;
    await it.runner.request(request);
    await it.ports.migrations.point([request.source.id], "m_01JD0000000000000000000008");
    const { load } = it.ports.migrations;
    it.ports.migrations.load = async (id) => {
      if (id === "m_01JD0000000000000000000008") throw new Error("written by another version");
      return load.call(it.ports.migrations, id);
    };
    assert.deepEqual(
      (await it.runner.pendingOf(request.source.id)).map(({ kind }) => kind),
      ["inspectSource"],
    );
  });

  test("a host that still points at an ended migration is freed of it", async () => {
    await it.runner.request(request);
    await serve(it.pushed, it.runner);
    await it.ports.migrations.point([request.source.id], request.id);
    assert.deepEqual(await it.runner.pendingOf(request.source.id), []);
    assert.deepEqual(await it.ports.migrations.migrationsOf(request.source.id), []);
  });

  test("a request that died before it held the lock is started by the timer, or refused when another holds the domain", async () => {
    const other = "m_01JD0000000000000000000007";
    await it.ports.migrations.create(freshMigration());
    await it.ports.migrations.create({ ...freshMigration(), id: other });
    await it.runner.tick();
    assert.deepEqual(it.pushed, [], "too fresh: its request may be under way");
    it.pass(2 * 60_000);
    await it.runner.tick();
    assert.equal(it.pushed.length, 1);
    const states = await Promise.all([request.id, other].map((id) => it.ports.migrations.load(id)));
    assert.deepEqual(states.map((state) => state?.status).sort(), ["refused", "running"]);
    assert.equal(states.find((state) => state?.status === "refused")?.failure?.code, "domain.busy");
  });

  test("a cancel that changes nothing says so, though somebody else changes the migration at that moment", async () => {
    await it.runner.request(request);
    const { load } = it.ports.migrations;
    let first = true;
    it.ports.migrations.load = async (id) => {
      const state = await load.call(it.ports.migrations, id);
      if (first && state !== null) {
        first = false;
        await it.ports.migrations.commit({ ...state, step: "confirming", version: state.version + 1 });
      }
      return state;
    };
    await assert.rejects(
      it.runner.cancel(request.id, "ann"),
      (error) => error instanceof Fault && error.code === "request.conflict",
    );
  });

  test("an export by hand takes the domain's lock and ends with the bundle", async () => {
    const task = {
      id: "b_01JD0000000000000000000001",
      kind: "export" as const,
      host: request.source,
      domain: request.domain,
      bundle: null,
    };
    await it.runner.requestBundle(task);
    await assert.rejects(it.runner.request(request), (error) => error instanceof Fault && error.code === "domain.busy");
    assert.deepEqual(
      (await it.runner.pendingOf(request.source.id)).map(({ kind }) => kind),
      ["export"],
    );
    await serve(it.pushed, it.runner);
    const ended = await it.ports.tasks.load(task.id);
    assert.equal(ended?.status, "completed");
    assert.deepEqual(ended?.bundle, bundleRef);
    assert.equal(await it.ports.migrations.domainLock(request.domain.uuid), null);
  });
});

describe("session", () => {
  const keys = generateKeyPairSync("ed25519");
  const publicKey = keys.publicKey.export({ format: "jwk" }).x ?? "";
  const hostId = request.source.id;
  const enrol = (it: ReturnType<typeof world>) =>
    it.ports.hosts.create({
      id: hostId,
      name: "alpha",
      publicKey,
      cordoned: false,
      enrolledAt: it.ports.clock.now(),
      lastSeenAt: null,
      protocol: null,
      features: [],
      facts: null,
    });
  const hello = (session: Session, change: { nonce?: string; protocols?: { min: number; max: number } } = {}) => ({
    type: "hello" as const,
    protocols: change.protocols ?? { min: 1, max: 1 },
    features: ["bundle.1"],
    hostId,
    signature: sign(
      null,
      Buffer.from(helloSignedText({ hostId, nonce: change.nonce ?? session.nonce })),
      keys.privateKey,
    ).toString("base64url"),
    facts,
  });

  test("a key that enrolled is welcomed and gets what it owes; the same hello on a new nonce is refused", async () => {
    const it = world();
    await enrol(it);
    it.state.losePushes = true;
    await it.runner.request(request);
    const { session } = challenge(it.ports, { hostId, publicUrl: "http://x" });
    const recorded = hello(session);
    const welcomed = await receive(it.ports, it.runner, session, recorded);
    assert.deepEqual(
      welcomed.replies.map(({ type }) => type),
      ["welcome", "command"],
    );
    assert.equal(welcomed.close, null);
    const again = challenge(it.ports, { hostId, publicUrl: "http://x" });
    const replayed = await receive(it.ports, it.runner, again.session, recorded);
    assert.deepEqual(
      replayed.replies.map((reply) => reply.type === "refused" && reply.fault.code),
      ["shim.unauthorised"],
    );
    assert.equal(replayed.close?.code, 4403);
  });

  test("a protocol that has nothing in common is refused before anything else", async () => {
    const it = world();
    await enrol(it);
    const { session } = challenge(it.ports, { hostId, publicUrl: "http://x" });
    const reaction = await receive(it.ports, it.runner, session, hello(session, { protocols: { min: 2, max: 3 } }));
    assert.deepEqual(
      reaction.replies.map((reply) => reply.type === "refused" && reply.fault.code),
      ["shim.incompatible"],
    );
  });

  test("nothing is taken from a shim that has not proved itself, nor from a host that was removed", async () => {
    const it = world();
    const { session } = challenge(it.ports, { hostId, publicUrl: "http://x" });
    for (const message of [{ type: "heartbeat" as const }, hello(session)]) {
      const reaction = await receive(it.ports, it.runner, session, message);
      assert.deepEqual(
        reaction.replies.map((reply) => reply.type === "refused" && reply.fault.code),
        ["shim.unauthorised"],
      );
    }
  });

  test("a report is acknowledged only when it is stored", async () => {
    const it = world();
    await enrol(it);
    await it.runner.request(request);
    const opened: Session = { ...challenge(it.ports, { hostId, publicUrl: "http://x" }).session, session: "s" };
    const message = it.pushed[0]?.message;
    assert.ok(message?.type === "command");
    const report = { type: "report" as const, report: reportOf(message.command) };
    const { commit } = it.ports.migrations;
    it.ports.migrations.commit = async () => {
      throw new Error("the table is away");
    };
    assert.deepEqual((await receive(it.ports, it.runner, opened, report)).replies, []);
    it.ports.migrations.commit = commit.bind(it.ports.migrations);
    assert.deepEqual((await receive(it.ports, it.runner, opened, report)).replies, [
      { type: "acknowledged", commandId: message.command.id },
    ]);
  });

  test("a grant that is refused says why, and an unknown failure says nothing of the inside", async () => {
    const it = world();
    await enrol(it);
    const opened: Session = { ...challenge(it.ports, { hostId, publicUrl: "http://x" }).session, session: "s" };
    const grant = {
      type: "grant" as const,
      request: "1",
      migrationId: request.id,
      commandId: `${request.id}:export:1`,
      want: { op: "get" as const, key: "bundles/x" },
    };
    const refused = await receive(it.ports, it.runner, opened, grant);
    assert.deepEqual(
      refused.replies.map((reply) => reply.type === "grantRefused" && reply.fault.code),
      ["request.forbidden"],
    );
    it.ports.migrations.load = async () => {
      throw new Error("password=hunter2");
    };
    const failed = await receive(it.ports, it.runner, opened, grant);
    assert.doesNotMatch(JSON.stringify(failed), /hunter2/);
  });
});
