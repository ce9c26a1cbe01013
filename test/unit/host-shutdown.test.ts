/** A host's word that it is shut down, from its socket to an evacuation: over the real session, rules and evacuations, with stores in memory. */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { describe, test } from "node:test";
import {
  type HostShutdown,
  saidAgainMsMax,
  shutdownKeptMs,
  shutdownsPerHostMax,
  stepOfShutdown,
  withdrawnToldMs,
} from "#core/host-shutdown";
import { ruleSchema } from "#core/rule";
import { hostRefusals } from "#functions/refusals";
import { challenge, receive, type Session } from "#functions/session";
import { helloSignedText } from "#protocol/identity";
import { type DownMessage, protocolFeatures, protocolVersions, type UpMessage } from "#protocol/message";
import { inventoryDomain } from "#test/fake/inventory-domain";
import { domainNamed, factsOf, hostId, memoryFleet } from "#test/fake/memory-fleet";

const minuteMs = 60_000;
type Said = Extract<UpMessage, { type: "shutdown" }>;
const said = (fields: Partial<Said> = {}): Said => ({
  type: "shutdown",
  requestId: "now-1",
  state: "requested",
  kind: "reboot",
  at: "2027-02-01T00:00:00.000Z",
  budgetMs: 15 * minuteMs,
  ...fields,
});

const shutdownRule = (fields: object = {}) =>
  ruleSchema.parse({ name: "off", when: { kind: "host-shutdown" }, which: { names: ["host1"] }, ...fields });

/** Two hosts, a domain on the first, a session of the first that has proved its key. */
async function fleetOfTwo() {
  const fleet = await memoryFleet();
  const pair = generateKeyPairSync("ed25519");
  const publicKey = pair.publicKey.export({ format: "jwk" }).x ?? "";
  await fleet.addHost(1, { publicKey }, [inventoryDomain(1)]);
  await fleet.addHost(2);
  fleet.scriptInspections(1, 2, {});
  let opened: Session = challenge(fleet.ports, { hostId: hostId(1), publicUrl: "http://api.test" }).session;
  const say = async (message: UpMessage): Promise<DownMessage[]> => {
    const reaction = await receive(fleet.ports, fleet.runner, opened, message);
    opened = reaction.session;
    return reaction.replies;
  };
  const hello = (key = pair.privateKey): Promise<DownMessage[]> =>
    say({
      type: "hello",
      protocols: protocolVersions,
      features: [...protocolFeatures],
      hostId: hostId(1),
      signature: sign(null, Buffer.from(helloSignedText(opened)), key).toString("base64url"),
      facts: factsOf(1),
    });
  const evacuations = async () =>
    (await fleet.ports.evacuations.list({ limit: 10, cursor: null, active: false })).items;
  const told = async () =>
    (await fleet.ports.chronicle.after({ at: null, until: null, limit: 100 })).filter(
      ({ event }) => event.type === "dev.vmferry.host.shutdownRequested",
    );
  return {
    ...fleet,
    say,
    hello,
    evacuations,
    told,
    write: (fields: object = {}) => fleet.rules.book.put(shutdownRule(fields), "test", null),
  };
}

describe("from the socket to an evacuation", () => {
  test("a proved shim's word starts the rule's evacuation, with the budget as its deadline, once however often it is said", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    const welcome = (await fleet.hello())[0];
    assert.ok(welcome?.type === "welcome" && welcome.features.includes("shutdown.1"));
    const deadlineAt = new Date(Date.parse(fleet.ports.clock.now()) + 15 * minuteMs).toISOString();
    for (let times = 0; times < 3; times += 1)
      assert.deepEqual(await fleet.say(said()), [{ type: "shutdownHeard", requestId: "now-1", state: "requested" }]);
    assert.deepEqual(await fleet.evacuations(), []);
    for (let looks = 0; looks < 3; looks += 1) await fleet.rules.runner.tick();
    const [evacuation, ...others] = await fleet.evacuations();
    assert.deepEqual(others, []);
    assert.ok(evacuation);
    const state = await fleet.ports.evacuations.load(evacuation.id);
    assert.equal(state?.host.name, "host1");
    assert.equal(state?.deadlineAt, deadlineAt);
    assert.equal(state?.origin.rule, "off");
    assert.equal((await fleet.told()).length, 1);
  });

  test("a chronicle that refuses the line for good keeps no rule from hearing of it", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    await fleet.hello();
    fleet.ports.chronicle.append = () => Promise.reject(new Error("the line has grown too large"));
    assert.deepEqual(await fleet.say(said()), [{ type: "shutdownHeard", requestId: "now-1", state: "requested" }]);
    await fleet.rules.runner.tick();
    assert.equal((await fleet.evacuations()).length, 1);
  });

  test("rules that are at hand look at once, and not twice", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    await fleet.hello();
    await fleet.say(said());
    await fleet.rules.runner.lookAtShutdowns();
    await fleet.rules.runner.tick();
    assert.equal((await fleet.evacuations()).length, 1);
  });

  test("without a rule nothing is moved, and it is written down all the same", async () => {
    const fleet = await fleetOfTwo();
    await fleet.hello();
    await fleet.say(said());
    await fleet.rules.runner.tick();
    assert.deepEqual(await fleet.evacuations(), []);
    assert.equal((await fleet.told()).length, 1);
  });

  test("before hello it is refused, and nothing is kept", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    const [reply] = await fleet.say(said());
    assert.ok(reply?.type === "refused" && reply.fault.code === "shim.unauthorised");
    await fleet.rules.runner.tick();
    assert.deepEqual(await fleet.ports.shutdowns.list(), []);
    assert.deepEqual(await fleet.evacuations(), []);
    assert.deepEqual(await fleet.told(), []);
  });

  test("who signs with another key than the host's has no session, and says nothing that counts", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    const [refused] = await fleet.hello(generateKeyPairSync("ed25519").privateKey);
    assert.equal(refused?.type, "refused");
    assert.equal((await fleet.say(said()))[0]?.type, "refused");
    await fleet.rules.runner.tick();
    assert.deepEqual(await fleet.ports.shutdowns.list(), []);
    assert.deepEqual(await fleet.evacuations(), []);
  });

  test("whoever names another host in it speaks of itself alone", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write({ which: { names: ["host2"] } });
    await fleet.hello();
    // A field that the treaty does not know is passed over by the decoder; even where it is not, nothing reads it.
    const forged = { ...said(), hostId: hostId(2), host: "host2" };
    await fleet.say(forged);
    await fleet.rules.runner.tick();
    assert.deepEqual(
      (await fleet.ports.shutdowns.list()).map(({ hostId: id }) => id),
      [hostId(1)],
    );
    assert.deepEqual(await fleet.evacuations(), []);
  });

  test("a withdrawal stops what has begun: nothing more of it is started", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    await fleet.hello();
    await fleet.say(said());
    await fleet.rules.runner.tick();
    const [evacuation] = await fleet.evacuations();
    assert.equal(evacuation?.status, "running");
    assert.deepEqual(await fleet.say(said({ state: "withdrawn" })), [
      { type: "shutdownHeard", requestId: "now-1", state: "withdrawn" },
    ]);
    await fleet.rules.runner.tick();
    await fleet.rules.runner.tick();
    const state = await fleet.ports.evacuations.load(evacuation?.id ?? "");
    assert.ok(state?.status !== "running", `it is ${state?.status}`);
  });

  test("a host that is back is not emptied for the shutdown that it has come back from", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    await fleet.hello();
    await fleet.say(said());
    // It was off before the timer looked.
    fleet.pass(minuteMs);
    for (let looks = 0; looks < 3; looks += 1) {
      await fleet.rules.runner.tick();
      fleet.pass(minuteMs);
    }
    assert.deepEqual(await fleet.evacuations(), []);
    // Said once, though it is told each minute.
    const shown: unknown = await (await fleet.ask("/v1/rules/off")).json();
    assert.equal(JSON.stringify(shown).match(/the host is silent/g)?.length, 1, JSON.stringify(shown));
    await fleet.hello();
    for (let minutes = 0; minutes < 15; minutes += 1) {
      fleet.pass(minuteMs);
      await fleet.say({ type: "heartbeat" });
      await fleet.rules.runner.tick();
    }
    assert.deepEqual(await fleet.evacuations(), []);
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, false);
  });

  test("what a host still says when its shim begins anew goes on; what it does not say again is taken back", async () => {
    for (const isSaidAgain of [true, false]) {
      const fleet = await fleetOfTwo();
      await fleet.write();
      await fleet.hello();
      await fleet.say(said());
      await fleet.rules.runner.tick();
      await fleet.hello();
      if (isSaidAgain) await fleet.say(said());
      fleet.pass(saidAgainMsMax);
      await fleet.say({ type: "heartbeat" });
      for (let looks = 0; looks < 2; looks += 1) await fleet.rules.runner.tick();
      const [evacuation, ...others] = await fleet.evacuations();
      assert.deepEqual(others, []);
      assert.equal(evacuation?.status === "running", isSaidAgain);
    }
  });

  test("a request that takes the place of another keeps what has begun, whatever they are called", async () => {
    for (const [old, newer] of [
      ["at-1", "now-2"],
      ["now-2", "at-1"],
    ] as const) {
      const fleet = await fleetOfTwo();
      await fleet.write();
      await fleet.hello();
      await fleet.say(said({ requestId: old }));
      await fleet.rules.runner.tick();
      await fleet.say(said({ requestId: newer }));
      await fleet.say(said({ requestId: old, state: "withdrawn" }));
      for (let looks = 0; looks < 2; looks += 1) await fleet.rules.runner.tick();
      assert.deepEqual(
        (await fleet.evacuations()).map(({ status }) => status),
        ["running"],
      );
    }
  });

  test("so it is where each of the two words starts a look of its own, and the second is faster", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    await fleet.hello();
    await fleet.say(said());
    const { lookAtShutdowns } = fleet.rules.runner;
    await lookAtShutdowns();
    await fleet.say(said({ requestId: "now-2" }));
    const { hosts } = fleet.ports;
    const list = hosts.list.bind(hosts);
    const [reached, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    let calls = 0;
    hosts.list = async () => {
      calls += 1;
      // It has claimed the newer request and not joined it to the run yet.
      if (calls === 2) {
        reached.resolve();
        await released.promise;
      }
      return list();
    };
    const slow = lookAtShutdowns();
    await reached.promise;
    await fleet.say(said({ state: "withdrawn" }));
    await lookAtShutdowns();
    released.resolve();
    await slow;
    for (let looks = 0; looks < 2; looks += 1) {
      fleet.pass(minuteMs);
      await fleet.say({ type: "heartbeat" });
      await fleet.rules.runner.tick();
    }
    assert.deepEqual(
      (await fleet.evacuations()).map(({ status }) => status),
      ["running"],
    );
  });

  test("one that comes while the evacuation of a withdrawn one ends is heard when that has ended, while there is time", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write({ how: { coolDown: "1m" } });
    await fleet.hello();
    await fleet.say(said());
    await fleet.rules.runner.tick();
    await fleet.say(said({ state: "withdrawn" }));
    await fleet.rules.runner.tick();
    assert.deepEqual(
      (await fleet.evacuations()).map(({ status }) => status),
      ["ending"],
    );
    await fleet.say(said({ requestId: "now-2" }));
    await fleet.rules.runner.tick();
    while (fleet.script.pushed.some(({ message }) => message.type === "command")) await fleet.serve();
    await fleet.ports.hosts.putInventory(hostId(1), { full: true, domains: [inventoryDomain(2)], gone: [] });
    for (let minutes = 0; minutes < 4; minutes += 1) {
      fleet.pass(minuteMs);
      await fleet.say({ type: "heartbeat" });
      await fleet.rules.runner.tick();
    }
    assert.equal((await fleet.evacuations()).length, 2);
  });

  test("a withdrawal that overtakes its request is the last word", async () => {
    const fleet = await fleetOfTwo();
    await fleet.write();
    await fleet.hello();
    await fleet.say(said({ state: "withdrawn" }));
    await fleet.say(said());
    await fleet.rules.runner.tick();
    assert.deepEqual(await fleet.evacuations(), []);
  });

  test("a host that says more than can be kept is not told that it was heard", async () => {
    const fleet = await fleetOfTwo();
    await fleet.hello();
    for (let index = 0; index < shutdownsPerHostMax; index += 1)
      assert.equal((await fleet.say(said({ requestId: `now-${index}` }))).length, 1);
    assert.deepEqual(await fleet.say(said({ requestId: "one-more" })), []);
    fleet.pass(15 * minuteMs + shutdownKeptMs);
    assert.equal((await fleet.say(said({ requestId: "one-more" }))).length, 1);
    assert.equal((await fleet.ports.shutdowns.list()).length, 1);
  });
});

describe("a host that is asked to shut down", () => {
  const closed = async (fleet: Awaited<ReturnType<typeof fleetOfTwo>>) => {
    const host = await fleet.ports.hosts.byId(hostId(1));
    assert.ok(host);
    assert.deepEqual(hostRefusals(host, "source", fleet.ports), []);
    return hostRefusals(host, "destination", fleet.ports).map(({ code, cause }) => `${code}: ${cause}`);
  };
  const shutting = ["host.cordoned: The destination host1 is asked to shut down: it takes no new domains."];

  test("takes no domains until its time is over or it is taken back, and gives away its own", async () => {
    const fleet = await fleetOfTwo();
    await fleet.hello();
    assert.deepEqual(await closed(fleet), []);
    await fleet.say(said());
    assert.deepEqual(await closed(fleet), shutting);
    const shown = async (): Promise<unknown> => {
      const host: { shuttingUntil?: unknown } = await (await fleet.ask("/v1/hosts/host1")).json();
      return host.shuttingUntil;
    };
    assert.equal(await shown(), new Date(Date.parse(fleet.ports.clock.now()) + 15 * minuteMs).toISOString());
    await fleet.say(said({ requestId: "at-2" }));
    await fleet.say(said({ state: "withdrawn" }));
    assert.deepEqual(await closed(fleet), shutting);
    await fleet.say(said({ requestId: "at-2", state: "withdrawn" }));
    assert.deepEqual(await closed(fleet), []);
    assert.equal(await shown(), null);
    // What was withdrawn is not raised from the dead by a message that was overtaken.
    await fleet.say(said());
    assert.deepEqual(await closed(fleet), []);
    await fleet.say(said({ requestId: "at-3", budgetMs: 5_000 }));
    assert.deepEqual(await closed(fleet), shutting);
    // Its locks are gone: now it does shut down, and answers for as long as that takes.
    fleet.pass(5_000);
    await fleet.say({ type: "heartbeat" });
    assert.deepEqual(await closed(fleet), shutting);
    await fleet.say(said({ requestId: "at-3", state: "withdrawn" }));
    assert.deepEqual(await closed(fleet), []);
    // One that is not held at all is shutting down as well.
    await fleet.say(said({ requestId: "now-4", budgetMs: 0 }));
    assert.deepEqual(await closed(fleet), shutting);
    fleet.pass(shutdownKeptMs);
    await fleet.say({ type: "heartbeat" });
    assert.deepEqual(await closed(fleet), []);
  });

  test("two words that are taken in at once leave it as both of them say, whichever is written last", async () => {
    for (const [first, second, until] of [
      [said(), said({ state: "withdrawn" }), []],
      [said({ state: "withdrawn" }), said({ requestId: "at-2" }), shutting],
    ] as const) {
      const fleet = await fleetOfTwo();
      await fleet.hello();
      const { hosts } = fleet.ports;
      const seen = hosts.seen.bind(hosts);
      hosts.seen = async (...words) => {
        hosts.seen = seen;
        // Kept, and not written at the host yet: the other one is taken in as a whole.
        await fleet.say(second);
        await seen(...words);
      };
      await fleet.say(first);
      assert.deepEqual(await closed(fleet), until);
    }
  });

  test("takes them again once it is back, unless it says again that it shuts down", async () => {
    const fleet = await fleetOfTwo();
    await fleet.hello();
    await fleet.say(said());
    await fleet.hello();
    assert.deepEqual(await closed(fleet), []);
    await fleet.say(said());
    assert.deepEqual(await closed(fleet), shutting);
  });

  test("is no destination of another's evacuation, however it is named", async () => {
    const fleet = await fleetOfTwo();
    await fleet.hello();
    await fleet.addHost(3, {}, [domainNamed("db1")]);
    fleet.scriptInspections(3, 1, {});
    fleet.scriptInspections(3, 2, {});
    await fleet.ports.hosts.setCordoned(hostId(2), true);
    await fleet.say(said());
    const response = await fleet.ask("/v1/evacuations", { body: { host: "host3", dryRun: true } });
    assert.equal(response.status, 200);
    const plan: unknown = await response.json();
    assert.match(JSON.stringify(plan), /host1 is asked to shut down/);
    assert.doesNotMatch(JSON.stringify(plan), /"destination":"host1"/);
  });
});

describe("what becomes of a request", () => {
  const at = "2027-02-01T00:00:00.000Z";
  const startMs = Date.parse(at);
  const shutdown: HostShutdown = {
    hostId: hostId(1),
    requestId: "now-1",
    kind: null,
    at,
    deadlineAt: new Date(startMs + 10 * minuteMs).toISOString(),
    withdrawnAt: null,
  };
  test("it is told while there is time, then kept for a while, then forgotten", () => {
    const steps = [0, 10 * minuteMs - 1, 10 * minuteMs, 10 * minuteMs + shutdownKeptMs].map((afterMs) =>
      stepOfShutdown(shutdown, startMs + afterMs),
    );
    assert.deepEqual(steps, ["fire", "fire", "wait", "forget"]);
  });
  test("a withdrawal is told for some looks, and outlives its request", () => {
    const withdrawn = { ...shutdown, withdrawnAt: at };
    const steps = [0, withdrawnToldMs - 1, withdrawnToldMs, 10 * minuteMs + shutdownKeptMs].map((afterMs) =>
      stepOfShutdown(withdrawn, startMs + afterMs),
    );
    assert.deepEqual(steps, ["resolve", "resolve", "wait", "forget"]);
  });
});
