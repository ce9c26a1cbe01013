/** `vmferry rule ...` against the real app: files in YAML and JSON, refusals, what is shown, what exits how. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { adminToken, domainNamed, factsOf, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run, says } from "#test/fake/memory-terminal";

const rack = `# Kernel night.
name: rack-b-first-sunday
description: empty rack b for kernel updates
when:
  kind: schedule
  cron: 0 2 * * SUN#1        # the first Sunday of a month
  timeZone: Europe/Berlin
  until: "05:00"
  exclude:
    dates: [2026-12-06]
    ranges:
      - { from: 2026-12-20, to: 2027-01-06 }
which:
  labels: { rack: b }
how:
  deadline: 3h
  to: { labels: { rack: a } }
  policy: { outMax: 2, fleetMax: 4, networkMax: 1 }
after:
  restore: whenBack
`;
const disk = `name: failing-disk
when:
  kind: alertmanager
  matchers:
    alertname: HostDiskFailing
    severity: [critical, page]
which:
  fromTrigger: { label: instance }
how: { approval: needed, coolDown: 6h }
`;

let fleet: MemoryFleet;
let server: MemoryServer;
let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-rules-"));
});
after(() => rm(folder, { recursive: true }));
beforeEach(async () => {
  fleet = await memoryFleet();
  for (const index of [1, 2, 3])
    await fleet.addHost(
      index,
      { facts: { ...factsOf(index), labels: { rack: index === 3 ? "b" : "a" } } },
      index === 3 ? [domainNamed("web")] : [],
    );
  server = new MemoryServer(fleet.app.fetch);
  await server.start();
});
afterEach(() => server.stop());

const vmferry = (...argv: string[]) => run(argv, { env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken } });
async function file(text: string): Promise<string> {
  const path = join(folder, "rule.yaml");
  await writeFile(path, text);
  return path;
}
const apply = async (text: string, ...more: string[]) => vmferry("rule", "apply", "-f", await file(text), ...more);

describe("rule apply", () => {
  test("YAML: a dry run shows the windows and the hosts and stores nothing; then it is written, and again unchanged", async () => {
    const tried = await apply(rack, "--dry-run");
    says(
      tried,
      0,
      /would be written, version 1/,
      /window {2}2027-02-07T01:00:00.000Z to 2027-02-07T04:00/,
      /evacuate {2}host3/,
    );
    assert.doesNotMatch(tried.out, /2026-12-06|2027-01-03/);
    says(await vmferry("rules"), 0, /There is no rule yet/);
    says(await apply(rack), 0, /: written, version 1/);
    says(await apply(rack), 0, /: unchanged, version 1/);
    says(await vmferry("rules"), 0, /rack-b-first-sunday {2}1 +active +0 2 \* \* SUN#1 Europe\/Berlin until 05:00/);
  });

  test("JSON is YAML", async () => {
    const document = {
      name: "x",
      when: { kind: "schedule", cron: "0 3 * * *", timeZone: "UTC", window: "1h" },
      which: { names: ["host3"] },
    };
    says(await apply(JSON.stringify(document)), 0, /x: written/);
  });

  test("over another version than the expected one: 3 with what to do", async () => {
    await apply(rack);
    says(await apply(`${rack}# more`, "--version", "0"), 3, /at version 1, not 0/);
  });

  const broken: [string, string, RegExp][] = [
    ["no YAML", "name: [", /rule.yaml is refused/],
    ["a key twice", `${disk}name: other\n`, /is refused: .*unique/i],
    ["an alias", "name: x\nwhen: &a { kind: webhook }\nwhich: *a\n", /aliases/],
    ["a list", "- name: x\n", /not a rule/],
    ["no name", "when: {}\n", /no `name`/],
    ["two documents", `${disk}---\n${disk}`, /is refused/],
    ["an unknown key, by its path", disk.replace("coolDown", "cooldown"), /`how` has an unknown key: `cooldown`/],
    ["too much", `${disk}# ${"x".repeat(70_000)}`, /over the limit/],
  ];
  for (const [name, text, pattern] of broken) test(`${name}: 64`, async () => says(await apply(text), 64, pattern));

  test("a file that is not there: 66", async () => {
    says(await vmferry("rule", "apply", "-f", join(folder, "none.yaml")), 66, /none.yaml/);
  });
});

describe("a rule's life", () => {
  test("show, pause, resume, versions, delete", async () => {
    await apply(rack);
    says(
      await vmferry("rule", "show", "rack-b-first-sunday"),
      0,
      /kernel updates/,
      /restore whenBack/,
      /which {4}rack=b/,
    );
    says(await vmferry("rule", "pause", "rack-b-first-sunday"), 0, /paused, version 2/);
    says(await vmferry("rule", "resume", "rack-b-first-sunday"), 0, /active, version 3/);
    says(await vmferry("rule", "delete", "rack-b-first-sunday"), 0, /deleted/);
    says(await vmferry("rule", "show", "rack-b-first-sunday"), 66, /no such rule/);
    says(await vmferry("rule", "versions", "rack-b-first-sunday"), 0, /4 .*deleted/, /2 .*paused/, /1 .*active/);
  });

  test("run: what it evacuates, and how to watch it; nothing to do is 3", async () => {
    await apply(rack);
    says(await vmferry("rule", "run", "rack-b-first-sunday", "--dry-run"), 0, /would evacuate {2}host3/);
    says(await vmferry("rule", "run", "rack-b-first-sunday"), 0, /host3: vmferry evacuation watch e_/);
    says(await vmferry("rule", "show", "rack-b-first-sunday"), 0, /host3 +started/);
    says(await vmferry("rule", "run", "rack-b-first-sunday", "--host", "host1"), 3, /no host matches/);
  });

  test("an alert's rule: its sender's token once, its approval by a person", async () => {
    says(await apply(disk), 0, /\/v1\/triggers\/failing-disk\/alertmanager/, /credential add/);
    const made = await vmferry("rule", "credential", "add", "failing-disk");
    says(made, 0, /^vmt_[A-Za-z0-9_-]{43}$/m, /not shown again/);
    const token = made.out.trim();
    says(await vmferry("rule", "approve", "failing-disk"), 3, /Nothing of failing-disk waits/);
    const alert = {
      status: "firing",
      labels: { alertname: "HostDiskFailing", severity: "page", instance: "host3:9100" },
      startsAt: "2026-11-22T10:00:00Z",
      fingerprint: "f",
    };
    const body = JSON.stringify({ version: "4", groupKey: "g", alerts: [alert] });
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    const answer = await fetch(`${server.url}/v1/triggers/failing-disk/alertmanager`, {
      method: "POST",
      headers,
      body,
    });
    assert.equal(answer.status, 202);
    says(await vmferry("rule", "show", "failing-disk"), 0, /host3 +awaitingApproval/);
    says(await vmferry("rule", "approve", "failing-disk"), 0, /host3 +started/);
    const shown = await vmferry("rule", "show", "failing-disk");
    const [, id] = /sender {3}token (\S+)/.exec(shown.out) ?? [];
    assert.ok(id);
    assert.ok(!shown.out.includes(token));
    says(await vmferry("rule", "credential", "remove", "failing-disk", id), 0, /removed/);
    const after = await fetch(`${server.url}/v1/triggers/failing-disk/alertmanager`, { method: "POST", headers, body });
    assert.equal(after.status, 401);
  });

  test("a refused run starts nothing; a webhook's own secret comes from a file", async () => {
    await apply("name: hook\nwhen: { kind: webhook }\nwhich: { fromTrigger: { label: host } }\n");
    const secret = await file(`whsec_${Buffer.alloc(32, 7).toString("base64")}\n`);
    const added = await vmferry("rule", "credential", "add", "hook", "--value-file", secret);
    says(added, 0, /secret \S+ of hook/);
    assert.equal(added.out, "");
    says(await vmferry("rule", "refuse", "hook"), 3, /Nothing of hook waits/);
  });
});
