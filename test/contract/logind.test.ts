/**
 * The shim's watch over its host's shutdown, with systemd's own logind: a private bus, the real daemon in a mount namespace of its own, and a stand-in for PID 1 alone
 * (test/lab/logind.ts). What a lock can do is seen here and nowhere else.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { checkShutdown } from "#functions/cli/doctor-shutdown";
import { type Logind, startLogind } from "#lab/logind";
import { logindSkipReason } from "#lab/prerequisites";
import type { UpMessage } from "#protocol/message";
import { systemClock } from "#shim/clock";
import { readScheduled } from "#shim/logind";
import { ShutdownWatch, type ShutdownWatchParts } from "#shim/shutdown-watch";
import { inventoryDomain } from "#test/fake/inventory-domain";
import { until } from "#test/fake/until";

const run = promisify(execFile);
const dropIn = join(import.meta.dirname, "../../infra/systemd/logind-vmferry.conf");
const nobody = 65_534;
const hourMs = 3_600_000;

const skip = await logindSkipReason();

describe("systemd's own logind", { skip }, () => {
  let logind: Logind;
  const stops: (() => Promise<void>)[] = [];

  before(async () => {
    logind = await startLogind(dropIn);
    // What the shim runs finds this bus, and no other.
    process.env.DBUS_SYSTEM_BUS_ADDRESS = logind.address;
  });
  after(() => logind?.end());
  afterEach(async () => {
    for (const stop of stops.splice(0)) await stop();
    assert.deepEqual(await logind.locks(), []);
  });

  function watch(parts: Partial<ShutdownWatchParts> = {}) {
    const said: Extract<UpMessage, { type: "shutdown" }>[] = [];
    const logged: string[] = [];
    const stop = new AbortController();
    const watch = new ShutdownWatch({
      host: "host1",
      budgetMs: 15 * 60_000,
      lock: "block",
      records: () => [],
      send: (message) => {
        if (message.type === "shutdown") said.push(message);
        return true;
      },
      clock: systemClock,
      log: {
        write: (level, message, fields) => void logged.push(`${level} ${message} ${JSON.stringify(fields ?? {})}`),
      },
      signal: stop.signal,
      logind: { scheduledText: () => readScheduled(logind.scheduledPath) },
      ...parts,
    });
    watch.welcome(["shutdown.1"]);
    const ended = watch.run();
    stops.push(async () => {
      stop.abort();
      await ended;
    });
    return { watch, said, logged, stop, ended };
  }
  const modes = async () => (await logind.locks()).map(({ mode }) => mode).sort();
  const both = () => until("both locks", modes, (found) => found.join() === "block,delay");
  const none = () => until("no lock", modes, (found) => found.length === 0);
  const isPreparing = async () => (await logind.property("PreparingForShutdown")).includes("true");
  const states = (said: readonly { requestId: string; state: string }[]) => [
    ...new Set(said.map(({ requestId, state }) => `${requestId} ${state}`)),
  ];

  test("the drop-in that is shipped raises how long a delay may be", async () => {
    assert.match(await logind.property("InhibitDelayMaxUSec"), /"data":900000000\b/);
  });

  test("doctor says what this logind does", async () => {
    const { verdict, says, action } = await checkShutdown();
    assert.deepEqual([verdict, action], ["ok", ""]);
    assert.match(says, /^systemd-logind \d+ refuses a shutdown .* for 15 min/);
  });

  test("locks are taken for the first domain, say what runs and what to do, and are given back after the last", async () => {
    const { watch: watched } = watch();
    watched.seen([]);
    assert.deepEqual(await logind.locks(), []);
    watched.seen([{ ...inventoryDomain(1), name: "web1", state: "running" }]);
    await both();
    const reason = "1 domain runs here (web1). Move them first: vmferry evacuate host1";
    for (const { who, why } of await logind.locks()) assert.deepEqual([who, why], ["vmferry", reason]);
    const { stdout } = await run("systemd-inhibit", ["--list", "--no-pager"], {
      env: { ...process.env, COLUMNS: "200" },
    });
    assert.ok(stdout.includes("vmferry evacuate host1"), stdout);
    watched.seen([{ ...inventoryDomain(1), state: "shutoff" }]);
    await none();
  });

  test("a domain that runs makes a request of an unprivileged user fail, and nothing is started", async () => {
    const { watch: watched, said } = watch();
    watched.seen([inventoryDomain(1)]);
    await both();
    await assert.rejects(logind.call(["Reboot", "b", "false"], nobody), /denied|inhibit|block/i);
    await assert.rejects(logind.call(["PowerOff", "b", "false"], nobody), /denied|inhibit|block/i);
    assert.equal(await isPreparing(), false);
    assert.deepEqual(logind.started(), []);
    // Who is refused leaves no trace: nothing could be told.
    assert.deepEqual(said, []);
  });

  test("a shutdown that passes is told, held until the last domain has left, and goes on then", async () => {
    const { watch: watched, said } = watch();
    watched.seen([inventoryDomain(1), inventoryDomain(2)]);
    await both();
    const before = logind.started().length;
    await logind.reboot();
    const [first] = await until(
      "the word",
      () => said,
      (found) => found.length > 0,
    );
    assert.ok(first);
    assert.equal(first.state, "requested");
    assert.equal(first.kind, "reboot");
    assert.ok(first.budgetMs > 14 * 60_000 && first.budgetMs <= 15 * 60_000, String(first.budgetMs));
    // Unheard, it is said again; heard, it is not.
    watched.resend();
    assert.deepEqual(states(said), [`${first.requestId} requested`]);
    watched.heard(first.requestId, "requested");
    const saidSoFar = said.length;
    watched.resend();
    assert.equal(said.length, saidSoFar);
    watched.seen([inventoryDomain(2)]);
    await sleep(200);
    assert.equal(logind.started().length, before);
    assert.ok(await isPreparing());
    watched.seen([]);
    await until(
      "the shutdown",
      () => logind.started().slice(before),
      (found) => found.join() === "reboot.target",
    );
    await none();
    await logind.endJob();
    await until("its end", isPreparing, (found) => !found);
    await until(
      "the withdrawal",
      () => states(said),
      (found) => found.includes(`${first.requestId} withdrawn`),
    );
  });

  test("what is scheduled is told at once with the time that is left, and so is its cancelling", async () => {
    const { watch: watched, said } = watch();
    watched.seen([]);
    const atMs = Math.floor(Date.now() / 1000) * 1000 + hourMs;
    await logind.call(["ScheduleShutdown", "st", "poweroff", String(atMs * 1000)]);
    const [first] = await until(
      "the word",
      () => said,
      (found) => found.length > 0,
    );
    assert.equal(first?.requestId, `at-${atMs}-poweroff`);
    assert.ok((first?.budgetMs ?? 0) > hourMs + 14 * 60_000, String(first?.budgetMs));
    await logind.call(["CancelScheduledShutdown"]);
    await until(
      "the withdrawal",
      () => states(said),
      (found) => found.includes(`at-${atMs}-poweroff withdrawn`),
    );
  });

  test("a scheduled shutdown that comes due is the same request, and is held", async () => {
    const { watch: watched, said } = watch();
    await logind.call(["ScheduleShutdown", "st", "reboot", String((Date.now() + 3_000) * 1000)]);
    const [first] = await until(
      "the word",
      () => said,
      (found) => found.length > 0,
    );
    // The lock comes after it was scheduled, and a `block` lock is not asked at its time on any version: the delay holds it.
    watched.seen([inventoryDomain(1)]);
    await both();
    const before = logind.started().length;
    await until("its time", isPreparing, (found) => found);
    await sleep(300);
    assert.equal(logind.started().length, before);
    assert.deepEqual(states(said), [`${first?.requestId} requested`]);
    watched.seen([]);
    await until(
      "the shutdown",
      () => logind.started().slice(before),
      (found) => found.join() === "reboot.target",
    );
    await logind.endJob();
    await until("its end", isPreparing, (found) => !found);
  });

  test("when the budget is over the locks are given back with a domain still here, and the log says why", async () => {
    const { watch: watched, said, logged } = watch({ budgetMs: 1_000 });
    watched.seen([{ ...inventoryDomain(1), name: "web1" }]);
    await both();
    const before = logind.started().length;
    await logind.reboot();
    await until(
      "the shutdown",
      () => logind.started().slice(before),
      (found) => found.join() === "reboot.target",
    );
    assert.equal(said[0]?.state, "requested");
    const line = await until(
      "the log",
      () => logged.find((each) => each.includes("given up")),
      (found) => found !== undefined,
    );
    assert.match(line ?? "", /the budget is over .* 1 domain runs here \(web1\)/);
    // It is not taken again while this shutdown stands.
    watched.seen([{ ...inventoryDomain(1), name: "web1" }]);
    await sleep(300);
    assert.deepEqual(await logind.locks(), []);
    await logind.endJob();
    await until("its end", isPreparing, (found) => !found);
    // Taken back after all: what runs here is guarded again.
    await both();
  });

  test("with a budget of 0 nothing is held and everything is told", async () => {
    const { watch: watched, said } = watch({ budgetMs: 0 });
    watched.seen([inventoryDomain(1)]);
    await logind.call(["ScheduleShutdown", "st", "poweroff", String((Date.now() + hourMs) * 1000)]);
    await until(
      "the word",
      () => said,
      (found) => found.length > 0,
    );
    assert.deepEqual(await logind.locks(), []);
    await logind.call(["CancelScheduledShutdown"]);
    await until(
      "the withdrawal",
      () => said,
      (found) => found.some(({ state }) => state === "withdrawn"),
    );
  });

  test("functions that do not offer it hear nothing, and the lock is held all the same", async () => {
    const { watch: watched, said } = watch();
    watched.welcome(["journals.1"]);
    watched.seen([inventoryDomain(1)]);
    await both();
    await logind.call(["ScheduleShutdown", "st", "poweroff", String((Date.now() + hourMs) * 1000)]);
    await sleep(2_500);
    assert.deepEqual(said, []);
    watched.welcome(["journals.1", "shutdown.1"]);
    assert.equal(said.length, 1);
    await logind.call(["CancelScheduledShutdown"]);
  });

  test("an open migration holds the lock without a domain, and the reason follows what is here", async () => {
    let journals = 1;
    const { watch: watched } = watch({ records: () => Array.from({ length: journals }) });
    watched.seen([]);
    await both();
    for (const { why } of await logind.locks()) assert.match(why, /^1 migration is not over\. /);
    journals = 0;
    await none();
  });

  test("a lock that is lost is taken again", async () => {
    const { watch: watched, logged } = watch();
    watched.seen([inventoryDomain(1)]);
    await both();
    const lost = (await logind.locks()).find(({ mode }) => mode === "block");
    assert.ok(lost);
    process.kill(lost.pid, "SIGKILL");
    await until(
      "another lock",
      () => logind.locks(),
      (found) => {
        const block = found.find(({ mode }) => mode === "block");
        return block !== undefined && block.pid !== lost.pid;
      },
    );
    assert.ok(logged.some((line) => line.includes("is not held")));
  });

  test("a shim that ends gives its locks back at once", async () => {
    const { watch: watched, stop, ended } = watch();
    watched.seen([inventoryDomain(1)]);
    await both();
    stop.abort();
    await ended;
    assert.deepEqual(await logind.locks(), []);
  });

  test("a shim that is killed leaves no lock behind", async () => {
    const script = `
      import { Inhibitor } from "#shim/inhibitor";
      import { systemClock } from "#shim/clock";
      new Inhibitor({ mode: "block", clock: systemClock, log: { write() {} } }).hold("killed");
      setInterval(() => {}, 1000);
    `;
    const child = execFile(process.execPath, ["--input-type=module", "-e", script], {
      cwd: join(import.meta.dirname, "../.."),
    });
    try {
      await until("its lock", modes, (found) => found.join() === "block");
    } finally {
      child.kill("SIGKILL");
    }
    await none();
  });
});

test("where no logind answers it is said once, and nothing else is done", async () => {
  const standing = process.env.DBUS_SYSTEM_BUS_ADDRESS;
  process.env.DBUS_SYSTEM_BUS_ADDRESS = "unix:path=/nonexistent/bus";
  try {
    const logged: string[] = [];
    const stop = new AbortController();
    const ended = new ShutdownWatch({
      host: "host1",
      budgetMs: 1,
      lock: "block",
      records: () => [],
      send: () => assert.fail("something was said"),
      clock: systemClock,
      log: { write: (level, message) => void logged.push(`${level} ${message}`) },
      signal: stop.signal,
    }).run();
    const { verdict, says } = await checkShutdown();
    // It is asked again, and said no more.
    await sleep(3_000);
    stop.abort();
    await ended;
    assert.equal(verdict, "warn");
    assert.match(says, /^no systemd-logind answers/);
    assert.deepEqual(logged, ["info no systemd-logind here: a shutdown of this host is neither held nor told"]);
  } finally {
    if (standing === undefined) delete process.env.DBUS_SYSTEM_BUS_ADDRESS;
    else process.env.DBUS_SYSTEM_BUS_ADDRESS = standing;
  }
});
