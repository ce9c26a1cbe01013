/** The shim as a whole against a fake control plane and no libvirt: enrolment, sessions, a second start, a clean end. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { enrolAgain } from "#functions/session";
import type { Command } from "#protocol/command";
import { parseShimArguments } from "#shim/command-line";
import { runShim, type ShimOptions } from "#shim/main";
import { shimVersion } from "#shim/shim-version";
import { FakeControlPlane } from "#test/fake/control-plane";

const token = "vmj_secretsecretsecret";
const id = "m_01JD0000000000000000000000";

let root: string;
let state: string;
let plane: FakeControlPlane;
let stopping: (() => Promise<void>)[] = [];
before(async () => {
  root = await mkdtemp(join(tmpdir(), "vmferry-shim-"));
});
after(() => rm(root, { recursive: true, force: true }));
beforeEach(async () => {
  state = await mkdtemp(join(root, "state-"));
  plane = await FakeControlPlane.start({ heartbeatMs: 200 });
});
afterEach(async () => {
  for (const stop of stopping.reverse()) await stop();
  stopping = [];
  await plane.stop();
});

interface Running {
  lines: string[];
  ended: Promise<number>;
  stop(): Promise<number>;
  says(pattern: RegExp): Promise<string>;
}

/** `null` leaves the token out. */
function start({
  joinToken,
  ...options
}: Partial<Omit<ShimOptions, "joinToken">> & { joinToken?: null } = {}): Running {
  const lines: string[] = [];
  const waiting = new Set<() => void>();
  const signal = new AbortController();
  const line = (text: string) => {
    lines.push(text);
    for (const wake of [...waiting]) wake();
  };
  const ended = runShim({
    url: plane.url,
    ...(joinToken === null ? {} : { joinToken: token }),
    name: "alpha",
    stateDir: state,
    libvirt: join(state, "no-such-socket"),
    out: line,
    err: line,
    signal: signal.signal,
    ...options,
  });
  const stop = () => {
    signal.abort();
    return ended;
  };
  stopping.push(async () => {
    await stop();
  });
  return {
    lines,
    ended,
    stop,
    async says(pattern) {
      for (;;) {
        const found = lines.find((text) => pattern.test(text));
        if (found !== undefined) return found;
        await new Promise<void>((resolve) => waiting.add(resolve));
      }
    },
  };
}

describe("shim", () => {
  test("enrols once with the token, then is itself by its key; secrets stay where they belong", async () => {
    const first = start();
    assert.equal(await first.says(/connected/), "vmferry shim: connected as alpha");
    const hello = await plane.message("hello");
    assert.equal(hello.facts.shimVersion, shimVersion);
    assert.ok(!hello.facts.libvirt.reachable);
    assert.match(hello.facts.libvirt.cause, /no-such-socket/);
    assert.equal(await first.stop(), 0);
    assert.equal((await stat(join(state, "host-key.pem"))).mode & 0o777, 0o600);
    for (const file of ["host.json", "host-key.pem"])
      assert.doesNotMatch(await readFile(join(state, file), "utf8"), /secretsecret/);
    assert.doesNotMatch(first.lines.join("\n"), /secretsecret|PRIVATE/);

    let enrolments = 0;
    plane.decide.enrol = () => {
      enrolments += 1;
      return { status: 500, body: {} };
    };
    const second = start({ joinToken: null });
    await second.says(/connected as alpha/);
    assert.equal(enrolments, 0);
    assert.equal(await second.stop(), 0);
  });

  test("a host that was removed is enrolled again as its refusal says: host.json moved away, key and journals kept", async () => {
    const first = start();
    await first.says(/connected/);
    const [before] = [...plane.hosts.entries()];
    assert.equal(await first.stop(), 0);
    plane.hosts.clear();
    // With its old identity no token helps: it is not even looked at.
    const second = start();
    await second.says(/shim\.unauthorised/);
    assert.equal(plane.hosts.size, 0);
    await second.stop();
    assert.match(enrolAgain, /host\.json/);
    await rename(join(state, "host.json"), join(state, "host.json.old"));
    const third = start();
    await third.says(/connected as alpha/);
    const [after] = [...plane.hosts.entries()];
    assert.ok(before && after);
    assert.equal(after[1].publicKey, before[1].publicKey, "the key is kept");
    assert.equal(await third.stop(), 0);
  });

  test("an enrolment whose answer was lost is repeated with the same key", async () => {
    const keys: unknown[] = [];
    plane.decide.enrol = (body) => {
      keys.push((body as { publicKey: string }).publicKey);
      return { status: 502, body: "gateway" };
    };
    assert.equal(await start().ended, 64);
    const { enrol: _, ...rest } = plane.decide;
    plane.decide = rest;
    const second = start();
    await second.says(/connected/);
    assert.equal([...plane.hosts.values()][0]?.publicKey, keys[0]);
  });

  test("what the control plane says against an enrolment is said with code, cause and action", async () => {
    plane.decide.enrol = () => ({
      status: 409,
      body: { code: "host.nameTaken", cause: "There is a host alpha already.", action: "Choose another name." },
    });
    const running = start();
    assert.equal(await running.ended, 1);
    assert.deepEqual(running.lines, [
      "vmferry shim: host.nameTaken: There is a host alpha already.",
      "  next: Choose another name.",
    ]);
  });

  test("not enrolled and no token; nobody there; a wrong address; a damaged key", async () => {
    const noToken = start({ joinToken: null });
    assert.equal(await noToken.ended, 1);
    assert.match(noToken.lines.join(), /token\.invalid.*not enrolled.*join-token create/s);

    const gone = await FakeControlPlane.start();
    const { url } = gone;
    await gone.stop();
    const nobody = start({ url });
    assert.equal(await nobody.ended, 1);
    assert.match(nobody.lines.join(), /host\.offline.*ECONNREFUSED/s);

    assert.equal(await start({ url: "alpha:8787/x" }).ended, 64);
    assert.equal(await start({ libvirt: "xen:///" }).ended, 64);
    assert.equal(await start({ allowPaths: ["images"] }).ended, 64);

    const sound = start();
    await sound.says(/connected/);
    await sound.stop();
    await writeFile(join(state, "host-key.pem"), "nonsense");
    const damaged = start();
    assert.equal(await damaged.ended, 1);
    assert.match(damaged.lines.join(), /shim\.unauthorised.*host-key\.pem/s);
  });

  test("two on one state directory: the second is refused, and let in when the first has ended", async () => {
    const first = start();
    await first.says(/connected/);
    const second = start();
    assert.equal(await second.ended, 1);
    assert.match(second.lines.join(), /Another shim uses the state directory/);
    await first.stop();
    await start().says(/connected/);
  });

  test("a refused session is said once with its action, and the shim stays and tries on", async () => {
    plane.decide.onHello = () => ({
      type: "refused",
      fault: { code: "shim.incompatible", cause: "Too old.", action: "Update the shim.", retry: "person" },
    });
    const running = start();
    await running.says(/shim\.incompatible: Too old/);
    await running.says(/next: Update the shim/);
    assert.equal(await running.stop(), 0);
  });

  test("cut: it comes back by itself, and heartbeats go on", async () => {
    const running = start();
    await plane.message("heartbeat");
    plane.socket.cut();
    await plane.until(
      () => plane.sockets.length === 2 && plane.socket.messages.some((each) => each.type === "heartbeat"),
    );
    assert.equal(running.lines.filter((line) => line.includes("connected as")).length, 2);
  });

  test("a command without libvirt fails with its cause; the report is repeated over a cut until acknowledged, and kept over a restart", async () => {
    const command: Command = {
      id: `${id}:unstage:1`,
      migrationId: id,
      epoch: 1,
      domain: { uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809", name: "web" },
      kind: "export",
    };
    const exported: Command = { ...command, id: `${id}:export:1` };
    plane.decide.onMessage = (message) => message.type === "report";
    const first = start();
    await first.says(/connected/);
    plane.socket.send({ type: "command", command: exported });
    const { report } = await plane.message("report");
    assert.ok(!report.result.ok);
    assert.equal(report.result.fault.code, "libvirt.unreachable");
    plane.socket.cut();
    assert.deepEqual((await plane.message("report", 2)).report, report);
    await first.stop();
    const second = start();
    await second.says(/connected/);
    assert.deepEqual((await plane.message("report", 3)).report, report);
    plane.socket.send({ type: "command", command: exported });
    assert.deepEqual((await plane.message("report", 4)).report, report);
    await second.stop();
  });

  test("a query is answered, with a fault when libvirt is away", async () => {
    const running = start();
    await running.says(/connected/);
    const domain = { uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809", name: "web" };
    plane.socket.send({ type: "query", queryId: "q1", query: { kind: "describeDomain", domain } });
    plane.socket.send({ type: "query", queryId: "q2", query: { kind: "inspectSource", domain } });
    const answers = [await plane.message("answered"), await plane.message("answered", 2)];
    assert.deepEqual(answers.map(({ queryId }) => queryId).sort(), ["q1", "q2"]);
    for (const { answer } of answers) assert.ok(!answer.ok && answer.fault.code === "libvirt.unreachable");
  });

  test("a bundle in the state directory that belongs to no migration is swept at the start", async () => {
    const running = start();
    await running.says(/connected/);
    await running.stop();
    const path = join(state, "bundles", `${id}.bundle`);
    await writeFile(path, createHash("sha256").digest());
    await start().says(/connected/);
    await assert.rejects(stat(path), { code: "ENOENT" });
  });
});

describe("arguments", () => {
  test("from the command line, then from the environment", () => {
    const env = { VMFERRY_URL: "http://env:1", VMFERRY_NAME: "env", VMFERRY_ALLOW_PATH: "/a:/b" };
    assert.deepEqual(parseShimArguments(["--url", "http://arg:1", "--state", "/s"], env), {
      help: false,
      options: { url: "http://arg:1", name: "env", stateDir: "/s", labels: {}, allowPaths: ["/a", "/b"] },
    });
    assert.deepEqual(parseShimArguments(["-h"], {}), { help: true });
    assert.throws(() => parseShimArguments([], {}), /--url URL is missing/);
    assert.throws(() => parseShimArguments(["--url", "x", "--force"], {}), /--force/);
    assert.throws(() => parseShimArguments(["--url", "x", "extra"], {}), /extra/);
  });

  test("the version is the package's", async () => {
    const text = await readFile(join(import.meta.dirname, "../../package.json"), "utf8");
    assert.equal((JSON.parse(text) as { version: string }).version, shimVersion);
  });
});
