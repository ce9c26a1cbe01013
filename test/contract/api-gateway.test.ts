/** Host sockets on API Gateway: the contract cases, and what only this carrier does. */
import assert from "node:assert/strict";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { after, before, beforeEach, describe, test } from "node:test";
import { connectMsMax } from "#protocol/identity";
import type { Answer, DownMessage, UpMessage } from "#protocol/message";
import { openGatewayLab } from "./api-gateway-lab.ts";
import { socketCases } from "./socket-cases.ts";
import { domain, ulid, uuid } from "./store-cases.ts";

const acknowledged = (): DownMessage => ({ type: "acknowledged", commandId: `m_${ulid()}:export:1` });
const answerOf = (cause: string): Answer => ({
  ok: false,
  fault: { code: "domain.absent", cause, action: "Look elsewhere.", retry: "never" },
});
/** Of a migration that nobody knows: history, so it is acknowledged. */
const report = (): UpMessage => {
  const migrationId = `m_${ulid()}`;
  const fault = { code: "shim.restarted", cause: "A test.", action: "None.", retry: "never" } as const;
  return {
    type: "report",
    report: { migrationId, commandId: `${migrationId}:export:1`, epoch: 1, ms: 1, result: { ok: false, fault } },
  };
};

describe("sockets on API Gateway", { timeout: 120_000 }, () => {
  let lab: Awaited<ReturnType<typeof openGatewayLab>>;

  before(async () => {
    lab = await openGatewayLab();
  });
  after(() => lab.close());
  beforeEach(() => {
    lab.lines.length = 0;
    // A case that failed must not take the next ones with it.
    lab.gateway.before = null;
    lab.gateway.disconnectTimes = 1;
    lab.gateway.throttleNext(0);
    lab.faults.storeIsAway = false;
  });

  describe("the contract", () => {
    for (const [name, run] of Object.entries(socketCases))
      test(name, () => {
        const { newHost, connect, wire } = lab;
        const sockets = {
          push: (hostId: string, message: DownMessage) => wire().ports.sockets.push(hostId, message),
          query: (...asked: Parameters<ReturnType<typeof wire>["ports"]["sockets"]["query"]>) =>
            wire().ports.sockets.query(...asked),
          progress: (hostId: string, migrationId: string) => wire().ports.sockets.progress(hostId, migrationId),
          drop: (hostId: string, cause: string) => wire().ports.sockets.drop(hostId, cause),
        };
        return run({ sockets, newHost, connect, tellsWhy: false, settled: lab.settled });
      });
  });

  describe("a connect", () => {
    test("is refused without a word for each proof that does not hold", async () => {
      const hostId = await lab.newHost();
      const other = await lab.newHost();
      const { privateKey } = generateKeyPairSync("ed25519");
      const stranger = `h_${ulid()}`;
      const now = Date.now();
      const attempts = {
        "another key": await lab.dial(hostId, { key: privateKey }),
        "an unknown host": await lab.dial(stranger, { key: privateKey }),
        "too old": await lab.dial(hostId, { atMs: now - connectMsMax - 10_000 }),
        "too new": await lab.dial(hostId, { atMs: now + connectMsMax + 10_000 }),
        "no header": await lab.dial(hostId, { header: null }),
        "no proof": await lab.dial(hostId, { header: "1 h_x 0" }),
        "of another host": await lab.dial(hostId, { header: lab.headerOf(other) }),
      };
      for (const [what, { status }] of Object.entries(attempts)) assert.equal(status, 401, what);
      await lab.settled();
      assert.deepEqual(lab.gateway.open, []);
      assert.deepEqual(await lab.wire().links.of(hostId), []);
    });

    test("of a stranger leaves no words of his in the log", async () => {
      const line = await lab.dial("x".repeat(3_000), { header: null });
      assert.equal(line.status, 401);
      const refused = lab.lines.filter((text) => text.includes("a connect was refused"));
      assert.equal(refused.length, 1);
      assert.ok(!refused.some((text) => text.includes("xxx")), refused.join());
    });

    test("is good once, and a hello needs its own signature", async () => {
      const hostId = await lab.newHost();
      const header = lab.headerOf(hostId);
      const first = await lab.dial(hostId, { header });
      assert.equal(first.status, 101);
      const again = await Promise.all([lab.dial(hostId, { header }), lab.dial(hostId, { header })]);
      assert.deepEqual(
        again.map(({ status }) => status),
        [401, 401],
      );
      const pushed = lab.wire().ports.sockets.push(hostId, acknowledged());
      assert.equal(await pushed, false, "who has not said hello gets nothing");
      first.hello({ nonce: randomBytes(32).toString("base64url") });
      const refused = await first.next("refused");
      assert.ok(refused.type === "refused");
      assert.equal(refused.fault.code, "shim.unauthorised");
      assert.equal((await first.closed).code, 1000);
    });

    test("many at once with one proof: one is let in", async () => {
      const hostId = await lab.newHost();
      const header = lab.headerOf(hostId);
      const all = await Promise.all(Array.from({ length: 5 }, () => lab.dial(hostId, { header })));
      assert.equal(all.filter(({ status }) => status === 101).length, 1);
      for (const { socket } of all) socket.terminate();
    });

    test("has nothing to say before its hello", async () => {
      const line = await lab.dial(await lab.newHost());
      line.say({ type: "heartbeat" });
      await line.next("refused");
      assert.equal((await line.closed).code, 1000);
      assert.equal(await lab.wire().links.byConnection(line.connectionId), null);
    });

    test("is gone for callbacks until it is answered", async () => {
      const posted: string[] = [];
      lab.gateway.before = async ({ requestContext: { eventType, connectionId } }) => {
        if (eventType === "CONNECT") posted.push(await lab.wire().callbacks.post(connectionId, "too early"));
      };
      const line = await lab.dial(await lab.newHost());
      lab.gateway.before = null;
      assert.equal(line.status, 101);
      assert.deepEqual(posted, ["gone"]);
      assert.equal(await lab.wire().callbacks.post(line.connectionId, "now"), "sent");
      assert.equal(await line.raw, "now");
      line.socket.terminate();
    });
  });

  describe("sizes", () => {
    test("a frame over 32 KB cuts the socket, and nothing of it is heard", async () => {
      const shim = await lab.connect(await lab.newHost());
      const heard = lab.gateway.counts.messagesIn;
      shim.sayWhole(JSON.stringify({ type: "heartbeat", padding: "x".repeat(32 * 1024) }));
      assert.equal((await shim.closed).code, 1009);
      assert.equal(lab.gateway.counts.messagesIn, heard);
    });

    test("a message over 128 KB cuts the socket, in whatever frames", async () => {
      const shim = await lab.connect(await lab.newHost());
      const heard = lab.gateway.counts.messagesIn;
      shim.say(JSON.stringify({ type: "heartbeat", padding: "x".repeat(128 * 1024) }));
      assert.equal((await shim.closed).code, 1009);
      assert.equal(lab.gateway.counts.messagesIn, heard);
    });

    test("below, a long message goes both ways in frames", async () => {
      const shim = await lab.connect(await lab.newHost());
      shim.say(JSON.stringify({ ...report(), padding: "ü".repeat(50_000) }));
      await shim.next("acknowledged");
      const text = "ü".repeat(60_000);
      assert.equal(await lab.wire().callbacks.post(shim.connectionId, text), "sent");
      assert.equal(await shim.raw, text);
      assert.ok(shim.largestFrame() <= 32 * 1024, `${shim.largestFrame()}`);
      assert.equal(await lab.wire().callbacks.post(shim.connectionId, "x".repeat(128 * 1024 + 1)), "failed");
      assert.ok(lab.lines.some((line) => line.includes("over the carrier's limit")));
      await shim.leave();
    });

    test("malformed and binary messages end the socket with the cause", async () => {
      const hostId = await lab.newHost();
      for (const message of ["{", "7", "", Uint8Array.of(1, 2, 3)]) {
        const shim = await lab.connect(hostId);
        shim.say(message);
        const refused = await shim.next("refused");
        assert.ok(refused.type === "refused");
        assert.equal(refused.fault.code, "message.malformed");
        assert.equal((await shim.closed).code, 1000);
        await lab.settled();
        assert.equal(await lab.wire().links.current(hostId), null);
      }
    });

    test("what a newer shim may say is passed over in an open session", async () => {
      const shim = await lab.connect(await lab.newHost());
      for (const foreign of ['{"type":"heartbeat","facts":7}', '{"type":"sung","song":"x"}']) shim.say(foreign);
      await lab.settled();
      assert.equal(lab.lines.filter((line) => line.includes("not understood and passed over")).length, 2);
      shim.say("ping");
      await shim.pong;
      await shim.leave();
    });

    test("a ping is answered", async () => {
      const shim = await lab.connect(await lab.newHost());
      shim.say("ping");
      await shim.pong;
      await shim.leave();
    });
  });

  describe("a connection", () => {
    test("is renewed before its life ends: both are heard, the newer is spoken to, the older is cut and changes nothing", async () => {
      const hostId = await lab.newHost();
      const older = await lab.connect(hostId);
      assert.ok(older.renewAfterMs !== undefined);
      const share = older.renewAfterMs / lab.wire().lifeMs;
      assert.ok(share >= 0.8 && share <= 0.92, `${share}`);
      const newer = await lab.connect(hostId, { renews: older.session });
      assert.notEqual(newer.session, older.session);
      older.say(report());
      newer.say(report());
      await Promise.all([older.next("acknowledged"), newer.next("acknowledged")]);
      const message = acknowledged();
      assert.equal(await lab.wire().ports.sockets.push(hostId, message), true);
      assert.deepEqual(await newer.next("acknowledged"), message);
      lab.gateway.endLife(older.connectionId);
      assert.equal((await older.closed).code, 1001);
      await lab.settled();
      assert.deepEqual(
        (await lab.wire().links.of(hostId)).map(({ session }) => session),
        [newer.session],
      );
      assert.equal(await lab.wire().ports.sockets.push(hostId, message), true);
      await newer.leave();
    });

    test("is cut after its life, however busy", async () => {
      const { lifeMs } = lab.gateway;
      lab.gateway.lifeMs = 200;
      const line = await lab.dial(await lab.newHost());
      lab.gateway.lifeMs = lifeMs;
      const busy = setInterval(() => line.socket.readyState === 1 && line.say("ping"), 20);
      assert.equal((await line.closed).code, 1001);
      clearInterval(busy);
      await lab.settled();
      assert.equal(await lab.wire().links.byConnection(line.connectionId), null);
    });

    test("a third one leaves none but itself and the one it renews", async () => {
      const hostId = await lab.newHost();
      const first = await lab.connect(hostId);
      const second = await lab.connect(hostId, { renews: first.session });
      const third = await lab.connect(hostId, { renews: second.session });
      assert.equal((await first.closed).code, 1000);
      const sessions = (await lab.wire().links.of(hostId)).map(({ session }) => session);
      assert.deepEqual(sessions.sort(), [second.session, third.session].sort());
      await second.leave();
      await third.leave();
    });

    test("that is silent is cut; when nobody tells of it, the next push finds out", async () => {
      const hostId = await lab.newHost();
      const { idleMs } = lab.gateway;
      const shim = await lab.connect(hostId);
      lab.gateway.idleMs = 100;
      lab.gateway.disconnectTimes = 0;
      shim.say({ type: "heartbeat" });
      assert.equal((await shim.closed).code, 1001);
      lab.gateway.idleMs = idleMs;
      const { links, ports } = lab.wire();
      assert.equal(await links.current(hostId), shim.connectionId, "the store still believes in it");
      assert.equal(await ports.sockets.push(hostId, acknowledged()), false);
      assert.equal(await links.current(hostId), null);
      assert.deepEqual(await links.of(hostId), []);
      lab.gateway.disconnectTimes = 1;
    });

    test("whose $disconnect comes twice, late or for nobody takes no other with it", async () => {
      const hostId = await lab.newHost();
      lab.gateway.disconnectTimes = 0;
      const older = await lab.connect(hostId);
      await older.leave();
      const newer = await lab.connect(hostId);
      lab.gateway.disconnectTimes = 1;
      await lab.gateway.disconnectAgain(older.connectionId);
      await lab.gateway.disconnectAgain(older.connectionId);
      await lab.gateway.disconnectAgain("nobody=");
      assert.equal(await lab.wire().ports.sockets.push(hostId, acknowledged()), true);
      lab.gateway.disconnectTimes = 2;
      await newer.leave();
      await lab.settled();
      lab.gateway.disconnectTimes = 1;
      assert.equal(await lab.wire().links.current(hostId), null);
    });

    test("that serves while none is bound is bound again by its heartbeat", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      // A successor was bound and then given up by its shim, which heard no welcome in time.
      const { links, ports } = lab.wire();
      const successor = { connectionId: "given-up=", hostId };
      const atMs = Date.now() + 1;
      assert.equal(await links.bind({ ...successor, openedAtMs: atMs, expiresAtMs: atMs + 60_000 }), true);
      shim.say({ type: "heartbeat" });
      await lab.settled();
      assert.equal(await links.current(hostId), successor.connectionId, "a newer one is not pushed aside");
      await links.close(successor);
      assert.equal(await ports.sockets.push(hostId, acknowledged()), false);
      shim.say({ type: "heartbeat" });
      await lab.settled();
      const message = acknowledged();
      assert.equal(await ports.sockets.push(hostId, message), true);
      assert.deepEqual(await shim.next("acknowledged"), message);
      await shim.leave();
    });

    test("nobody knows of is closed as soon as it speaks", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      await lab.wire().links.close({ hostId, connectionId: shim.connectionId });
      shim.say({ type: "heartbeat" });
      assert.equal((await shim.closed).code, 1000);
    });

    test("an address of nobody is gone", async () => {
      const { callbacks } = lab.wire();
      assert.equal(await callbacks.post("AAAAAAAAAAAAAAA=", "text"), "gone");
      assert.equal(await callbacks.close("AAAAAAAAAAAAAAA="), "gone");
    });

    test("an overtaken hello does not take the host back", async () => {
      const hostId = await lab.newHost();
      const older = await lab.dial(hostId);
      const released = Promise.withResolvers<void>();
      lab.gateway.before = ({ requestContext: { connectionId, eventType } }) =>
        eventType === "MESSAGE" && connectionId === older.connectionId ? released.promise : undefined;
      older.hello();
      const newer = await lab.dial(hostId);
      newer.hello();
      await newer.next("welcome");
      // Told to go when the newer hello was through: it had not proved itself, but it is older.
      assert.equal((await older.closed).code, 1000);
      released.resolve();
      lab.gateway.before = null;
      await lab.settled();
      assert.equal(await lab.wire().links.current(hostId), newer.connectionId);
      newer.socket.terminate();
    });
  });

  describe("trouble", () => {
    test("a throttled callback is tried again, and given up in the end", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      const message = acknowledged();
      lab.gateway.throttleNext(2);
      assert.equal(await lab.wire().ports.sockets.push(hostId, message), true);
      assert.deepEqual(await shim.next("acknowledged"), message);
      lab.gateway.throttleNext(100);
      assert.equal(await lab.wire().ports.sockets.push(hostId, acknowledged()), false);
      lab.gateway.throttleNext(0);
      assert.ok(lab.lines.some((line) => line.includes('"status":429')));
      assert.equal(await lab.wire().ports.sockets.push(hostId, acknowledged()), true, "the host is not away for it");
      await shim.leave();
    });

    test("a hello or an inventory that cannot be handled closes the socket; a heartbeat does not", async () => {
      const hostId = await lab.newHost();
      const [patient, restless] = [await lab.connect(hostId), await lab.dial(await lab.newHost())];
      lab.faults.storeIsAway = true;
      patient.say({ type: "heartbeat" });
      restless.hello();
      assert.equal((await restless.closed).code, 1000);
      await lab.settled();
      assert.ok(lab.gateway.open.includes(patient.connectionId));
      patient.say({ type: "inventory", full: true, last: true, domains: [], gone: [] });
      assert.equal((await patient.closed).code, 1000);
      await lab.settled();
      lab.faults.storeIsAway = false;
    });

    test("a function that fails lets nobody in, and makes the carrier itself speak down the socket", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      lab.gateway.before = () => Promise.reject(new Error("out of memory"));
      assert.equal((await lab.dial(hostId)).status, 502);
      shim.say({ type: "heartbeat" });
      assert.match(await shim.raw, /Internal server error/);
      lab.gateway.before = null;
      shim.say(report());
      await shim.next("acknowledged");
      await shim.leave();
    });

    test("an answer of another host, or to nobody's question, is not stored", async () => {
      const [asked, other] = [await lab.connect(await lab.newHost()), await lab.connect(await lab.newHost())];
      const answer = lab
        .wire()
        .ports.sockets.query(asked.hostId, { kind: "describeDomain", domain: { uuid: uuid(), name: "web-1" } }, 20_000);
      const question = await asked.next("query");
      assert.ok(question.type === "query");
      await other.answer(question.queryId, answerOf("a lie"));
      await other.answer(ulid(), answerOf("nobody asked"));
      await lab.settled();
      await asked.answer(question.queryId, answerOf("the truth"));
      assert.deepEqual(await answer, answerOf("the truth"));
      // Once more, after it was taken: nothing is stored for nobody.
      await asked.answer(question.queryId, answerOf("again"));
      await lab.settled();
      const { links } = lab.wire();
      for (const hostId of [asked.hostId, other.hostId])
        assert.equal(await links.answerTo(hostId, question.queryId), null);
      await asked.leave();
      await other.leave();
    });

    test("an answer that came is told, whether its question could be taken away or not", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      const { links, ports } = lab.wire();
      links.withdraw = () => Promise.reject(new Error("throttled"));
      const asked = ports.sockets.query(
        hostId,
        { kind: "describeDomain", domain: { uuid: uuid(), name: "web" } },
        5_000,
      );
      const query = await shim.next("query");
      assert.ok(query.type === "query");
      await shim.answer(query.queryId, answerOf("heard"));
      assert.deepEqual(await asked, answerOf("heard"));
      await shim.leave();
    });

    test("a host's shutdown is kept and heard, and its withdrawal stands whichever of the two comes first", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      const words = { type: "shutdown", kind: "reboot", at: new Date().toISOString(), budgetMs: 900_000 } as const;
      for (const [requestId, order] of [
        ["now-1", ["requested", "withdrawn"]],
        ["now-2", ["withdrawn", "requested"]],
      ] as const)
        for (const state of order) {
          shim.say({ ...words, requestId, state });
          assert.deepEqual(await shim.next("shutdownHeard"), { type: "shutdownHeard", requestId, state });
        }
      const kept = (await lab.wire().ports.shutdowns.list()).filter((each) => each.hostId === hostId);
      assert.deepEqual(
        kept.map(({ requestId, withdrawnAt }) => [requestId, withdrawnAt === null]),
        [
          ["now-1", false],
          ["now-2", false],
        ],
      );
      await shim.leave();
    });

    test("a removed host has no power by the socket that is left, nor one that was enrolled anew", async () => {
      const hostId = await lab.newHost();
      const shim = await lab.connect(hostId);
      shim.say(report());
      await shim.next("acknowledged");
      // Removed without a drop: the socket stands, as it does until its own call is through.
      await lab.wire().ports.hosts.remove(hostId);
      shim.say(report());
      const refused = await shim.next("refused");
      assert.ok(refused.type === "refused");
      assert.equal(refused.fault.code, "shim.unauthorised");
      assert.equal((await shim.closed).code, 1000);

      await lab.enrol(hostId);
      const anew = await lab.connect(hostId);
      await lab.wire().ports.hosts.remove(hostId);
      await lab.enrol(hostId);
      anew.say({ type: "inventory", full: true, last: true, domains: [domain()], gone: [] });
      await anew.next("refused");
      await anew.closed;
      assert.deepEqual(await lab.wire().ports.hosts.domainsOf(hostId), []);
    });
  });
});
