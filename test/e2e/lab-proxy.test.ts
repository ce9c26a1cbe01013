/**
 * The proxy that end-to-end tests cut networks with, and the witness that they measure with: both must tell the truth.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { appendFile, mkdtemp, rm } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { SerialWitness } from "#lab/serial-witness";
import { startTcpProxy, type TcpProxy } from "#lab/tcp-proxy";

const waitMs = 10_000;

describe("TcpProxy", { timeout: 60_000 }, () => {
  let echo: Server;
  let proxy: TcpProxy;
  before(async () => {
    echo = createServer((socket) => {
      socket.on("error", () => socket.destroy());
      socket.pipe(socket);
    });
    echo.listen(0, "127.0.0.1");
    await once(echo, "listening");
    const address = echo.address();
    assert.ok(address !== null && typeof address === "object");
    proxy = await startTcpProxy({ targetPort: address.port });
  });
  after(async () => {
    await proxy.close();
    echo.close();
  });

  async function open(): Promise<Socket> {
    const socket = connect(proxy.port, "127.0.0.1").setEncoding("utf8");
    socket.on("error", () => {});
    await once(socket, "connect");
    return socket;
  }

  /** Not `once`: that rejects on the reset which is expected here. */
  function closing(socket: Socket): Promise<void> {
    return new Promise((resolve) => {
      socket.on("error", () => {});
      socket.on("close", () => resolve());
    });
  }

  async function said(socket: Socket, text: string): Promise<string> {
    let heard = "";
    const whole = new Promise<void>((resolve) => {
      socket.on("data", (chunk: string) => {
        heard += chunk;
        if (heard.length >= text.length) resolve();
      });
    });
    socket.write(text);
    await whole;
    return heard;
  }

  test("carries bytes both ways, more than a socket buffer holds, and counts them", async () => {
    const text = "0123456789abcdef".repeat(256 * 1024);
    const up = proxy.bytesUp;
    const socket = await open();
    assert.equal(await said(socket, text), text);
    assert.equal(proxy.bytesUp - up, text.length);
    socket.destroy();
  });

  test("cut resets what stands and what comes; heal lets new ones through", async () => {
    const standing = await open();
    assert.equal(await said(standing, "hello"), "hello");
    const closed = closing(standing);
    proxy.cut();
    await closed;
    const refused = connect(proxy.port, "127.0.0.1");
    await closing(refused);
    proxy.heal();
    const healed = await open();
    assert.equal(await said(healed, "again"), "again");
    healed.destroy();
  });

  test("a delay that changes on a standing connection never turns the order of what was said", async () => {
    const socket = await open();
    const texts = Array.from({ length: 40 }, (_, index) => `${index};`);
    const whole = texts.join("");
    let heard = "";
    const all = new Promise<void>((resolve) => {
      socket.on("data", (chunk: string) => {
        heard += chunk;
        if (heard.length >= whole.length) resolve();
      });
    });
    for (const [index, text] of texts.entries()) {
      proxy.delay([40, 0, 7][index % 3] ?? 0);
      socket.write(text);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    proxy.delay(0);
    await all;
    assert.equal(heard, whole);
    socket.destroy();
  });

  test("stall closes nothing and loses nothing: what was said meanwhile arrives after heal, on old and new ones", async () => {
    const standing = await open();
    assert.equal(await said(standing, "before"), "before");
    proxy.stall();
    const late = await open();
    let answered = 0;
    const answers = [said(standing, "meanwhile"), said(late, "new")].map(async (answer) => {
      const text = await answer;
      answered += 1;
      return text;
    });
    // Nothing may arrive however long one waits; a few round trips of the event loop and of loopback stand for it.
    await new Promise((resolve) => setTimeout(resolve, 200));
    assert.equal(answered, 0);
    proxy.heal();
    assert.deepEqual(await Promise.all(answers), ["meanwhile", "new"]);
    standing.destroy();
    late.destroy();
  });

  /** Everything that arrives until the connection ends. */
  async function heardToEnd(socket: Socket): Promise<string> {
    let heard = "";
    socket.on("data", (chunk: string) => {
      heard += chunk;
    });
    await closing(socket);
    return heard;
  }

  test("a text cuts before it arrives, also when it comes in two pieces", async () => {
    const socket = await open();
    assert.equal(await said(socket, "first"), "first");
    const cut = proxy.cutWhen("secret", { direction: "down", when: "before" });
    const heard = heardToEnd(socket);
    socket.write("a sec");
    await new Promise((resolve) => setTimeout(resolve, 50));
    socket.write("ret b");
    await cut;
    assert.equal(await heard, "a sec");
    assert.equal(proxy.mode, "cut");
    proxy.heal();
    const healed = await open();
    assert.equal(await said(healed, "the secret"), "the secret", "once only");
    healed.destroy();
  });

  test("a text cuts after it arrived, and nothing that was said in answer comes back", async () => {
    const socket = await open();
    // Up: the echo server has got it, and its answer is lost.
    const up = proxy.cutWhen("question", { direction: "up", when: "after" });
    const nothing = heardToEnd(socket);
    socket.write("question");
    await up;
    assert.equal(await nothing, "");
    proxy.heal();
    // Down: the client has it.
    const other = await open();
    const down = proxy.cutWhen("answer", { direction: "down", when: "after" });
    const heard = heardToEnd(other);
    other.write("answer");
    await down;
    assert.equal(await heard, "answer");
    proxy.heal();
  });

  test("a text is held back with all that follows until heal", async () => {
    const socket = await open();
    const held = proxy.stallWhen("hold", { direction: "down" });
    let heard = "";
    socket.on("data", (chunk: string) => {
      heard += chunk;
    });
    socket.write("hold this");
    await held;
    socket.write(" and that");
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.equal(heard, "");
    proxy.heal();
    while (heard.length < 18) await once(socket, "data");
    assert.equal(heard, "hold this and that");
    socket.destroy();
  });

  test("refuse resets who sends the text and lets others through, until it is ended", async () => {
    const refusal = proxy.refuse("PUT /");
    const bad = await open();
    const ended = closing(bad);
    bad.write("PUT /bucket");
    await ended;
    const good = await open();
    assert.equal(await said(good, "GET /"), "GET /");
    assert.equal(refusal.count(), 1);
    refusal.end();
    assert.equal(await said(good, "PUT /"), "PUT /");
    good.destroy();
  });
});

describe("SerialWitness", { timeout: 60_000 }, () => {
  test("tells a revert, a repeated tick and a lost one apart, whole lines only, and counts disk and boots", async () => {
    const dir = await mkdtemp(join(tmpdir(), "witness-"));
    const path = join(dir, "serial");
    const witness = new SerialWitness(path).start();
    try {
      const first = witness.waitForTickAfter(2, waitMs);
      await appendFile(path, "SeaBIOS\r\nboot 4.2\ntick 1\ntick 2\ntick 3\nti");
      assert.equal(await first, 3);
      assert.deepEqual(witness.violations, []);
      const jump = witness.waitForJumpBack(waitMs);
      await appendFile(path, "ck 4\ndisk 4\ntick 2\ntick 3\ntick 3\ntick 5\ndisk-error 5\ntick 6\n");
      assert.deepEqual(await jump, { kind: "back", before: 4, after: 2 });
      await witness.waitForTickAfter(5, waitMs);
      assert.deepEqual(
        witness.violations.map(({ kind }) => kind),
        ["back", "repeat", "skip"],
      );
      assert.deepEqual([witness.boots, witness.diskCount, witness.diskErrors, witness.ticksSeen], [1, 4, 1, 9]);
    } finally {
      await witness.stop();
      await rm(dir, { recursive: true });
    }
  });

  test("measures the largest gap with the clock it is given, and says how blind it was", async () => {
    const dir = await mkdtemp(join(tmpdir(), "witness-"));
    const path = join(dir, "serial");
    let nowMs = 1000;
    const witness = new SerialWitness(path, { now: () => nowMs }).start();
    try {
      await appendFile(path, "tick 1\n");
      await witness.waitForTickAfter(0, waitMs);
      nowMs = 1250;
      await appendFile(path, "tick 2\ntick 3\n");
      await witness.waitForTickAfter(2, waitMs);
      assert.deepEqual(witness.largestGap, { ms: 250, observerMs: 250, before: 1, after: 2 });
      witness.reset();
      assert.equal(witness.largestGap, undefined);
    } finally {
      await witness.stop();
      await rm(dir, { recursive: true });
    }
  });

  test("a wait that fails says what was seen last", async () => {
    const dir = await mkdtemp(join(tmpdir(), "witness-"));
    const path = join(dir, "serial");
    const witness = new SerialWitness(path).start();
    try {
      await appendFile(path, "tick 7\nKernel panic\n");
      await witness.waitForTickAfter(6, waitMs);
      await assert.rejects(witness.waitForTickAfter(7, 50), /last tick 7, last lines \["Kernel panic"\]/);
    } finally {
      await witness.stop();
      await rm(dir, { recursive: true });
    }
  });
});
