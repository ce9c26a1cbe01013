/** The parts of the peer channel that need no socket: certificate, frames, addresses, seats. */
import assert from "node:assert/strict";
import { generateKeyPairSync, X509Certificate } from "node:crypto";
import type { NetworkInterfaceInfo } from "node:os";
import { describe, test } from "node:test";
import fc from "fast-check";
import { peerAddressSchema } from "#protocol/peer-address";
import { advertisedHosts, listenOf, peerPortDefault } from "#shim/peer/address";
import { certificateDer, certificatePem } from "#shim/peer/certificate";
import { encodeFrame, frameBytesMax, type PeerFrameCode, PeerFrameError, PeerFrameReader } from "#shim/peer/frame";
import { publicKeyOf } from "#shim/peer/seal";
import { Seats, seatsMax, seatsPerKeyMax, strangerSeatsMax } from "#shim/peer/seats";

const newKey = () => generateKeyPairSync("ed25519").privateKey;

describe("certificate", () => {
  test("holds the key, is signed by it, and is no authority", () => {
    for (let turn = 0; turn < 20; turn += 1) {
      const key = newKey();
      const certificate = new X509Certificate(certificateDer(key));
      assert.equal(publicKeyOf(certificate.publicKey), publicKeyOf(key));
      assert.ok(certificate.verify(certificate.publicKey));
      assert.ok(certificate.checkIssued(certificate));
      assert.equal(certificate.ca, false);
      assert.equal(certificate.subject, "CN=vmferry shim");
      assert.equal(certificate.validFromDate.toISOString(), "1970-01-01T00:00:00.000Z");
      assert.equal(certificate.validToDate.toISOString(), "9999-12-31T23:59:59.000Z");
    }
  });

  test("is the same for the same key, and has another number for another one", () => {
    const [one, other] = [newKey(), newKey()];
    assert.deepEqual(certificateDer(one), certificateDer(one));
    const number = (key: typeof one) => new X509Certificate(certificatePem(key)).serialNumber;
    assert.notEqual(number(one), number(other));
  });

  test("is not signed by another key", () => {
    const certificate = new X509Certificate(certificateDer(newKey()));
    assert.equal(certificate.verify(new X509Certificate(certificateDer(newKey())).publicKey), false);
  });

  test("is made for no other kind of key and for no public half", () => {
    assert.throws(() => certificateDer(generateKeyPairSync("x25519").privateKey), TypeError);
    assert.throws(() => certificateDer(generateKeyPairSync("ed25519").publicKey), TypeError);
  });
});

/** What a reader delivers of these pieces, and how it ended. */
function feed(pieces: readonly Uint8Array[]): { values: unknown[]; code: PeerFrameCode | null } {
  const reader = new PeerFrameReader();
  const values: unknown[] = [];
  for (const piece of pieces) {
    try {
      reader.push(piece, (value) => values.push(value));
    } catch (error) {
      if (!(error instanceof PeerFrameError)) throw error;
      return { values, code: error.code };
    }
  }
  return { values, code: null };
}

function cut(bytes: Uint8Array, pattern: readonly number[]): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  for (let at = 0, turn = 0; at < bytes.byteLength; turn += 1) {
    const size = pattern[turn % pattern.length] ?? 1;
    pieces.push(bytes.subarray(at, at + size));
    at += size;
  }
  return pieces;
}

const framed = (body: Uint8Array | string): Buffer => {
  const bytes = Buffer.from(body);
  const word = Buffer.alloc(4);
  word.writeUInt32BE(bytes.byteLength);
  return Buffer.concat([word, bytes]);
};

describe("frames", () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 64 }), { minLength: 1, maxLength: 20 });

  test("give back what was encoded: whole, byte by byte, cut anyhow", () => {
    const request = fc.record({ id: fc.integer({ min: 1 }), request: fc.json({ maxDepth: 3 }) });
    fc.assert(
      fc.property(fc.array(request, { maxLength: 5 }), sizes, (requests, pattern) => {
        const frames = requests.map((each) => ({ type: "request" as const, ...each }));
        const stream = Buffer.concat(frames.map((frame) => encodeFrame(frame)));
        for (const pieces of [[stream], cut(stream, [1]), cut(stream, pattern)])
          assert.deepEqual(feed(pieces), { values: frames, code: null });
      }),
    );
  });

  test("any bytes end the same way under any cut, and only with named errors", () => {
    const plausible = fc
      .array(fc.oneof(fc.json(), fc.string(), fc.uint8Array({ maxLength: 40 })), { maxLength: 4 })
      .map((bodies) => Buffer.concat(bodies.map((body) => framed(Buffer.from(body)))));
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }), plausible), sizes, (bytes, pattern) => {
        assert.deepEqual(feed(cut(bytes, pattern)), feed([bytes]));
      }),
      { numRuns: 300 },
    );
  });

  test("the frames in front of a broken one are delivered", () => {
    const ping = encodeFrame({ type: "ping" });
    for (const [broken, code] of [
      [framed(""), "frame.empty"],
      [framed("{"), "frame.notJson"],
      [framed(Uint8Array.of(0x22, 0xff, 0x22)), "frame.notJson"],
      [Uint8Array.of(0xff, 0xff, 0xff, 0xff), "frame.tooLong"],
    ] as const)
      assert.deepEqual(feed([Buffer.concat([ping, ping, broken, ping])]), {
        values: [{ type: "ping" }, { type: "ping" }],
        code,
      });
  });

  test("the bound is met to the byte", () => {
    const body = (bytes: number) => framed(`"${"x".repeat(bytes - 2)}"`);
    assert.equal(feed(cut(body(frameBytesMax), [65_536])).values.length, 1);
    assert.equal(feed(cut(body(frameBytesMax + 1), [65_536])).code, "frame.tooLong");
    const around = Buffer.byteLength(JSON.stringify({ type: "request", id: 1, request: "" }));
    const largest = { type: "request" as const, id: 1, request: "x".repeat(frameBytesMax - around) };
    assert.equal(encodeFrame(largest).byteLength, frameBytesMax + 4);
    assert.throws(() => encodeFrame({ ...largest, id: 10 }), { code: "frame.tooLong" });
  });

  test("a broken reader stays broken", () => {
    const reader = new PeerFrameReader();
    assert.throws(() => reader.push(framed("{"), () => {}), { code: "frame.notJson" });
    assert.throws(() => reader.push(encodeFrame({ type: "ping" }), () => {}), { code: "frame.afterFailure" });
  });

  test("a frame that is announced and not sent costs no more than its first bytes", () => {
    const before = process.memoryUsage().arrayBuffers;
    const word = Buffer.alloc(14);
    word.writeUInt32BE(frameBytesMax);
    const readers = Array.from({ length: 64 }, () => new PeerFrameReader());
    for (const reader of readers) reader.push(word, () => assert.fail("nothing is complete"));
    // 64 announced frames are 384 MiB; 64 KiB each is 4 MiB.
    assert.ok(process.memoryUsage().arrayBuffers - before < 32 * 1024 * 1024);
    assert.equal(readers.length, 64);
  });
});

describe("where to listen", () => {
  test("forms", () => {
    assert.deepEqual(listenOf(undefined), { host: null, port: peerPortDefault, orAnyPort: true });
    assert.deepEqual(listenOf(":7"), { host: null, port: 7, orAnyPort: false });
    assert.deepEqual(listenOf("192.0.2.7:0"), { host: "192.0.2.7", port: 0, orAnyPort: false });
    assert.deepEqual(listenOf("[2001:db8::7]:16515"), { host: "2001:db8::7", port: 16_515, orAnyPort: false });
    assert.deepEqual(listenOf("kvm1.example.org:1"), { host: "kvm1.example.org", port: 1, orAnyPort: false });
  });

  for (const text of ["", "7", "host", "host:", "host:65536", "[::1]", "::1:7", "[192.0.2.1]:7", "a b:7", "host:-1"])
    test(`"${text}" is refused with cause and action`, () => {
      assert.throws(() => listenOf(text), { name: "Fault", code: "request.malformed", action: /--peer-listen/ });
    });
});

describe("what is told to others", () => {
  const info = (address: string, internal = false): NetworkInterfaceInfo => {
    const rest = { address, netmask: "", mac: "", internal, cidr: null };
    return address.includes(":") ? { ...rest, family: "IPv6", scopeid: 0 } : { ...rest, family: "IPv4" };
  };
  const interfaces = {
    lo: [info("127.0.0.1", true), info("::1", true)],
    eth0: [info("2001:db8::1"), info("fe80::1"), info("192.0.2.1"), info("169.254.7.7")],
  };
  const base = { listenHost: null, advertise: null, hostname: "kvm1", interfaces };

  test("the likeliest first, link-local never, loopback last", () => {
    assert.deepEqual(advertisedHosts(base), ["192.0.2.1", "2001:db8::1", "127.0.0.1"]);
    assert.deepEqual(advertisedHosts({ ...base, hostname: "kvm1.example.org", advertise: "198.51.100.9" }), [
      "198.51.100.9",
      "kvm1.example.org",
      "192.0.2.1",
      "2001:db8::1",
      "127.0.0.1",
    ]);
  });

  test("IPv4 alone where only that is listened on; one address where one was named", () => {
    assert.deepEqual(advertisedHosts({ ...base, listenHost: "0.0.0.0" }), ["192.0.2.1", "127.0.0.1"]);
    assert.deepEqual(advertisedHosts({ ...base, listenHost: "192.0.2.1" }), ["192.0.2.1"]);
    assert.deepEqual(advertisedHosts({ ...base, listenHost: "10.0.0.1", advertise: "192.0.2.9" }), [
      "192.0.2.9",
      "10.0.0.1",
    ]);
  });

  test("always fits the treaty, with many interfaces and with none, and keeps loopback", () => {
    const many = Array.from({ length: 40 }, (_, index) => info(`198.51.100.${index}`));
    const hosts = advertisedHosts({ ...base, advertise: "192.0.2.1", interfaces: { ...interfaces, many } });
    assert.ok(peerAddressSchema.safeParse({ hosts, port: 1 }).success);
    assert.equal(hosts.length, 16);
    assert.equal(hosts.at(-1), "127.0.0.1");
    assert.ok(peerAddressSchema.safeParse({ hosts: advertisedHosts({ ...base, interfaces: {} }), port: 1 }).success);
  });
});

describe("seats", () => {
  const fill = (seats: Seats, count: number, key: (index: number) => string) =>
    Array.from({ length: count }, (_, index) => {
      const seat = seats.take(() => assert.fail("evicted"));
      assert.ok(seat);
      assert.ok(seats.prove(seat, key(index)));
      return seat;
    });

  test("strangers push out each other, the oldest first, and nobody with a ticket", () => {
    const seats = new Seats();
    const evicted: number[] = [];
    const [peer] = fill(seats, 1, () => "peer");
    assert.ok(peer);
    seats.trust(peer);
    for (let index = 0; index < strangerSeatsMax + 3; index += 1) assert.ok(seats.take(() => evicted.push(index)));
    assert.deepEqual(evicted, [0, 1, 2]);
    assert.equal(seats.count, strangerSeatsMax + 1);
  });

  test("whoever is being answered is not interrupted; then the newcomer waits outside", () => {
    const seats = new Seats();
    for (const seat of fill(seats, strangerSeatsMax, (index) => `stranger ${index}`)) seat.working = true;
    assert.equal(
      seats.take(() => {}),
      null,
    );
  });

  test("a key's further connections are trusted like its first; a stranger's are not", () => {
    const seats = new Seats();
    const [first, second] = fill(seats, 2, () => "peer");
    assert.ok(first && second);
    seats.trust(first);
    assert.ok(second.trusted);
    const [third] = fill(seats, 1, () => "peer");
    const [other] = fill(seats, 1, () => "other");
    assert.equal(third?.trusted, true);
    assert.equal(other?.trusted, false);
  });

  test("one key has a bound of its own, and all have one together", () => {
    const seats = new Seats();
    let evicted = 0;
    for (let index = 0; index < seatsPerKeyMax + 2; index += 1) {
      const seat = seats.take(() => {
        evicted += 1;
      });
      assert.ok(seat && seats.prove(seat, "peer"));
      seats.trust(seat);
    }
    assert.equal(evicted, 2);
    assert.equal(seats.count, seatsPerKeyMax);
    while (seats.count < seatsMax) {
      const [seat] = fill(seats, 1, () => `peer ${Math.floor(seats.count / seatsPerKeyMax)}`);
      assert.ok(seat);
      seats.trust(seat);
    }
    assert.equal(
      seats.take(() => {}),
      null,
    );
  });

  test("who leaves makes room, also when it leaves twice", () => {
    const seats = new Seats();
    const [seat] = fill(seats, 1, () => "peer");
    seat?.leave();
    seat?.leave();
    assert.equal(seats.count, 0);
  });
});
