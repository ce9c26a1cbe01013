/** `vmferry check`, `migrate` and `migration ...` against the real app: each end, its exit code, what is said where. */
import assert from "node:assert/strict";
import { after, afterEach, beforeEach, describe, test } from "node:test";
import type { Command } from "#protocol/command";
import type { FaultBody, FaultCode, Finding } from "#protocol/fault";
import { adminToken, domainNamed, type MemoryFleet, memoryFleet, reportBody } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { type RunOptions, run, says } from "#test/fake/memory-terminal";

let fleet: MemoryFleet;
let server: MemoryServer;
beforeEach(async () => {
  fleet = await memoryFleet({ eventsIdleMs: 5 });
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
  server = new MemoryServer(fleet.app.fetch);
  await server.start();
});
afterEach(() => server.stop());
after(() => server.stop());

const vmferry = (argv: readonly string[], options: RunOptions = {}) =>
  run(argv, { ...options, env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken, ...options.env } });

/** Does what the shims do, as soon as something is pushed, until told to stop. */
function shims(failing: Partial<Record<Command["kind"], FaultBody>> = {}, until?: Command["kind"]) {
  // Of this test's fleet only: what is still queued when a test ends must not serve the next one's.
  const own = fleet;
  const { push } = own.ports.sockets;
  let working = Promise.resolve();
  own.ports.sockets.push = async (hostId, message) => {
    const taken = await push(hostId, message);
    working = working.then(
      () => new Promise<void>((resolve) => setImmediate(() => void own.serve(failing, until).then(resolve))),
    );
    return taken;
  };
}

const fault = (code: FaultCode, retry: FaultBody["retry"] = "safe"): FaultBody => ({
  code,
  cause: `${code} happened`,
  action: `mend ${code}`,
  retry,
});
const finding = (severity: Finding["severity"], code: Finding["code"]): Finding => ({
  severity,
  code,
  cause: `${code} it is`,
  action: "mend it",
});

describe("migrate", () => {
  test("completed: exit 0, the steps on stderr, the outcome on stdout", async () => {
    fleet.script.relayed = true;
    shims();
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    says(ran, 0, /^completed: web is on host2 with 5 of 5 snapshots verified, blackout 20 ms/m);
    for (const step of ["export", "stage", "begin", "prepare", "perform", "finish", "confirm", "settle"])
      assert.match(ran.err, new RegExp(`^${step}`, "m"));
    assert.equal(ran.out.trim().split("\n").length, 1);
  });

  test("--json: the resource alone on stdout", async () => {
    shims();
    const ran = await vmferry(["migrate", "web", "--to", "host2", "--json"]);
    assert.equal(ran.exit, 0);
    assert.equal(JSON.parse(ran.out).status, "completed");
  });

  test("rolled back: exit 1, code, place, cause and action on stderr", async () => {
    shims({ prepare: fault("prepare.failed") });
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    says(ran, 1, /^rolledBack: web stays on host1/m);
    assert.match(ran.err, /^vmferry: prepare\.failed: prepare\.failed happened$/m);
    assert.match(ran.err, /^ {2}where: prepare \(5\/9\) on the destination$/m);
    assert.match(ran.err, /^ {2}next: mend prepare\.failed$/m);
  });

  test("risks that were not accepted: exit 2 and the codes to accept", async () => {
    const body = reportBody("inspectSource");
    assert.ok(body.kind === "inspectSource");
    const serve = fleet.serve;
    fleet.serve = async () => {
      const next = fleet.script.pushed.shift();
      if (next?.message.type !== "command") return;
      const { command } = next.message;
      const answer =
        command.kind === "inspectSource"
          ? { ...body, findings: [finding("risk", "lock.none")] }
          : reportBody(command.kind);
      await fleet.runner.reported(next.hostId, {
        commandId: command.id,
        migrationId: command.migrationId,
        epoch: command.epoch,
        ms: 1,
        result: { ok: true, body: answer },
      });
    };
    shims();
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    says(ran, 2, /risk\.notAccepted/, /--accept lock\.none/);
    const accepted = await vmferry(["migrate", "web", "--to", "host2", "--accept", "lock.none,storage.notShared"]);
    fleet.serve = serve;
    assert.equal(accepted.exit, 0, accepted.err);
  });

  test("blocked by an inspection: exit 3", async () => {
    shims({ inspectDestination: fault("destination.cpu", "never") });
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    says(ran, 3, /^refused: web stays on host1/m, /^vmferry: destination\.cpu/m);
  });

  for (const [what, argv, exit, code] of [
    ["an unknown domain", ["migrate", "nope", "--to", "host2"], 3, "domain.absent"],
    ["an unknown host", ["migrate", "web", "--to", "nope"], 3, "host.absent"],
    ["the same host", ["migrate", "web", "--to", "host1"], 3, "destination.sameHost"],
    ["an unknown risk", ["migrate", "web", "--to", "host2", "--accept", "everything"], 64, "request.malformed"],
    ["an unknown migration", ["migration", "show", "m_01JD0000000000000000000077"], 66, "request.notFound"],
    ["an unknown migration to watch", ["migration", "watch", "x"], 66, "request.notFound"],
  ] as const)
    test(`refused for ${what}: exit ${exit}, ${code}`, async () => {
      const ran = await vmferry(argv);
      assert.deepEqual([ran.exit, ran.out], [exit, ""], ran.err);
      assert.ok(ran.err.startsWith(`vmferry: ${code}: `), ran.err);
      assert.match(ran.err, /^ {2}next: \S/m);
    });

  test("stranded: exit 4 at once, though its step stays open, and the words of the person's next step", async () => {
    fleet.script.relayed = true;
    shims({ confirm: fault("confirm.failed", "person") });
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    says(ran, 4, /^stranded: web needs a person/m, /^vmferry: confirm\.failed/m, /^ {2}next: mend/m);
  });

  test("--detach prints the id alone and does not wait", async () => {
    const ran = await vmferry(["migrate", "web", "--to", "host2", "--detach"]);
    assert.equal(ran.exit, 0);
    assert.match(ran.out, /^m_[0-9A-Z]{26}\n$/);
    assert.match(ran.err, /vmferry migration watch m_/);
  });

  test("Ctrl-C leaves it running and says how to watch and cancel", async () => {
    const stop = new AbortController();
    const ran = await vmferry(["migrate", "web", "--to", "host2"], {
      signal: stop.signal,
      onErr: (err) => {
        if (err.includes("requested")) stop.abort();
      },
    });
    says(ran, 130, /vmferry migration watch m_/, /vmferry migration cancel m_/);
    const [migration] = (await fleet.ports.migrations.list({ limit: 9, cursor: null, active: true })).items;
    assert.equal(migration?.status, "running");
  });
});

describe("a control plane that goes away", () => {
  test("while watching: is found again, said on stderr, and the end is the true one", async () => {
    fleet.script.relayed = true;
    shims({}, "perform");
    let cut = false;
    const ran = await vmferry(["migrate", "web", "--to", "host2"], {
      onErr: (err) => {
        if (!cut && /^prepare/m.test(err)) {
          cut = true;
          void server.stop().then(async () => {
            await fleet.serve();
            await server.start();
          });
        }
      },
    });
    says(ran, 0, /^Lost the control plane at/m, /^The control plane answers again\./m, /^completed/m);
    // What happened meanwhile is told as well, each step once.
    for (const step of ["perform", "finish", "settle"])
      assert.equal([...ran.err.matchAll(new RegExp(`^${step} .*`, "gm"))].length >= 1, true, step);
  });

  test("for longer than the bound: exit 5, not 1, and how to look again", async () => {
    shims({}, "perform");
    const ran = await vmferry(["migrate", "web", "--to", "host2"], {
      pace: { lostSightMs: 30 },
      onErr: (err) => {
        if (/^prepare/m.test(err)) void server.stop();
      },
    });
    says(ran, 5, /^vmferry: watch\.lostSight: /m, /is not known here/, /next: .*vmferry migration watch m_/);
  });

  test("a stream that falls silent is opened again", async () => {
    shims({}, "perform");
    const real = server.fetch;
    let streams = 0;
    server.fetch = (request) => {
      if (!request.url.endsWith("/events")) return real(request);
      streams += 1;
      if (streams === 2) void fleet.serve();
      if (streams > 1) return real(request);
      return new Response(new ReadableStream({ start: () => {} }), {
        headers: { "content-type": "text/event-stream" },
      });
    };
    const ran = await vmferry(["migrate", "web", "--to", "host2"], { pace: { silenceMsMax: 20 } });
    says(ran, 0, /^Lost the control plane/m, /^completed/m);
  });

  test("between the request and its answer: asked again with the same key, one migration", async () => {
    shims();
    const real = server.fetch;
    const keys: (string | null)[] = [];
    server.fetch = async (request) => {
      if (request.method !== "POST") return real(request);
      keys.push(request.headers.get("idempotency-key"));
      const response = await real(request);
      if (keys.length === 1) throw new Error("the answer is lost");
      return response;
    };
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    assert.equal(ran.exit, 0, ran.err);
    assert.equal(keys.length, 2);
    assert.ok(keys[0] !== null && keys[0] === keys[1]);
    assert.equal((await fleet.ports.migrations.list({ limit: 9, cursor: null, active: false })).items.length, 1);
  });

  test("for good: exit 69, nothing on stdout", async () => {
    await server.stop();
    const ran = await vmferry(["migrate", "web", "--to", "host2"]);
    assert.deepEqual([ran.exit, ran.out], [69, ""]);
    assert.match(ran.err, /^vmferry: api\.unreachable: /m);
  });
});

describe("check", () => {
  const check = (...more: string[]) => vmferry(["check", "web", "--to", "host2", ...more]);

  test("allowed 0, only risks 2, accepted risks 0, blocked 3", async () => {
    fleet.scriptInspections(1, 2, {});
    says(await check(), 0, /carries 5 snapshots/, /^allowed {2}web may move to host2/m);
    fleet.scriptInspections(1, 2, { destination: [finding("risk", "storage.notShared")] });
    says(await check(), 2, /risk {5}storage\.notShared \(destination\)/, /--accept storage\.notShared/);
    says(await check("--accept", "storage.notShared"), 0);
    fleet.scriptInspections(1, 2, { source: [finding("blocker", "domain.hostdev"), finding("risk", "lock.none")] });
    says(await check(), 3, /blocker {2}domain\.hostdev \(source\)/, /risk {5}lock\.none/, /^blocked: /m);
  });

  test("without --to lists every host with its causes", async () => {
    await fleet.addHost(3, { lastSeenAt: null });
    fleet.scriptInspections(1, 2, {});
    says(await vmferry(["check", "web"]), 0, /^host2 +yes/m, /^host3 +no +host\.offline/m);
  });

  test("--json prints the result and keeps the exit code", async () => {
    fleet.scriptInspections(1, 2, { source: [finding("blocker", "domain.hostdev")] });
    const ran = await check("--json");
    assert.equal(ran.exit, 3);
    assert.equal(JSON.parse(ran.out).blockers[0].code, "domain.hostdev");
  });

  test("of what does not exist is blocked as well", async () => {
    says(await vmferry(["check", "nope", "--to", "host2"]), 3, /domain\.absent/);
  });
});

describe("a finished migration", () => {
  async function moved(): Promise<string> {
    fleet.script.relayed = true;
    shims();
    await vmferry(["migrate", "web", "--to", "host2"]);
    const [migration] = (await fleet.ports.migrations.list({ limit: 1, cursor: null, active: false })).items;
    assert.ok(migration);
    return migration.id;
  }

  test("is told whole by show: who, timeline, cookies, bundle, receipt, blackout", async () => {
    const ran = await vmferry(["migration", "show", await moved()]);
    says(
      ran,
      0,
      /^domain +web \(11111111-2222-4333-8444-555555555555\)$/m,
      /^way +host1 -> host2$/m,
      /^status +completed/m,
      /^receipt +started at /m,
      /^blackout +20 ms/m,
      /^cookie A +from begin +6 B +in its own item in DynamoDB/m,
      /^cookie D +from finish/m,
      /^bundle +5 snapshots, 0 checkpoints +2\.0 KiB \(2000 B\) +in the bucket as bundles\//m,
      /^TIME +STEP +SIDE +TOOK +NOTE$/m,
      /^\S+Z +perform +source/m,
    );
  });

  test("is listed, and watched to the same end", async () => {
    const id = await moved();
    says(await vmferry(["migrations"]), 0, new RegExp(`^${id} +web +host1 +host2 +completed`, "m"));
    const active = await vmferry(["migrations", "--active"]);
    assert.deepEqual([active.exit, active.out], [0, ""]);
    says(await vmferry(["migration", "watch", id]), 0, /^completed/m);
  });

  test("with --active and many pages is followed through its cursors", async () => {
    await moved();
    const ran = await vmferry(["migrations", "--json"]);
    assert.equal(JSON.parse(ran.out).length, 1);
  });
});

test("on a terminal there is one line that moves, and nothing of it stays", async () => {
  shims({}, "perform");
  const ran = await vmferry(["migrate", "web", "--to", "host2"], {
    isTty: true,
    onErr: (err) => {
      if (err.endsWith("perform (6/9)")) void fleet.serve();
    },
  });
  assert.equal(ran.exit, 0);
  assert.ok(ran.err.includes("\r\u001b[2K"));
  assert.match(ran.err, /web {2}perform \(6\/9\)/);
  assert.ok(ran.err.endsWith("\u001b[2K") || ran.err.endsWith("\n"), JSON.stringify(ran.err.slice(-80)));
});
