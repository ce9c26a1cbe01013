/** `vmferry up` as people meet it: started, stopped, killed, started again, and cut off from its stores. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { createPrivateKey } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { createServer as createHttpServer } from "node:http";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import * as z from "zod/mini";
import { openDynalite } from "#functions/cli/up-dynalite";
import { endOrphan, processOf } from "#functions/cli/up-process";
import { publicKeySchema } from "#protocol/signed";
import { publicKeyOf } from "#shim/peer/seal";

interface Running {
  child: ChildProcess;
  url: string;
  output(): string;
}

let folder: string;
const children = new Set<ChildProcess>();
const data = () => join(folder, "data");

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-up-"));
});
afterEach(async () => {
  for (const child of children) {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
  }
  children.clear();
  await rm(data(), { recursive: true, force: true });
});
after(() => rm(folder, { recursive: true }));

function launch(options: { listen?: string; dynamodb?: string; s3?: string; dataDir?: string } = {}) {
  const program = join(import.meta.dirname, "up-program.ts");
  const all = { listen: "127.0.0.1:0", dataDir: data(), ...options };
  const child = spawn(process.execPath, [program, JSON.stringify(all)], {
    env: { ...process.env, VMFERRY_CONFIG: join(folder, "config.json"), HOME: folder },
    stdio: ["ignore", "pipe", "pipe"],
  });
  children.add(child);
  let output = "";
  for (const stream of [child.stdout, child.stderr])
    stream?.on("data", (chunk: Buffer) => {
      output += chunk.toString();
    });
  return { child, output: () => output };
}

async function start(options: Parameters<typeof launch>[0] = {}): Promise<Running> {
  const { child, output } = launch(options);
  const ready = /vmferry: ready on (\S+)/;
  while (!ready.test(output())) {
    if (child.exitCode !== null) assert.fail(`it ended: ${output()}`);
    await Promise.race([once(child.stdout ?? child, "data"), once(child, "exit")]);
  }
  return { child, url: ready.exec(output())?.[1] ?? "", output };
}

async function refused(options: Parameters<typeof launch>[0] = {}): Promise<{ code: number | null; output: string }> {
  const { child, output } = launch(options);
  if (child.exitCode === null) await once(child, "close");
  return { code: child.exitCode, output: output() };
}

async function kill(running: Running, signal: "SIGKILL" | "SIGTERM"): Promise<void> {
  const gone = once(running.child, "exit");
  running.child.kill(signal);
  await gone;
}

async function api(running: Running, method: string, path: string, body?: unknown) {
  const token = (await readFile(join(data(), "admin-token"), "utf8")).trim();
  const response = await fetch(`${running.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, text };
}

const makeToken = (running: Running) => api(running, "POST", "/v1/join-tokens", { uses: 1, ttlMs: 3_600_000 });

/** What a host that enrols under this name is told; seen as workerd computes it from DIR/ticket-key. */
async function controlKeyOf(running: Running, name: string): Promise<string> {
  const made = z.object({ token: z.string() }).parse(JSON.parse((await makeToken(running)).text));
  const publicKey = `${"A".repeat(42)}${name === "alpha" ? "A" : "E"}`;
  const { status, text } = await api(running, "POST", "/v1/enrolments", { token: made.token, name, publicKey });
  assert.equal(status, 201, text);
  const { controlKey } = z.object({ controlKey: publicKeySchema }).parse(JSON.parse(text));
  const pkcs8 = Buffer.from(await readFile(join(data(), "ticket-key"), "utf8"), "base64");
  assert.equal(controlKey, publicKeyOf(createPrivateKey({ key: pkcs8, format: "der", type: "pkcs8" })));
  return controlKey;
}

const tokens = (running: Running) => api(running, "GET", "/v1/join-tokens");

async function runtime(): Promise<{ pid: number; startTicks: string }> {
  const found = processOf(await readFile(join(data(), "workerd.stat"), "utf8"));
  assert.ok(found, "workerd left its line");
  return found;
}

async function runtimeRuns(one: { pid: number; startTicks: string }): Promise<boolean> {
  const line = await readFile(`/proc/${one.pid}/stat`, "utf8").catch(() => "");
  return processOf(line)?.startTicks === one.startTicks && !/\) Z/.test(line);
}

test("it serves, keeps its secrets to its owner, tells the client, and ends cleanly", async () => {
  const running = await start();
  assert.equal((await fetch(`${running.url}/healthz`)).status, 200);
  assert.equal((await fetch(`${running.url}/v1/hosts`)).status, 401);
  assert.equal((await api(running, "GET", "/v1/hosts")).status, 200);
  assert.equal((await stat(data())).mode & 0o777, 0o700);
  for (const file of ["admin-token", "s3-key", "ticket-key"])
    assert.equal((await stat(join(data(), file))).mode & 0o777, 0o600, file);
  const token = (await readFile(join(data(), "admin-token"), "utf8")).trim();
  assert.match(token, /^vmk_/);
  assert.deepEqual(JSON.parse(await readFile(join(folder, "config.json"), "utf8")), { url: running.url, token });
  assert.equal((await stat(join(folder, "config.json"))).mode & 0o777, 0o600);
  const workerd = await runtime();
  await kill(running, "SIGTERM");
  assert.equal(running.child.exitCode, 0, running.output());
  assert.equal(await runtimeRuns(workerd), false, "workerd is gone");
  assert.ok(!running.output().includes(token), "the token is not printed (I9)");
});

test("the door leads to the control plane only: none of the runtime's own pages, no bucket without a signature", async () => {
  const running = await start();
  const paths = [
    "/cdn-cgi/local/r2/public/vmferry/bundles/x",
    "/cdn-cgi/local/r2/s3/vmferry",
    "/cdn-cgi/platform-proxy",
    "/cdn-cgi/handler/scheduled",
    "/cdn-cgi/mf/scheduled",
    "/cdn-cgi/explorer",
  ];
  for (const path of paths) {
    const response = await fetch(`${running.url}${path}`);
    assert.equal(response.status, 404, path);
    // Answered by our own app and not by the runtime in front of it.
    assert.match(await response.text(), /urn:vmferry:problem:request\.notFound/, path);
  }
  assert.equal((await fetch(`${running.url}/s3/vmferry/bundles/x`)).status, 403);
  assert.equal((await fetch(`${running.url}/s3/vmferry?list-type=2`)).status, 403);
});

test("a counted request is counted exactly", async () => {
  const running = await start();
  const figure = async () => {
    const { text } = await api(running, "GET", "/metrics");
    return Number(/operation="GetItem"\} (\d+)/.exec(text)?.[1] ?? 0);
  };
  const earlier = await figure();
  for (let at = 0; at < 3; at += 1) await api(running, "GET", "/v1/migrations/m_01JD0000000000000000000000");
  assert.equal((await figure()) - earlier, 3);
});

test("kill -9 and start again on the same port: nothing that was answered is lost", async () => {
  const first = await start();
  const { port } = new URL(first.url);
  assert.equal((await makeToken(first)).status, 201);
  const controlKey = await controlKeyOf(first, "alpha");
  const before = await tokens(first);
  const admin = await readFile(join(data(), "admin-token"), "utf8");
  const workerd = await runtime();
  await kill(first, "SIGKILL");
  const second = await start({ listen: `127.0.0.1:${port}` });
  assert.equal(await runtimeRuns(workerd), false, "the killed one's workerd holds nothing any more");
  assert.equal(await readFile(join(data(), "admin-token"), "utf8"), admin);
  assert.deepEqual(await tokens(second), before);
  // Hosts keep it and take no other.
  assert.equal(await controlKeyOf(second, "beta"), controlKey);
  await kill(second, "SIGTERM");
});

test("a workerd that outlived its parent is ended by pid and start time, and nobody else is", async () => {
  const running = await start();
  const workerd = await runtime();
  assert.equal(await endOrphan(data()), true);
  assert.equal(await runtimeRuns(workerd), false);
  // The same pid with another start time is another process: this test's own.
  const { writeFile } = await import("node:fs/promises");
  const self = (await readFile("/proc/self/stat", "utf8")).split(" ");
  self[21] = String(Number(self[21]) + 1);
  await writeFile(join(data(), "workerd.stat"), self.join(" "));
  assert.equal(await endOrphan(data()), false);
  await kill(running, "SIGKILL");
});

test("two on one folder: the second is refused, says by whom, and harms nothing", async () => {
  const first = await start();
  const { code, output } = await refused();
  assert.equal(code, 69);
  assert.match(output, new RegExp(`up\\.dataInUse: .*process ${first.child.pid}`));
  assert.match(output, /next: /);
  assert.equal((await api(first, "GET", "/v1/hosts")).status, 200);
});

test("a busy port is refused with who to ask", async () => {
  const server = createHttpServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const { code, output } = await refused({ listen: `127.0.0.1:${address.port}` });
  server.close();
  assert.equal(code, 69);
  assert.match(output, new RegExp(`up\\.portBusy: .*127\\.0\\.0\\.1:${address.port}`));
  assert.match(output, /next: .*ss -ltnp/);
  // Nothing is left behind that would refuse the next try.
  await kill(await start(), "SIGTERM");
});

test("an address that is none is a usage error", async () => {
  const { code, output } = await refused({ listen: "8787" });
  assert.equal(code, 64);
  assert.match(output, /is not an address with a port/);
});

describe("with a store elsewhere", () => {
  let dynalite: Awaited<ReturnType<typeof openDynalite>>;
  let proxy: Cuttable;
  before(async () => {
    dynalite = await openDynalite(join(folder, "elsewhere"));
    proxy = await openProxy(Number(new URL(dynalite.endpoint).port));
  });
  after(async () => {
    await proxy.cut();
    await dynalite.close();
  });

  test("cut off it says store.unreachable, and it recovers by itself", async () => {
    const running = await start({ dynamodb: proxy.url });
    assert.equal((await makeToken(running)).status, 201);
    await proxy.cut();
    const cut = await tokens(running);
    assert.equal(cut.status, 503);
    assert.match(cut.text, /"code":"store\.unreachable"/);
    assert.equal((await fetch(`${running.url}/healthz`)).status, 200, "the process itself is well");
    await proxy.heal();
    assert.equal((await tokens(running)).status, 200);
  });

  test("not reachable at the start it is refused with the cause", async () => {
    const { code, output } = await refused({ dynamodb: "http://127.0.0.1:1" });
    assert.equal(code, 69);
    assert.match(output, /store\.unreachable: DynamoDB could not be reached/);
  });
});

interface Cuttable {
  url: string;
  cut(): Promise<void>;
  heal(): Promise<void>;
}

async function openProxy(targetPort: number): Promise<Cuttable> {
  const sockets = new Set<Socket>();
  const listen = (port: number) =>
    new Promise<Server>((resolve) => {
      const server = createServer((inner) => {
        const outer = connect(targetPort, "127.0.0.1");
        for (const socket of [inner, outer]) {
          sockets.add(socket);
          socket.on("error", () => socket.destroy()).on("close", () => sockets.delete(socket));
        }
        inner.pipe(outer);
        outer.pipe(inner);
      }).listen(port, "127.0.0.1", () => resolve(server));
    });
  let server = await listen(0);
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const { port } = address;
  return {
    url: `http://127.0.0.1:${port}`,
    async cut() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
    async heal() {
      server = await listen(port);
    },
  };
}
