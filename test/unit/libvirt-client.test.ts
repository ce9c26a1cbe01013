/** The client against a daemon that misbehaves in every way a real one cannot be asked to. */
import assert from "node:assert/strict";
import { chmod } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { AuthType, ErrorCode, ErrorDomain } from "#libvirt/constants";
import {
  isOutcomeUnknown,
  LibvirtAccessError,
  LibvirtClosedError,
  LibvirtNoAnswerError,
  LibvirtProtocolError,
  LibvirtUnreachableError,
} from "#libvirt/error";
import { events } from "#libvirt/event";
import { FrameStatus, Program } from "#libvirt/frame";
import { procedures } from "#libvirt/procedures";
import { XdrError } from "#libvirt/xdr";
import { FakeLibvirtd, Refusal } from "#test/fake/libvirtd";

const dom = { name: "a", uuid: "7b1f6ac2-0f35-4c4f-9d0e-4f7f2f0c9a11", id: 3 };
const never = new Promise<never>(() => {});

let fake: FakeLibvirtd;
beforeEach(async () => {
  fake = await FakeLibvirtd.start();
});
afterEach(() => fake.stop());

const connect = (options: { inFlightMax?: number; onEventFault?: (fault: unknown) => void } = {}) =>
  connectLibvirt({ socketPath: fake.socketPath, ...options });

function onlyClient() {
  const [client] = fake.clients;
  assert.ok(client !== undefined);
  return client;
}

async function endedBy(connection: LibvirtConnection): Promise<string> {
  const error = await connection.closed;
  return `${error.reason}: ${error.message}`;
}

describe("being let in", () => {
  for (const [type, words] of [
    [AuthType.POLKIT, /polkit/],
    [AuthType.SASL, /SASL/],
    [9, /unknown type \(9\)/],
  ] as const) {
    test(`authentication ${type} is refused with the cause and what to do`, async () => {
      fake.answer(procedures.authList, () => ({ types: [type] }));
      await assert.rejects(connect(), (error) => {
        assert.ok(error instanceof LibvirtAccessError);
        assert.match(error.message, words);
        assert.match(error.action, /auth_unix_rw/);
        return true;
      });
    });
  }

  test("CONNECT_OPEN denied keeps libvirt's error as the cause", async () => {
    fake.answer(procedures.connectOpen, () => {
      throw new Refusal(ErrorCode.AUTH_FAILED, ErrorDomain.RPC, "authentication failed");
    });
    await assert.rejects(connect(), (error) => {
      assert.ok(error instanceof LibvirtAccessError);
      assert.match(error.message, /authentication failed/);
      return true;
    });
  });

  test("no socket, and a socket nobody listens at", async () => {
    const socketPath = join(tmpdir(), `vmferry-no-such-sock-${process.pid}`);
    await assert.rejects(connectLibvirt({ socketPath }), LibvirtUnreachableError);
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    await chmod(socketPath, 0o600);
    await new Promise((resolve) => server.close(resolve));
    await assert.rejects(connectLibvirt({ socketPath }), LibvirtUnreachableError);
  });

  test("the attempt can be given up", async () => {
    fake.answer(procedures.authList, () => never);
    const abort = new AbortController();
    const attempt = connectLibvirt({ socketPath: fake.socketPath, signal: abort.signal });
    await (await fake.nextClient()).received((frame) => frame.procedure === procedures.authList.number);
    abort.abort(new Error("enough"));
    await assert.rejects(attempt, LibvirtClosedError);
  });
});

describe("calls", () => {
  test("no more than inFlightMax are sent; the rest follow in order", async () => {
    const release = Promise.withResolvers<void>();
    fake.answer(procedures.domainGetState, async () => {
      await release.promise;
      return { state: 1, reason: 0 };
    });
    const connection = await connect();
    const client = onlyClient();
    const calls = Array.from({ length: 10 }, (_, flags) => connection.call(procedures.domainGetState, { dom, flags }));
    const sent = () => client.frames.filter((frame) => frame.procedure === procedures.domainGetState.number);
    await client.received((frame) => frame.serial === 2 + 4);
    // A round trip of a frame behind the queue shows that nothing else was written before it.
    client.ping();
    await client.received((frame) => frame.program === Program.KEEPALIVE);
    assert.equal(sent().length, 4);
    release.resolve();
    await Promise.all(calls);
    const serials = sent().map((frame) => frame.serial);
    assert.deepEqual(
      serials,
      serials.toSorted((a, b) => a - b),
    );
    assert.equal(serials.length, 10);
    await connection.close();
  });

  test("a queued call that is given up was never sent; a sent one keeps its slot until its answer", async () => {
    const release = Promise.withResolvers<void>();
    fake.answer(procedures.domainGetState, async () => {
      await release.promise;
      return { state: 1, reason: 0 };
    });
    const connection = await connect({ inFlightMax: 1 });
    const abort = new AbortController();
    const first = connection.call(procedures.domainGetState, { dom, flags: 0 }, { signal: abort.signal });
    const second = connection.call(procedures.domainGetState, { dom, flags: 1 }, { signal: abort.signal });
    const third = connection.call(procedures.domainGetState, { dom, flags: 2 });
    abort.abort(new Error("10 s"));
    const [one, two] = await Promise.allSettled([first, second]);
    assert.ok(one.status === "rejected" && one.reason instanceof LibvirtNoAnswerError && one.reason.sent);
    assert.ok(isOutcomeUnknown(one.reason));
    assert.ok(two.status === "rejected" && two.reason instanceof LibvirtNoAnswerError && !two.reason.sent);
    assert.ok(!isOutcomeUnknown(two.reason));
    release.resolve();
    assert.deepEqual(await third, { state: 1, reason: 0 });
    assert.ok(connection.isOpen);
    await connection.close();
  });

  test("arguments over a limit are refused before anything is sent", async () => {
    const connection = await connect();
    const xml = "x".repeat(4_194_305);
    await assert.rejects(connection.call(procedures.domainDefineXmlFlags, { xml, flags: 0 }), XdrError);
    assert.equal(onlyClient().frames.length, 2);
    await connection.close();
  });

  test("an answer of the wrong shape fails its call and nothing else", async () => {
    fake.answerRaw(procedures.domainGetState, new Uint8Array(4));
    fake.answer(procedures.connectGetHostname, () => ({ hostname: "north" }));
    const connection = await connect();
    const call = connection.call(procedures.domainGetState, { dom, flags: 0 });
    await assert.rejects(call, (error) => error instanceof LibvirtProtocolError && isOutcomeUnknown(error));
    assert.equal((await connection.call(procedures.connectGetHostname, {})).hostname, "north");
    await connection.close();
  });

  test("close() fails what is queued at once: a slot that gets free meanwhile does not send it", async () => {
    const release = Promise.withResolvers<void>();
    fake.answer(procedures.domainGetState, async () => {
      await release.promise;
      return { state: 1, reason: 0 };
    });
    const connection = await connect({ inFlightMax: 1 });
    const first = connection.call(procedures.domainGetState, { dom, flags: 0 });
    const second = connection.call(procedures.domainGetState, { dom, flags: 1 });
    const refused = assert.rejects(second, (error) => error instanceof LibvirtClosedError && !error.sent);
    fake.answer(procedures.connectClose, async () => {
      release.resolve();
      await first;
      return {};
    });
    await connection.close();
    await refused;
    assert.deepEqual(await first, { state: 1, reason: 0 });
    const states = onlyClient().frames.filter((frame) => frame.procedure === procedures.domainGetState.number);
    assert.equal(states.length, 1);
  });

  test("after close() nothing is sent, and close() may be called again", async () => {
    const connection = await connect();
    await Promise.all([connection.close(), connection.close()]);
    await connection.close();
    await assert.rejects(connection.call(procedures.connectGetHostname, {}), (error) => {
      assert.ok(error instanceof LibvirtClosedError);
      assert.equal(error.sent, false);
      return true;
    });
    const goodbyes = onlyClient().frames.filter((frame) => frame.procedure === procedures.connectClose.number);
    assert.equal(goodbyes.length, 1);
    assert.equal((await connection.closed).reason, "local");
  });
});

describe("a stream that is not libvirt's ends the connection and every call", () => {
  const breakages = {
    "a length that cannot be": (client: ReturnType<typeof onlyClient>) => client.raw(new Uint8Array(4)),
    "an answer to nothing": (client: ReturnType<typeof onlyClient>) =>
      client.reply({ procedure: procedures.domainGetState.number, serial: 99 }, FrameStatus.OK, new Uint8Array(8)),
    "an answer with another procedure": (client: ReturnType<typeof onlyClient>) =>
      client.reply({ procedure: 1, serial: 3 }, FrameStatus.OK, new Uint8Array(0)),
  };
  for (const [name, breakIt] of Object.entries(breakages)) {
    test(name, async () => {
      fake.answer(procedures.domainGetState, () => never);
      const connection = await connect();
      const calls = Array.from({ length: 6 }, () => connection.call(procedures.domainGetState, { dom, flags: 0 }));
      const settled = Promise.allSettled(calls);
      const client = onlyClient();
      await client.received((frame) => frame.serial === 3);
      breakIt(client);
      const sent = (await settled).map((each) => {
        assert.ok(each.status === "rejected" && each.reason instanceof LibvirtClosedError);
        assert.equal(each.reason.reason, "protocol");
        assert.ok(each.reason.cause instanceof Error);
        return each.reason.sent;
      });
      assert.deepEqual(sent, [true, true, true, true, false, false]);
      assert.match(await endedBy(connection), /^protocol: /);
    });
  }
});

describe("events", () => {
  const lifecycle = (callbackId: number, event: number) => ({ callbackId, msg: { dom, event, detail: 0 } });

  test("one that overtakes the answer to its registration is delivered, in order; others are not", async () => {
    fake.answer(procedures.connectDomainEventCallbackRegisterAny, (_, client) => {
      client.emit(events.lifecycle, lifecycle(7, 1));
      client.emit(events.lifecycle, lifecycle(8, 9));
      client.emit(events.lifecycle, lifecycle(7, 2));
      return { callbackId: 7 };
    });
    fake.answer(procedures.connectDomainEventCallbackDeregisterAny, () => ({}));
    const connection = await connect();
    const seen: number[] = [];
    const subscription = await connection.onLifecycle(({ msg }) => seen.push(msg.event));
    onlyClient().emit(events.lifecycle, lifecycle(7, 3));
    fake.answer(procedures.connectGetHostname, () => ({ hostname: "north" }));
    await connection.call(procedures.connectGetHostname, {});
    assert.deepEqual(seen, [1, 2, 3]);
    await subscription.cancel();
    onlyClient().emit(events.lifecycle, lifecycle(7, 4));
    await connection.call(procedures.connectGetHostname, {});
    assert.deepEqual(seen, [1, 2, 3]);
    await connection.close();
  });

  test("a listener that throws and an event that cannot be read are told, and the connection lives", async () => {
    fake.answer(procedures.connectDomainEventCallbackRegisterAny, () => ({ callbackId: 1 }));
    fake.answer(procedures.connectGetHostname, () => ({ hostname: "north" }));
    const faults: unknown[] = [];
    const connection = await connect({ onEventFault: (fault) => faults.push(fault) });
    await connection.onLifecycle(() => {
      throw new Error("listener");
    });
    await connection.onJobCompleted(() => {});
    const client = onlyClient();
    client.emit(events.lifecycle, lifecycle(1, 1));
    client.emit(
      { ...events.jobCompleted, message: events.migrationIteration.message },
      { callbackId: 1, dom, iteration: 65 },
    );
    await connection.call(procedures.connectGetHostname, {});
    assert.equal(faults.length, 2);
    assert.ok(faults[1] instanceof XdrError);
    await connection.close();
  });
});
