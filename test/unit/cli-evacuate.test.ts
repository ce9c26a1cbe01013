/** `vmferry evacuate`, `evacuations`, `evacuation ...` and `restore` against the real app: what is said where, and each exit code. */
import assert from "node:assert/strict";
import { afterEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { evacuationPlanSchema, evacuationRowSchema, evacuationSchema } from "#functions/http/evacuation-resource";
import type { Command } from "#protocol/command";
import type { FaultBody, Finding } from "#protocol/fault";
import { type EvacuationFleet, evacuationFleet, numbered } from "#test/fake/evacuation-fleet";
import { adminToken, hostId } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { type RunOptions, run, says } from "#test/fake/memory-terminal";

let fleet: EvacuationFleet;
let server: MemoryServer;
afterEach(() => server.stop());

async function open(...given: Parameters<typeof evacuationFleet>) {
  fleet = await evacuationFleet(given[0], { eventsIdleMs: 5, ...given[1] });
  server = new MemoryServer(fleet.app.fetch);
  await server.start();
}

const vmferry = (argv: readonly string[], options: RunOptions = {}) =>
  run(argv, { ...options, env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken, ...options.env } });

/** Does what the shims do as soon as something is pushed, and lets the inventories follow. */
function shims(failing: Partial<Record<Command["kind"], FaultBody>> = {}) {
  const own = fleet;
  const { push } = own.ports.sockets;
  let working = Promise.resolve();
  own.ports.sockets.push = async (id, message) => {
    const taken = await push(id, message);
    working = working.then(() => new Promise<void>((done) => setImmediate(() => void own.work(failing).then(done))));
    return taken;
  };
}

const finding = (severity: Finding["severity"], code: Finding["code"]): Finding => ({
  severity,
  code,
  cause: `${code} it is.`,
  action: "Mend it.",
});

describe("evacuate --dry-run", () => {
  test("every domain, where to, why, how long, the room, the way home; exit 0", async () => {
    await open([numbered(1), numbered(2)]);
    const ran = await vmferry(["evacuate", "host1", "--dry-run"]);
    says(
      ran,
      0,
      /^plan {5}evacuate host1: 2 domains would move, 0 would stay$/m,
      /^time {5}about \d+\.\d s, to 2026-/m,
      /^1 +web1 +host1 +host[23] +1\.0 GiB +2 +5 +\+0\.0 ms +15\.2 s +yes$/m,
      /^ {2}web1 -> host[23]: .+/m,
      /^ {4}else host[23]: .+/m,
      /^room, before -> after$/m,
      /^the way home$/m,
      /^ {2}1 +web1 +host[23] +host1 /m,
      /^Nothing was changed\./m,
    );
    assert.doesNotMatch(ran.out, /h_[0-9A-Z]{26}/);
    assert.deepEqual(await fleet.ports.evacuations.claims(), []);
  });

  test("what is in the way and what to do about it; exit 1 some stay, 3 none can go", async () => {
    await open([numbered(1, { labels: { pinned: "license" } }), numbered(2)]);
    says(
      await vmferry(["evacuate", "host1", "--dry-run"]),
      1,
      /^stays, because$/m,
      /^ {2}web1 on host1: placement\.pinned: .+/m,
      /^ {4}next: .+/m,
    );
    fleet.scriptInspections(1, 1, { source: [finding("risk", "lock.none")] });
    fleet.pass(1);
    says(await vmferry(["evacuate", "host1", "--dry-run"]), 3, /lock\.none it is\./, /--accept lock\.none/);
    says(await vmferry(["evacuate", "host1", "--dry-run", "--accept", "lock.none"]), 1, /1 domain would move/);
  });

  test("the limits that the times were reckoned with are said", async () => {
    await open([numbered(1)]);
    says(
      await vmferry(["evacuate", "host1", "--dry-run"]),
      0,
      /^at once {2}2 out of a host, 2 into one, 5 of the fleet$/m,
    );
    const argv = ["evacuate", "host1", "--dry-run", "--network-parallel", "3"];
    says(await vmferry(argv), 0, /^at once {2}2 out of a host, 2 into one, 3 of a network, 5 of the fleet$/m);
  });

  test("--json is the plan alone; --to and --deadline are heard", async () => {
    await open([numbered(1)]);
    const argv = ["evacuate", "host1", "--dry-run", "--json", "--to", "host3", "--deadline", "2h"];
    const ran = await vmferry(argv);
    const plan = evacuationPlanSchema.parse(JSON.parse(ran.out));
    assert.equal(plan.moves[0]?.to, "host3");
    assert.equal(Date.parse(plan.deadlineAt ?? "") - Date.parse(plan.at), 7_200_000);
  });

  test("an empty host has nothing to move", async () => {
    await open([]);
    says(await vmferry(["evacuate", "host1", "--dry-run"]), 0, /^There is nothing to move\.$/m);
  });
});

describe("evacuate", () => {
  test("completed: exit 0, each thing that happened on stderr, the result on stdout, and how to go back", async () => {
    await open([1, 2, 3].map((index) => numbered(index)));
    shims();
    const ran = await vmferry(["evacuate", "host1"]);
    says(ran, 0, /^completed: evacuate host1: 3 moved, 0 stay, 0 failed \(e_/m, /vmferry evacuation undo e_/);
    for (const name of ["web1", "web2", "web3"]) {
      assert.match(ran.err, new RegExp(`${name} {2}goes to host[23]: `));
      assert.match(ran.err, new RegExp(`${name} {2}has arrived`));
    }
    assert.equal(ran.out.trim().split("\n").length, 1);
    assert.deepEqual(new Set(Object.values(await fleet.places())).has("host1"), false);
  });

  test("on a terminal there is a bar", async () => {
    await open([numbered(1)]);
    let bar = "";
    let isServed = false;
    const ran = await vmferry(["evacuate", "host1"], {
      isTty: true,
      onErr: (err) => {
        bar = err;
        if (!isServed && err.includes("moving web1")) {
          isServed = true;
          void fleet.work();
        }
      },
    });
    assert.equal(ran.exit, 0);
    assert.match(bar, /evacuate host1 {2}\[\.+\] 0\/1 {2}0 moved {2}moving web1/);
  });

  test("--json is the resource alone on stdout; --parallel, --network-parallel and --bandwidth are its policy", async () => {
    await open([1, 2, 3].map((index) => numbered(index)));
    shims();
    const limits = ["--parallel", "7", "--network-parallel", "2", "--bandwidth", "50"];
    const ran = await vmferry(["evacuate", "host1", "--json", ...limits]);
    const { policy, status } = evacuationSchema.parse(JSON.parse(ran.out));
    assert.equal(status, "completed");
    const { outMax, inMax, fleetMax, networkMax, bandwidthMiBps } = policy;
    assert.deepEqual([outMax, inMax, fleetMax, networkMax, bandwidthMiBps], [7, 7, 7, 2, 50]);
  });

  test("partly: exit 1, and each that stays with cause and next step", async () => {
    await open([numbered(1, { labels: { pinned: "license" } }), numbered(2)]);
    shims();
    const ran = await vmferry(["evacuate", "host1"]);
    says(ran, 1, /^partial: evacuate host1: 1 moved, 1 stay, 0 failed/m);
    assert.match(ran.err, /^vmferry: placement\.pinned: web1 on host1: .+\n {2}next: .+/m);
  });

  test("nothing can move: exit 3", async () => {
    await open([numbered(1)], { found: { 1: { source: [finding("blocker", "domain.hostdev")] } } });
    says(await vmferry(["evacuate", "host1"]), 3, /^vmferry: domain\.hostdev: web1 on host1: /m);
  });

  test("failures in a row: exit 1, and why it stopped", async () => {
    await open([numbered(1), numbered(2), numbered(3)]);
    const body = { code: "begin.failed", cause: "Begin failed.", action: "Look.", retry: "never" } as const;
    shims({ begin: body });
    const minutes = setInterval(() => void fleet.minute(), 20);
    try {
      says(await vmferry(["evacuate", "host1"]), 1, /^failed: /m, /^stopped early: begin\.failed: .*in a row/m);
    } finally {
      clearInterval(minutes);
    }
  });

  test("something stranded: exit 4, and which migration needs a person", async () => {
    await open([numbered(1)]);
    const { id } = evacuationSchema.parse(
      await (await fleet.ask("/v1/evacuations", { body: { host: "host1" } })).json(),
    );
    const state = await fleet.ports.evacuations.load(id);
    const migration = await fleet.ports.migrations.load(state?.domains[0]?.migrationId ?? "");
    assert.ok(migration !== null);
    const stranded = { ...migration, status: "stranded" as const, version: migration.version + 1 };
    assert.equal(await fleet.ports.migrations.commit(stranded), "committed");
    await fleet.evacuations.tick();
    says(await vmferry(["evacuation", "watch", id]), 4, new RegExp(`vmferry migration show ${migration.id}`));
  });

  test("--detach prints the id and does not wait", async () => {
    await open([numbered(1)]);
    const ran = await vmferry(["evacuate", "host1", "--detach"]);
    assert.equal(ran.exit, 0);
    assert.match(ran.out, /^e_[0-9A-Z]{26}\n$/);
  });

  test("Ctrl-C leaves it running and says how to watch and cancel", async () => {
    await open([numbered(1)]);
    const leave = new AbortController();
    const ran = await vmferry(["evacuate", "host1"], {
      signal: leave.signal,
      onErr: (err) => {
        if (err.includes("goes to")) leave.abort();
      },
    });
    says(ran, 130, /^Left e_\w+ alone/m, /evacuation cancel e_/);
  });

  for (const [what, argv, exit, code] of [
    ["an unknown host", ["evacuate", "nope"], 3, "host.absent"],
    ["an unknown destination", ["evacuate", "host1", "--to", "nope"], 3, "host.absent"],
    ["the host itself", ["evacuate", "host1", "--to", "host1"], 3, "destination.sameHost"],
    ["a deadline that is none", ["evacuate", "host1", "--deadline", "soon"], 64, "usage"],
    ["no number", ["evacuate", "host1", "--parallel", "many"], 64, "usage"],
    ["no number of a network's", ["evacuate", "host1", "--network-parallel", "0"], 64, "usage"],
    ["an unknown evacuation", ["evacuation", "show", "e_01JD0000000000000000000077"], 66, "request.notFound"],
    ["no host", ["evacuate"], 64, "usage"],
  ] as const)
    test(`${what}: exit ${exit}`, async () => {
      await open([numbered(1)]);
      const ran = await vmferry(argv);
      says(ran, exit, new RegExp(`^vmferry: ${code.replace(".", "\\.")}: .+`, "m"), /^ {2}next: .+/m);
      assert.equal(ran.out, "");
    });
});

describe("evacuations", () => {
  test("are listed; none is said on stderr", async () => {
    await open([numbered(1)]);
    says(await vmferry(["evacuations"]), 0, /There was no evacuation yet/);
    shims();
    await vmferry(["evacuate", "host1"]);
    says(
      await vmferry(["evacuations"]),
      0,
      /^EVACUATION +KIND +HOST +STATUS/m,
      /^e_\w+ +evacuate +host1 +completed +1 /m,
    );
    says(await vmferry(["evacuations", "--active"]), 0, /No evacuation is active/);
    const rows = z.array(evacuationRowSchema).parse(JSON.parse((await vmferry(["evacuations", "--json"])).out));
    assert.equal(rows[0]?.counts.moved, 1);
  });

  test("show tells all of one", async () => {
    await open([numbered(1), numbered(2, { labels: { pinned: "x" } })]);
    shims();
    const id = /\((e_\w+)\)/.exec((await vmferry(["evacuate", "host1", "--to", "host3"])).out)?.[1] ?? "";
    const shown = await vmferry(["evacuation", "show", id]);
    says(
      shown,
      0,
      /^what {9}evacuate host1$/m,
      /^only to {6}host3$/m,
      /^web1 +moved +host1 +host3 +1 +m_/m,
      /^web2 +stays +host1 +- +0 +- +placement\.pinned: .+ Next: /m,
      /^2026-\S+ {2}web1 {2}has arrived$/m,
    );
    assert.equal(evacuationSchema.parse(JSON.parse((await vmferry(["evacuation", "show", id, "--json"])).out)).id, id);
  });

  test("cancel: exit 0 with what had moved; of one that has ended exit 1", async () => {
    await open([1, 2, 3, 4].map((index) => numbered(index)));
    const id = (await vmferry(["evacuate", "host1", "--detach"])).out.trim();
    says(await vmferry(["evacuation", "cancel", id, "--no-wait"]), 0, /cancelling, 0 moved/);
    await fleet.live();
    says(await vmferry(["evacuation", "cancel", id]), 0, /cancelled, 2 moved/);
    shims();
    const other = /\((e_\w+)\)/.exec((await vmferry(["evacuate", "host1"])).out)?.[1] ?? "";
    says(await vmferry(["evacuation", "cancel", other]), 1, /too late: it had ended/);
  });

  test("cancel waits for what is moving", async () => {
    await open([1, 2, 3].map((index) => numbered(index)));
    const id = (await vmferry(["evacuate", "host1", "--detach"])).out.trim();
    const waiting = vmferry(["evacuation", "cancel", id], {
      onErr: (err) => {
        if (err.includes("are let end")) void fleet.work();
      },
    });
    says(await waiting, 0, /^cancelled: evacuate host1: 2 moved/m);
  });

  test("undo and restore bring home; --dry-run first, --skip leaves out", async () => {
    await open([1, 2, 3].map((index) => numbered(index)));
    shims();
    const id = /\((e_\w+)\)/.exec((await vmferry(["evacuate", "host1", "--to", "host2"])).out)?.[1] ?? "";
    says(
      await vmferry(["restore", "host1", "--dry-run", "--skip", "web1,web2"]),
      0,
      /restore host1: 1 domain would move/,
    );
    says(
      await vmferry(["restore", "host1", "--skip", "web1", "--skip", "web2"]),
      0,
      /^completed: restore host1: 1 moved/m,
    );
    says(await vmferry(["evacuation", "undo", id, "--dry-run"]), 0, /undo of the evacuation of host1: 2 domains/);
    says(await vmferry(["evacuation", "undo", id]), 0, /^completed: undo host1: 2 moved/m);
    assert.deepEqual(new Set(Object.values(await fleet.places())), new Set(["host1"]));
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, false);
  });

  test("a watcher survives a control plane that restarts", async () => {
    await open([numbered(1)]);
    const id = (await vmferry(["evacuate", "host1", "--detach"])).out.trim();
    let cut = false;
    const watching = vmferry(["evacuation", "watch", id], {
      onErr: (err) => {
        if (!cut && err.includes("goes to")) {
          cut = true;
          void server.stop().then(async () => {
            await fleet.live();
            await server.start();
          });
        }
      },
    });
    says(await watching, 0, /^completed: /m, /Lost the control plane at .*; the evacuation goes on/);
  });
});
