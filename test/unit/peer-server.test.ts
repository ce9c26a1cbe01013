/** The listening side of the peer channel over real sockets and TLS, against clients that are strangers, broken or hostile. */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { connect as connectPlain, createServer } from "node:net";
import { describe, type TestContext, test } from "node:test";
import { connect } from "node:tls";
import type { PeerReply } from "#protocol/ticket";
import { PeerClient } from "#shim/peer/client";
import { peerCredentials } from "#shim/peer/credentials";
import { answererFrameSchema, encodeFrame, frameBytesMax } from "#shim/peer/frame";
import { publicKeyOf } from "#shim/peer/seal";
import { strangerSeatsMax } from "#shim/peer/seats";
import { type PeerServerOptions, startPeerServer } from "#shim/peer/server";
import { armed, armOf, destinationOf, finishedAt, newKey, RawPeer, silent, ticketText } from "#test/fake/peer-ends";

const local = { host: "127.0.0.1", port: 0, orAnyPort: false };
const timeout = 30_000;

/** A server whose answers are counted; closed after the test. */
async function serve(t: TestContext, given: Partial<PeerServerOptions> = {}) {
  const key = newKey();
  const asked: { by: string; text: string }[] = [];
  const server = await startPeerServer({
    listen: local,
    key,
    log: silent,
    ...given,
    answer: async (by, request) => {
      asked.push({ by, text: ticketText(request) });
      return (await given.answer?.(by, request)) ?? armed;
    },
  });
  t.after(() => server.close());
  return { server, key, asked, port: server.address.port };
}

function peerOf(t: TestContext, port: number, key = newKey()): Promise<RawPeer> {
  const peer = RawPeer.connect(port, peerCredentials(key));
  t.after(async () => (await peer).socket.destroy());
  return peer;
}

const requestFrame = (id: number, text: string) => encodeFrame({ type: "request", id, request: armOf(text) });

const refusal = (value: unknown): { id: number; code: string } => {
  const frame = answererFrameSchema.parse(value);
  assert.ok(frame.type === "reply" && frame.reply.type === "refused");
  const { fault } = frame.reply;
  assert.ok(fault.cause !== "" && fault.action !== "");
  return { id: frame.id, code: fault.code };
};

describe("who gets in", { timeout }, () => {
  test("the key that the peer has proven is told with each request", async (t) => {
    const { port, asked } = await serve(t);
    const [one, other] = [newKey(), newKey()];
    for (const key of [one, other]) {
      const peer = await peerOf(t, port, key);
      peer.socket.write(requestFrame(1, "text"));
      assert.deepEqual(await peer.framesUpTo(1), [{ type: "reply", id: 1, reply: armed }]);
    }
    assert.deepEqual(
      asked.map(({ by }) => by),
      [publicKeyOf(one), publicKeyOf(other)],
    );
  });

  test("no certificate: dropped unheard", async (t) => {
    const { port, asked } = await serve(t);
    const peer = await RawPeer.connect(port, { minVersion: "TLSv1.3" });
    peer.socket.write(requestFrame(1, "text"));
    await peer.ended;
    assert.deepEqual([asked, peer.frames], [[], []]);
  });

  test("a certificate with another kind of key: dropped unheard", async (t) => {
    const { port, asked } = await serve(t);
    const peer = await RawPeer.connect(port, { ...ecdsaCredentials(), minVersion: "TLSv1.3" });
    peer.socket.write(requestFrame(1, "text"));
    await peer.ended;
    assert.deepEqual([asked, peer.frames], [[], []]);
  });

  test("TLS 1.2 is refused", async (t) => {
    const { port, asked } = await serve(t);
    const socket = connect({
      ...peerCredentials(newKey()),
      minVersion: "TLSv1.2",
      maxVersion: "TLSv1.2",
      host: "127.0.0.1",
      port,
      rejectUnauthorized: false,
    });
    const [error] = await once(socket, "error");
    assert.match(String(error), /protocol version/i);
    assert.deepEqual(asked, []);
  });

  test("plain text is refused", async (t) => {
    const { port, asked } = await serve(t);
    const socket = connectPlain(port, "127.0.0.1");
    socket.on("error", () => {});
    socket.write(requestFrame(1, "text"));
    await new Promise((resolve) => socket.once("close", resolve).resume());
    assert.deepEqual(asked, []);
  });

  test("who connects and says nothing is dropped", async (t) => {
    const { port } = await serve(t, { bounds: { handshakeMs: 50, idleMs: 50 } });
    const mute = connectPlain(port, "127.0.0.1");
    mute.on("error", () => {});
    await new Promise((resolve) => mute.once("close", resolve).resume());
    await (await peerOf(t, port)).ended;
  });

  test("a crowd of strangers keeps nobody out, and a peer with a ticket in", async (t) => {
    const { port, asked } = await serve(t);
    const early = await peerOf(t, port);
    early.socket.write(requestFrame(1, "early"));
    await early.framesUpTo(1);
    const crowd = Array.from({ length: strangerSeatsMax * 2 }, () => connectPlain(port, "127.0.0.1"));
    t.after(() => crowd.forEach((socket) => void socket.destroy()));
    await Promise.all(
      crowd.map((socket) =>
        once(
          socket.on("error", () => {}),
          "connect",
        ),
      ),
    );
    const late = await peerOf(t, port);
    late.socket.write(requestFrame(1, "late"));
    await late.framesUpTo(1);
    early.socket.write(requestFrame(2, "early again"));
    await early.framesUpTo(2);
    assert.deepEqual(
      asked.map(({ text }) => text),
      ["early", "late", "early again"],
    );
  });
});

describe("what is read", { timeout }, () => {
  test("a request byte by byte, and two frames in one piece", async (t) => {
    const { port } = await serve(t);
    const peer = await peerOf(t, port);
    for (const byte of requestFrame(7, "slowly")) peer.socket.write(Uint8Array.of(byte));
    assert.deepEqual(await peer.framesUpTo(1), [{ type: "reply", id: 7, reply: armed }]);
    peer.socket.write(Buffer.concat([encodeFrame({ type: "ping" }), requestFrame(8, "at once")]));
    assert.deepEqual((await peer.framesUpTo(3)).slice(1), [{ type: "pong" }, { type: "reply", id: 8, reply: armed }]);
  });

  test("a frame over the bound is refused by name, and the connection ends", async (t) => {
    const { port, asked } = await serve(t);
    const peer = await peerOf(t, port);
    const word = Buffer.alloc(4);
    word.writeUInt32BE(frameBytesMax + 1);
    // With bytes behind it that nobody reads: the refusal arrives all the same.
    peer.socket.write(Buffer.concat([word, Buffer.alloc(1024 * 1024)]));
    await peer.ended;
    assert.deepEqual(peer.frames.map(refusal), [{ id: 0, code: "message.tooLarge" }]);
    assert.deepEqual(asked, []);
  });

  for (const [what, bytes, id] of [
    ["bytes that are no JSON", Buffer.from([0, 0, 0, 1, 0x7b]), 0],
    ["a frame of no known shape", encodeFrame({ type: "pong" }), 0],
    ["a request of no known kind", encodeFrame({ type: "request", id: 5, request: { type: "explode" } }), 5],
    [
      "a ticket that is no text",
      encodeFrame({ type: "request", id: 6, request: { type: "arm", ticket: { text: 1, signature: "" } } }),
      6,
    ],
  ] as const)
    test(`${what}: refused, then closed`, async (t) => {
      const { port, asked } = await serve(t);
      const peer = await peerOf(t, port);
      peer.socket.write(bytes);
      await peer.ended;
      assert.deepEqual(peer.frames.map(refusal), [{ id, code: "message.malformed" }]);
      assert.deepEqual(asked, []);
    });

  test("a second request before the first answer is refused and not executed; pings are answered meanwhile", async (t) => {
    const hold = Promise.withResolvers<PeerReply>();
    const { port, asked } = await serve(t, { answer: () => hold.promise });
    const peer = await peerOf(t, port);
    peer.socket.write(Buffer.concat([requestFrame(1, "first"), encodeFrame({ type: "ping" })]));
    assert.deepEqual(await peer.framesUpTo(1), [{ type: "pong" }]);
    peer.socket.write(requestFrame(2, "second"));
    await peer.ended;
    hold.resolve(armed);
    assert.deepEqual(refusal(peer.frames[1]), { id: 2, code: "message.malformed" });
    assert.equal(peer.frames.length, 2);
    assert.deepEqual(
      asked.map(({ text }) => text),
      ["first"],
    );
  });

  test("an error of our own is refused without its text", async (t) => {
    const { port } = await serve(t, { answer: () => Promise.reject(new Error("a secret")) });
    const peer = await peerOf(t, port);
    peer.socket.write(requestFrame(3, "text"));
    const frames = await peer.framesUpTo(1);
    assert.deepEqual(frames.map(refusal), [{ id: 3, code: "internal" }]);
    assert.doesNotMatch(JSON.stringify(frames), /secret/);
  });

  test("an answer whose asker has gone is dropped, and the next one is served", async (t) => {
    const hold = Promise.withResolvers<PeerReply>();
    const { port } = await serve(t, {
      answer: (_, request) => (ticketText(request) === "gone" ? hold.promise : Promise.resolve(armed)),
    });
    const gone = await peerOf(t, port);
    gone.socket.write(Buffer.concat([requestFrame(1, "gone"), encodeFrame({ type: "ping" })]));
    await gone.framesUpTo(1);
    gone.socket.destroy();
    await gone.ended;
    hold.resolve(finishedAt("late"));
    const next = await peerOf(t, port);
    next.socket.write(requestFrame(1, "next"));
    assert.deepEqual(await next.framesUpTo(1), [{ type: "reply", id: 1, reply: armed }]);
  });
});

describe("listening", { timeout }, () => {
  test("the default port gives way when it is taken; one that was asked for is refused", async (t) => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    t.after(() => other.close());
    const address = other.address();
    assert.ok(address !== null && typeof address === "object");
    const listen = { host: "127.0.0.1", port: address.port };
    const said: string[] = [];
    const { port } = await serve(t, {
      listen: { ...listen, orAnyPort: true },
      log: { write: (level, message) => said.push(`${level}: ${message}`) },
    });
    assert.notEqual(port, address.port);
    assert.ok(
      said.some((line) => line.startsWith("warn: the peer channel's own port is taken")),
      said.join("\n"),
    );
    await assert.rejects(serve(t, { listen: { ...listen, orAnyPort: false } }), {
      name: "Fault",
      code: "request.malformed",
      cause_: /port is taken/,
      action: /--peer-listen/,
    });
  });

  test("an address of another host is refused", async (t) => {
    await assert.rejects(serve(t, { listen: { host: "198.51.100.1", port: 0, orAnyPort: false } }), {
      name: "Fault",
      code: "request.malformed",
    });
  });

  test("what it tells leads to it, from a wildcard too", async (t) => {
    const { server, key, port } = await serve(t, { listen: { host: null, port: 0, orAnyPort: false } });
    assert.ok(server.address.hosts.includes("127.0.0.1"));
    for (const host of server.address.hosts) {
      const client = new PeerClient({ key: newKey(), log: silent });
      t.after(() => client.close());
      assert.deepEqual(await client.ask(destinationOf(key, port, [host]), armOf("text"), timeout), armed, host);
    }
  });

  test("close lets go out what is written, ends everybody and frees the port", async (t) => {
    const { server, port } = await serve(t);
    const peer = await peerOf(t, port);
    const mute = connectPlain(port, "127.0.0.1");
    await once(mute, "connect");
    peer.socket.write(requestFrame(1, "text"));
    await peer.framesUpTo(1);
    await Promise.all([server.close(), peer.ended]);
    await serve(t, { listen: { ...local, port } });
  });
});

/** A self-signed certificate as TLS likes it, but with ECDSA on P-256 (RFC 5480, RFC 5758). */
function ecdsaCredentials(): { key: string; cert: string } {
  const der = (tag: number, ...parts: readonly Uint8Array[]): Buffer => {
    const body = Buffer.concat(parts);
    const length = body.length < 128 ? [body.length] : [0x82, body.length >> 8, body.length & 255];
    return Buffer.concat([Uint8Array.of(tag, ...length), body]);
  };
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const ecdsaWithSha256 = der(0x30, der(0x06, Buffer.from("2a8648ce3d040302", "hex")));
  const name = der(0x30, der(0x31, der(0x30, der(0x06, Buffer.from("550403", "hex")), der(0x0c, Buffer.from("x")))));
  const validity = der(0x30, der(0x17, Buffer.from("700101000000Z")), der(0x18, Buffer.from("99991231235959Z")));
  const stated = der(
    0x30,
    der(0xa0, der(0x02, Uint8Array.of(2))),
    der(0x02, Uint8Array.of(1)),
    ecdsaWithSha256,
    name,
    validity,
    name,
    publicKey.export({ type: "spki", format: "der" }),
  );
  const signature = der(0x03, Uint8Array.of(0), sign("sha256", stated, privateKey));
  const cert = der(0x30, stated, ecdsaWithSha256, signature).toString("base64");
  return {
    key: privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
    cert: `-----BEGIN CERTIFICATE-----\n${cert.match(/.{1,64}/g)?.join("\n")}\n-----END CERTIFICATE-----\n`,
  };
}
