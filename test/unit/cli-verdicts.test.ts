/** `vmferry migration cancel` and `resolve` against the real app: what is promised before, and what is said of the end. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import type { Command } from "#protocol/command";
import { adminToken, domainNamed, hostId, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";
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

const vmferry = (argv: readonly string[], options: RunOptions = {}) =>
  run(argv, { ...options, env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken } });

/** A migration whose shims have answered everything before `until`. */
async function standing(until: Command["kind"]): Promise<string> {
  const { out } = await vmferry(["migrate", "web", "--to", "host2", "--detach"]);
  fleet.script.relayed = true;
  await fleet.serve({}, until);
  return out.trim();
}

describe("migration cancel", () => {
  const cancel = (id: string, options: RunOptions = {}, ...more: string[]) =>
    vmferry(["migration", "cancel", id, ...more], options);

  test("before anything was touched: cancelled at once, exit 0", async () => {
    says(await cancel(await standing("inspectDestination")), 0, /^cancelled: web stays on host1/m);
  });

  test("in Perform it waits for what the shims say, and says that it was too late: exit 1", async () => {
    const id = await standing("perform");
    const ran = await cancel(id, {
      onErr: (err) => {
        if (/Cancelled by admin/.test(err)) void fleet.serve();
      },
    });
    says(ran, 1, /^too late: web is on host2/m, /^To have it back: vmferry migrate \S+ --from host2 --to host1$/m);
  });

  test("once the destination runs it there is nothing to wait for: exit 1 at once", async () => {
    says(
      await cancel(await standing("confirm")),
      1,
      /^too late: host2 has stated that it runs web/m,
      /migration watch/,
    );
  });

  test("of one that has ended says how it ended", async () => {
    const id = await standing("restoreBundle");
    says(await cancel(id), 1, /^too late: web is on host2/m);
    const { out } = await cancel(id, {}, "--json");
    assert.equal(JSON.parse(out).status, "completed");
  });

  test("twice: the second waits for the same end", async () => {
    const id = await standing("perform");
    says(await cancel(id, {}, "--no-wait"), 0, /^m_\S+: cancelling in perform; .*not known yet/m);
    const fault = { code: "perform.failed", cause: "aborted", action: "none", retry: "safe" } as const;
    let served = false;
    const second = await cancel(id, {
      onErr: (err) => {
        if (served || !/Cancelled by admin/.test(err)) return;
        served = true;
        void fleet.serve({ perform: fault });
      },
    });
    says(second, 0, /^cancelled: web stays on host1/m);
  });

  test("never decided: after the bound it says so, exit 5", async () => {
    const id = await standing("perform");
    const ran = await cancel(id, { pace: { verdictMsMax: 40 } });
    says(ran, 5, /^vmferry: cancel\.undecided: /m, /next: .*migration watch m_/);
    assert.equal((await fleet.ports.migrations.load(id))?.cancel?.outcome, "pending");
  });

  test("of an unknown one: exit 66", async () => {
    says(await cancel("m_01JD0000000000000000000077"), 66, /request\.notFound/);
  });
});

describe("migration resolve", () => {
  const resolve = (id: string, options: RunOptions = {}, ...more: string[]) =>
    vmferry(["migration", "resolve", id, "--fenced", "host2", "--reason", "pulled its plug", ...more], options);
  async function stranded(): Promise<string> {
    const id = await standing("finish");
    fleet.script.pushed.length = 0;
    fleet.pass(16 * 60_000);
    // The source is there and answers.
    await fleet.ports.hosts.seen(hostId(1), { at: fleet.ports.clock.now() });
    await fleet.runner.tick();
    return id;
  }
  /** Does what the source's shim does, once the statement stands. */
  const source = (): RunOptions => {
    let served = false;
    return {
      onErr: (err) => {
        if (served || !/is fenced: pulled/.test(err)) return;
        served = true;
        void fleet.serve({}, "unstage");
      },
    };
  };

  test("the words of the stranded migration are the command, and it ends by it", async () => {
    const id = await stranded();
    const watched = await vmferry(["migration", "watch", id]);
    says(watched, 4, new RegExp(`vmferry migration resolve ${id} --fenced host2 --reason`));
    const ran = await resolve(id, source(), "--yes");
    says(
      ran,
      1,
      /host2 is taken to hold no running copy: web goes on on host1/,
      /If host2 still runs web.*Power it off first/,
      /recorded by admin: host2 is fenced: pulled its plug/,
      /^rolledBack: web stays on host1/m,
      /When host2 is back, its shim sweeps/,
    );
    says(
      await vmferry(["migration", "show", id]),
      0,
      /^fenced +host2 by admin at \S+: pulled its plug$/m,
      /^owed +unstage/m,
    );
  });

  test("on a terminal the host's name is typed once more; another name states nothing", async () => {
    const id = await stranded();
    says(await resolve(id, { isTty: true, typed: ["host1"] }), 64, /resolve\.notConfirmed/);
    assert.equal((await fleet.ports.migrations.load(id))?.fenced, null);
    const ran = await resolve(id, { ...source(), isTty: true, typed: ["host2"] });
    says(ran, 1, /Type the host's name to state that it is fenced \(host2\):/, /^rolledBack/m);
  });

  test("where nobody can be asked --yes is needed, and a reason always", async () => {
    const id = await stranded();
    says(await resolve(id), 64, /--yes/);
    says(await vmferry(["migration", "resolve", id, "--fenced", "host2", "--yes"]), 64, /--reason is missing/);
    says(await vmferry(["migration", "resolve", id, "--reason", "x", "--yes"]), 64, /--fenced is missing/);
    assert.equal((await fleet.ports.migrations.load(id))?.fenced, null);
  });

  test("of a host that speaks: refused with what to do, exit 3", async () => {
    const id = await stranded();
    await fleet.ports.hosts.seen(hostId(2), { at: fleet.ports.clock.now() });
    says(await resolve(id, {}, "--yes"), 3, /request\.conflict: Host host2 was heard of/, /next: .*power it off/);
  });

  test("--no-wait says how it stands", async () => {
    says(await resolve(await stranded(), {}, "--yes", "--no-wait"), 0, /^m_\S+: running, abort$/m);
  });
});
