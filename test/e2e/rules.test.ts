/**
 * Rules on real hosts: one that empties a rack on the first Sunday of a month and brings its domains home when the host is back, under a driven clock,
 * and one that an Alertmanager calls, with real POSTs. The control plane is that of the Lambda bundles; its processes and the shims share the clock.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import type { SnapshotRecord } from "#lab/virsh";
import { eventually, rows, treeOf, World } from "./world.ts";

const shifted = join(import.meta.dirname, "../lab/shifted-clock.ts");
const program = join(import.meta.dirname, "lambda-cloud.ts");
const tickMs = 120_000;
/** A window that opens, an evacuation of one guest, some minutes of timers on a busy machine. */
const ruleMsMax = 300_000;

const firstSunday = `name: rack-b-first-sunday
when:
  kind: schedule
  cron: 0 2 * * SUN#1
  timeZone: Europe/Berlin
  until: "05:00"
which: { labels: { rack: b } }
how: { to: { labels: { rack: a } } }
after: { restore: whenBack }
`;
const failingDisk = `name: failing-disk
when:
  kind: alertmanager
  matchers: { alertname: HostDiskFailing }
which: { fromTrigger: { label: instance } }
`;

describe("rules on real hosts", { timeout: 1_800_000 }, () => {
  let folder: string;
  let world: World;
  let h1: Host;
  let h2: Host;
  let guest: Guest;
  let tree: SnapshotRecord[];

  /** The calendar of control plane and shims from now on. */
  const drive = (to: string) => writeFile(join(folder, "clock"), String(Date.parse(to) - Date.now()));

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "vmferry-clock-"));
    await drive("2027-02-07T00:50:00Z");
    process.env.VMFERRY_LAB_CLOCK = join(folder, "clock");
    world = await World.start(
      { hosts: 2 },
      {
        controlPlane: ({ port, data }) => [
          `--import=${shifted}`,
          program,
          ...["--listen", String(port), "--data", data, "--heartbeat", "3000", "--timer", "3000"],
        ],
        shim: async (host) => ({
          words: ["--label", `rack=${host.name === "h1" ? "b" : "a"}`],
          env: { NODE_OPTIONS: `--import=${shifted}` },
        }),
      },
    );
    [h1, h2] = [world.lab.host(0), world.lab.host(1)];
    guest = await bootGuest(h1);
    for (const name of ["base", "leaf"]) await h1.virsh.snapshotCreate(guest.name, name);
    await world.heardOf(guest.name, [h1]);
    tree = await treeOf(h1, guest.name);
  });
  after(async () => {
    if (guest !== undefined) await destroyGuest(guest, world.lab.hosts);
    await world?.stop();
    delete process.env.VMFERRY_LAB_CLOCK;
    await rm(folder, { recursive: true, force: true });
  });

  async function apply(text: string): Promise<string> {
    const path = join(folder, "rule.yaml");
    await writeFile(path, text);
    return (await world.fleet.mustRun(["rule", "apply", "-f", path])).stdout;
  }

  const evacuations = async () => rows(await world.get("/v1/evacuations"));

  async function arrivesOn(host: Host): Promise<void> {
    await eventually(
      () => `the guest is on ${host.name}\n${world.fleet.controlPlane?.output.slice(-6_000)}`,
      async () => (await host.virsh.domstate(guest.name)) === "running" && (await host.qemus(guest.name)).length === 1,
      ruleMsMax,
    );
    const other = host.name === h1.name ? h2 : h1;
    await eventually(
      "the other has given it up",
      async () => (await other.virsh.domstate(guest.name)) === undefined,
      ruleMsMax,
    );
    await eventually("what was begun has ended", async () =>
      (await evacuations()).every(({ endedAt }) => endedAt !== null),
    );
    assert.deepEqual(await treeOf(host, guest.name), tree);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
    assert.equal(guest.witness.boots, 1);
  }

  test("every first Sunday 02:00 to 05:00 in Berlin the hosts of rack b are emptied, and not before", async () => {
    assert.match(await apply(firstSunday), /written, version 1/);
    await drive("2027-02-07T00:59:20Z");
    // A few looks of the timer: the window is not open yet.
    await guest.witness.waitForTicks(300, tickMs);
    assert.deepEqual(await evacuations(), []);
    await drive("2027-02-07T01:00:01Z");
    await arrivesOn(h2);
    const [only, ...more] = await evacuations();
    assert.deepEqual(more, []);
    assert.equal(only?.status, "completed");
    assert.equal(only?.host, h1.name);
  });

  test("and when the host is back, its domains come home", async () => {
    const shim = world.fleet.shim(h1);
    await shim.stop();
    await eventually("h1 counts as offline", async () =>
      rows(await world.get("/v1/hosts")).some(({ name, connected }) => name === h1.name && connected === false),
    );
    // The timer has to have seen it silent.
    await guest.witness.waitForTicks(800, tickMs);
    await world.fleet.startShim(h1);
    await arrivesOn(h1);
    const kinds = (await evacuations()).map(({ kind, status }) => `${kind} ${status}`).sort();
    assert.deepEqual(kinds, ["evacuate completed", "restore completed"]);
  });

  test("an alert empties the host that it names, once, however often it is sent; a stranger changes nothing", async () => {
    await apply(failingDisk);
    const made = await world.fleet.mustRun(["rule", "credential", "add", "failing-disk"]);
    const [token = ""] = /vmt_\S+/.exec(made.stdout) ?? [];
    assert.notEqual(token, "", made.stdout);
    const alert = (status: "firing" | "resolved") => ({
      version: "4",
      groupKey: '{}:{alertname="HostDiskFailing"}',
      truncatedAlerts: 0,
      status,
      receiver: "vmferry",
      groupLabels: { alertname: "HostDiskFailing" },
      commonLabels: {},
      commonAnnotations: {},
      externalURL: "http://alertmanager.example",
      alerts: [
        {
          status,
          labels: { alertname: "HostDiskFailing", instance: h1.name },
          annotations: {},
          startsAt: "2027-02-07T01:30:00.000Z",
          endsAt: "0001-01-01T00:00:00Z",
          generatorURL: "http://prometheus.example",
          fingerprint: "c0ffee0123456789",
        },
      ],
    });
    const post = async (bearer: string, body: unknown) =>
      (
        await world.ask("/v1/triggers/failing-disk/alertmanager", {
          method: "POST",
          token: bearer,
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
        })
      ).status;
    const before = (await evacuations()).length;
    assert.equal(await post("vmt_nobody", alert("firing")), 401);
    assert.equal((await evacuations()).length, before);
    for (let time = 0; time < 20; time += 1) assert.equal(await post(token, alert("firing")), 202);
    await arrivesOn(h2);
    assert.equal(await post(token, alert("resolved")), 202);
    assert.equal((await evacuations()).length, before + 1, "one evacuation for the same alert");
    const shown = await world.fleet.mustRun(["rule", "show", "failing-disk"]);
    assert.match(shown.stdout, /h1/);
  });
});
