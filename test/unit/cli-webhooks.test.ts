/** `vmferry webhook ...` against the real app: what is printed where, what is shown of a receiver that fails, what exits how. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { chronicleSettleMs } from "#core/limits";
import { secretBytes } from "#functions/trigger-signature";
import { adminToken, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run, says } from "#test/fake/memory-terminal";
import { eventOf } from "#test/fake/webhook-world";

let fleet: MemoryFleet;
let server: MemoryServer;
beforeEach(async () => {
  fleet = await memoryFleet();
  server = new MemoryServer(fleet.app.fetch);
  await server.start();
});
afterEach(() => server.stop());

const vmferry = (...argv: string[]) => run(argv, { env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken } });
const url = "https://receiver.example/hook";
const deliver = async () => {
  await fleet.ports.chronicle.append(eventOf("e-1", "dev.vmferry.host.enrolled", fleet.ports.clock.now()));
  fleet.pass(chronicleSettleMs + 1);
  await fleet.webhooks.runner.tick();
};

test("set prints the secret alone to the output, once", async () => {
  says(await vmferry("webhooks"), 0, /There is no webhook yet: vmferry webhook set/);
  const made = await vmferry("webhook", "set", "ops", "--url", url, "--type", "migration.ended,host", "--type", "rule");
  says(made, 0, /ops: written, posts host, migration\.ended, rule to https:\/\/receiver/, /not shown again/);
  assert.equal(secretBytes(made.out.trim())?.length, 32);
  const again = await vmferry("webhook", "set", "ops", "--url", url, "--type", "migration.ended,host,rule");
  says(again, 0, /ops: unchanged/);
  assert.equal(again.out, "");
  for (const words of [["webhooks"], ["webhook", "show", "ops"], ["webhooks", "--json"]]) {
    const ran = await vmferry(...words);
    says(ran, 0, /ops/);
    assert.ok(!ran.out.includes(made.out.trim().slice(6)));
  }
});

test("what is refused is said with its cause", async () => {
  says(await vmferry("webhook", "set", "ops"), 64, /--url is missing/);
  says(await vmferry("webhook", "set", "ops", "--url", "http://10.0.0.1/"), 64, /request\.malformed: .*internet only/);
  says(await vmferry("webhook", "set", "ops", "--url", url, "--type", "migraton"), 64, /migraton/, /migration\.ended/);
  says(await vmferry("webhook", "show", "ops"), 66, /There is no such webhook/);
  await vmferry("webhook", "set", "ops", "--url", url);
  says(await vmferry("webhook", "replay", "ops", "--since", "lately"), 64, /--since takes a time/);
  says(await vmferry("webhook", "replay", "ops"), 64, /--since is missing/);
});

test("a test that the receiver takes exits 0, one that it does not take 1, with its answer", async () => {
  await vmferry("webhook", "set", "ops", "--url", url);
  says(await vmferry("webhook", "test", "ops"), 0, /ops: taken, it answered 204/);
  fleet.script.receiverStatus = 404;
  says(await vmferry("webhook", "test", "ops"), 1, /ops: not taken, it answered 404/);
});

test("a receiver that fails is shown with what waits, since when, and what comes next; 410 with how to go on", async () => {
  await vmferry("webhook", "set", "ops", "--url", url);
  fleet.script.receiverStatus = 503;
  await deliver();
  says(await vmferry("webhooks"), 0, /ops +failing +0 +1 +0 .*it answered 503/);
  says(
    await vmferry("webhook", "show", "ops"),
    0,
    /failed +1 attempts; it answered 503/,
    /failing +since 2026.*1 in a row; next at 2026/,
    /waits +dev\.vmferry\.host\.enrolled e-1 of 2026/,
  );
  says(await vmferry("webhook", "pause", "ops"), 0, /paused +by admin .*asked for/);
  fleet.script.receiverStatus = 410;
  says(await vmferry("webhook", "resume", "ops"), 0, /webhook +ops/);
  await fleet.webhooks.runner.tick();
  says(
    await vmferry("webhook", "set", "ops", "--url", `${url}2`),
    0,
    /It is paused: .*410 Gone.*vmferry webhook resume ops/,
  );
  fleet.script.receiverStatus = 200;
  await vmferry("webhook", "resume", "ops");
  await fleet.webhooks.runner.tick();
  says(await vmferry("webhook", "show", "ops"), 0, /delivered +1, last at 2026/);
  assert.equal(fleet.script.posted.at(-1)?.url, `${url}2`);
});

test("replay begins at a time; rotate says until when both sign; delete forgets", async () => {
  await vmferry("webhook", "set", "ops", "--url", url);
  await deliver();
  const posted = fleet.script.posted.length;
  // Long ago by the control plane's clock, which stands still here.
  says(await vmferry("webhook", "replay", "ops", "--since", "2026-11-22T09:00:00Z"), 0, /webhook +ops/);
  await fleet.webhooks.runner.tick();
  assert.equal(fleet.script.posted.length, posted * 2);
  const rotated = await vmferry("webhook", "rotate", "ops", "--overlap", "2h");
  says(rotated, 0, /signs as well until 2026-11-22T12:00/);
  assert.equal(secretBytes(rotated.out.trim())?.length, 32);
  says(await vmferry("webhook", "show", "ops"), 0, /secret .*signs until/);
  says(await vmferry("webhook", "rotate", "ops", "--now"), 0, /The former secret signs no longer/);
  says(await vmferry("webhook", "delete", "ops"), 0, /ops: deleted/);
  says(await vmferry("webhook", "delete", "ops"), 66, /There is no such webhook/);
});
