/**
 * From `reboot` to an empty host and back to the reboot: systemd's own logind (test/lab/logind.ts), the shim's watch, the treaty's codec, the functions' session, rules and
 * evacuations over stores in memory. Only libvirt is told here instead of asked.
 */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { ruleSchema } from "#core/rule";
import { challenge, receive, type Session } from "#functions/session";
import { type Logind, startLogind } from "#lab/logind";
import { logindSkipReason } from "#lab/prerequisites";
import { decodeDown, decodeUp, encode } from "#protocol/codec";
import { helloSignedText } from "#protocol/identity";
import { protocolFeatures, protocolVersions, type UpMessage } from "#protocol/message";
import { systemClock } from "#shim/clock";
import { readScheduled } from "#shim/logind";
import { runShim } from "#shim/main";
import { ShutdownWatch } from "#shim/shutdown-watch";
import { FakeControlPlane } from "#test/fake/control-plane";
import { domainNamed, factsOf, hostId, memoryFleet } from "#test/fake/memory-fleet";
import { until } from "#test/fake/until";

const dropIn = join(import.meta.dirname, "../../infra/systemd/logind-vmferry.conf");
const skip = await logindSkipReason();

/** Two hosts and a domain on the first; what the shim of the first says goes through the codec into its proved session, and the answers come back. */
async function fleetOfTwo(heard: (message: ReturnType<typeof decodeDown>) => void) {
  const fleet = await memoryFleet();
  const pair = generateKeyPairSync("ed25519");
  await fleet.addHost(1, { publicKey: pair.publicKey.export({ format: "jwk" }).x ?? "" }, [domainNamed("web1")]);
  await fleet.addHost(2);
  fleet.scriptInspections(1, 2, {});
  let session: Session = challenge(fleet.ports, { hostId: hostId(1), publicUrl: "http://api.test" }).session;
  let turn: Promise<unknown> = Promise.resolve();
  const said: UpMessage[] = [];
  const say = (message: UpMessage): Promise<void> => {
    said.push(message);
    const work = async () => {
      const reaction = await receive(fleet.ports, fleet.runner, session, decodeUp(encode(message)));
      session = reaction.session;
      for (const reply of reaction.replies) heard(decodeDown(encode(reply)));
    };
    const done = turn.then(work);
    turn = done;
    return done;
  };
  await say({
    type: "hello",
    protocols: protocolVersions,
    features: [...protocolFeatures],
    hostId: hostId(1),
    signature: sign(null, Buffer.from(helloSignedText(session)), pair.privateKey).toString("base64url"),
    facts: factsOf(1),
  });
  return { ...fleet, say, said };
}

describe("a host that is asked to reboot", { skip }, () => {
  let logind: Logind;
  before(async () => {
    logind = await startLogind(dropIn);
    process.env.DBUS_SYSTEM_BUS_ADDRESS = logind.address;
  });
  after(() => logind?.end());
  const isPreparing = async () => (await logind.property("PreparingForShutdown")).includes("true");
  const endJob = async () => {
    await logind.endJob();
    await until("the job's end", isPreparing, (found) => !found);
  };

  test("is emptied by its rule first, and reboots then by itself", async () => {
    const heard: string[] = [];
    const stop = new AbortController();
    const fleet = await fleetOfTwo((message) => {
      if (message.type === "welcome") heard.push(...message.features);
      if (message.type !== "shutdownHeard") return;
      heard.push(`${message.requestId} ${message.state}`);
      watch.heard(message.requestId, message.state);
    });
    const watch = new ShutdownWatch({
      host: "host1",
      budgetMs: 15 * 60_000,
      lock: "block",
      records: () => [],
      send: (message) => {
        void fleet.say(message);
        return true;
      },
      clock: systemClock,
      log: { write: () => undefined },
      signal: stop.signal,
      logind: { scheduledText: () => readScheduled(logind.scheduledPath) },
    });
    watch.welcome(heard);
    watch.seen([domainNamed("web1")]);
    const ended = watch.run();
    try {
      const rule = { name: "off", when: { kind: "host-shutdown" }, which: { names: ["host1"] } };
      await fleet.rules.book.put(ruleSchema.parse(rule), "test", null);
      await until(
        "the locks",
        () => logind.locks(),
        (found) => found.length === 2,
      );
      await logind.reboot();
      await until(
        "the answer",
        () => heard,
        (found) => found.some((word) => word.endsWith(" requested")),
      );
      assert.deepEqual(logind.started(), []);

      for (let minute = 0; minute < 10; minute += 1) {
        await fleet.rules.runner.tick();
        await fleet.evacuations.tick();
        await fleet.serve();
        await fleet.runner.tick();
        fleet.pass(5_000);
      }
      const [evacuation] = (await fleet.ports.evacuations.list({ limit: 10, cursor: null, active: false })).items;
      assert.equal(evacuation?.host.name, "host1");
      assert.equal(evacuation?.status, "completed");
      const [migration] = (await fleet.ports.migrations.list({ limit: 10, cursor: null, active: false })).items;
      assert.deepEqual([migration?.domain.name, migration?.status], ["web1", "completed"]);
      // The evacuation is over, and libvirt on this host has not said so yet: it waits.
      assert.deepEqual(logind.started(), []);
      assert.ok(await isPreparing());

      watch.seen([]);
      await until(
        "the reboot",
        () => logind.started(),
        (found) => found.join() === "reboot.target",
      );
      await endJob();
    } finally {
      stop.abort();
      await ended;
    }
  });

  test("tells so through the shim's whole program, until it is heard", async () => {
    const plane = await FakeControlPlane.start({ welcome: { features: ["shutdown.1"] } });
    const state = await mkdtemp(join(tmpdir(), "vmferry-shutdown-"));
    const stop = new AbortController();
    const lines: string[] = [];
    const ended = runShim({
      url: plane.url,
      joinToken: "vmj_secretsecretsecret",
      name: "alpha",
      stateDir: state,
      libvirt: join(state, "no-such-socket"),
      out: (line) => void lines.push(line),
      err: (line) => void lines.push(line),
      signal: stop.signal,
    });
    try {
      const said = () => plane.messages.filter((message) => message.type === "shutdown");
      await until(
        "a session",
        () => lines,
        (found) => found.some((line) => line.includes("connected as alpha")),
      );
      assert.deepEqual(said(), []);
      await logind.reboot();
      const again = await until("the word, twice", said, (found) => found.length > 1);
      const [first] = again;
      assert.ok(first);
      assert.deepEqual(new Set(again.map(({ requestId }) => requestId)), new Set([first.requestId]));
      plane.sockets.at(-1)?.send({ type: "shutdownHeard", requestId: first.requestId, state: "requested" });
      await endJob();
      await until("the withdrawal", said, (found) => found.at(-1)?.state === "withdrawn");
    } finally {
      stop.abort();
      assert.equal(await ended, 0);
      await plane.stop();
      await rm(state, { recursive: true, force: true });
    }
  });
});
