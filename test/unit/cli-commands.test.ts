/** The other commands against the real app, and what every command shares: usage, help, configuration, refusals. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { commands } from "#functions/cli/command-table";
import { version } from "#functions/version";
import type { BundleEntry } from "#protocol/bundle";
import { writeBundle } from "#protocol/bundle-writer";
import { adminToken, domainNamed, hostId, type MemoryFleet, memoryFleet, webUuid } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run, says } from "#test/fake/memory-terminal";

let fleet: MemoryFleet;
let server: MemoryServer;
let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-cli-"));
});
after(() => rm(folder, { recursive: true }));
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
  server = new MemoryServer(fleet.app.fetch);
  await server.start();
});
afterEach(() => server.stop());

const vmferry = (...argv: string[]) => run(argv, { env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken } });

describe("usage", () => {
  test("help is on stdout with 0, nothing at all is on stderr with 64", async () => {
    const help = await run(["--help"]);
    assert.equal(help.exit, 0);
    for (const { words } of commands) assert.ok(help.out.includes(words.join(" ")));
    const bare = await run([]);
    assert.deepEqual([bare.exit, bare.out], [64, ""]);
    const group = await run(["host"]);
    assert.deepEqual([group.exit, group.out], [64, ""]);
    assert.match(group.err, /vmferry host cordon HOST/);
  });

  for (const { words, positionals, options } of commands) {
    const name = words.join(" ");
    test(`${name}: --help says every option; an unknown one is 64 with the usage`, async () => {
      const help = await run([...words, "--help"]);
      assert.equal(help.exit, 0, help.err);
      for (const option of [...Object.keys(options).map((option) => `--${option}`), ...positionals])
        assert.ok(help.out.includes(option), option);
      const unknown = await run([...words, ...positionals, "--no-such-thing"]);
      assert.deepEqual([unknown.exit, unknown.out], [64, ""]);
      assert.match(unknown.err, /^usage: vmferry /);
      assert.match(unknown.err, /vmferry: usage: .*no-such-thing/);
    });
    test(`${name}: one argument too many or too few is 64`, async () => {
      assert.equal((await run([...words, ...positionals, "more"])).exit, 64);
      if (positionals.length > 0) says(await run([...words, ...positionals.slice(1)]), 64, /is missing/);
    });
  }

  test("values that cannot be are 64", async () => {
    for (const argv of [
      ["migrate", "web"],
      ["migrate", "web", "--to", "host2", "--bandwidth", "fast"],
      ["migrate", "web", "--to", "host2", "--bandwidth", "0"],
      ["join-token", "create", "--ttl", "tomorrow"],
      ["join-token", "create", "--uses", "1.5"],
      ["bundle", "export", "web"],
      ["nonsense"],
      ["host", "nonsense"],
    ]) {
      const ran = await vmferry(...argv);
      assert.deepEqual([ran.exit, ran.out], [64, ""], argv.join(" "));
      assert.match(ran.err, /vmferry: usage: /);
      assert.match(ran.err, / {2}next: vmferry/);
    }
  });

  test("--version is the package's", async () => {
    const { version: packaged } = JSON.parse(await readFile(join(import.meta.dirname, "../../package.json"), "utf8"));
    assert.equal(version, packaged);
    assert.equal((await run(["--version"])).out, "0.0.0\n");
  });

  test("a defect is 70, said as one, and never thrown", async () => {
    server.fetch = () => Response.json({ items: "no" });
    says(await vmferry("hosts"), 70, /api\.malformed/);
    server.fetch = () => new Response("<html>", { status: 502 });
    says(await vmferry("hosts"), 69, /api\.unreachable.*HTTP 502/);
  });
});

describe("configuration", () => {
  test("is read from the file that `vmferry up` writes; the environment comes first", async () => {
    const path = join(folder, "config.json");
    await writeFile(path, JSON.stringify({ url: server.url, token: adminToken }));
    says(await run(["hosts"], { env: { VMFERRY_CONFIG: path } }), 0, /host1/);
    says(await run(["hosts"], { env: { VMFERRY_CONFIG: path, VMFERRY_TOKEN: "wrong" } }), 77, /request\.unauthorised/);
  });

  test("sends no token to another address than it was given for", async () => {
    const path = join(folder, "config.json");
    await writeFile(path, JSON.stringify({ url: "http://127.0.0.1:9", token: adminToken }));
    let asked = 0;
    server.fetch = () => {
      asked += 1;
      return new Response(null, { status: 500 });
    };
    says(await run(["hosts"], { env: { VMFERRY_CONFIG: path, VMFERRY_URL: server.url } }), 64, /There is no token for/);
    assert.equal(asked, 0);
  });

  test("missing, broken or of another scheme is 64 and says what to do", async () => {
    const path = join(folder, "broken.json");
    says(
      await run(["hosts"], { env: { VMFERRY_CONFIG: join(folder, "none.json") } }),
      64,
      /config\.missing/,
      /vmferry up/,
    );
    await writeFile(path, "{");
    says(await run(["hosts"], { env: { VMFERRY_CONFIG: path } }), 64, /does not hold/);
    says(await run(["hosts"], { env: { VMFERRY_URL: "ftp://x", VMFERRY_TOKEN: "x" } }), 64, /not an http/);
  });
});

describe("the shim's address", () => {
  const state = () => join(folder, "state");

  test("from --url, else from VMFERRY_URL; without either it is a wrong usage", async () => {
    const env = { VMFERRY_URL: "ftp://from-the-environment" };
    says(await run(["shim", "--state", state()], { env }), 64, /ftp:\/\/from-the-environment/);
    says(await run(["shim", "--state", state(), "--url", "ftp://given"], { env }), 64, /ftp:\/\/given/);
    for (const none of [{}, { VMFERRY_URL: "" }])
      says(await run(["shim", "--state", state()], { env: none }), 64, /--url is missing/);
  });
});

describe("hosts and domains", () => {
  test("are tables, or JSON", async () => {
    await fleet.addHost(3, { lastSeenAt: null, facts: null, cordoned: true });
    says(
      await vmferry("hosts"),
      0,
      /^HOST +STATE +LIBVIRT/m,
      /^host1 +connected +9\.0\.0 +7\.2\.22 +8 +15 GiB/m,
      /^host3 +never seen, cordoned +- /m,
    );
    assert.equal(JSON.parse((await vmferry("hosts", "--json")).out).length, 3);
    says(await vmferry("domains"), 0, /^web +host1 +running +1\.0 GiB +2 +5 +0 /m);
    says(await vmferry("domains", "--host", "host2"), 0, /host2 has no domain/);
    says(await vmferry("domains", "--host", "nope"), 3, /host\.absent/);
  });

  test("a host is shown, cordoned, uncordoned, removed", async () => {
    says(await vmferry("host", "show", "host1"), 0, /^uuid +0000/m, /^ {2}web /m);
    says(await vmferry("host", "cordon", "host2"), 0, /host2: connected, cordoned/);
    says(await vmferry("host", "uncordon", "host2"), 0, /host2: connected$/m);
    says(await vmferry("host", "remove", "host2"), 0, /removed/);
    says(await vmferry("host", "show", "host2"), 3, /^vmferry: host\.absent/m);
  });

  test("a domain is shown with its tree drawn, the current one marked", async () => {
    const node = (name: string, parent: string | null, current = false) => ({
      name,
      parent,
      current,
      state: "running",
      createdAt: null,
    });
    fleet.script.answers.set(`${hostId(1)} describeDomain`, {
      ok: true,
      body: {
        kind: "describeDomain",
        domain: domainNamed("web"),
        snapshotTree: [
          node("base", null),
          node("a", "base"),
          node("b", "base", true),
          node("a1", "a"),
          node("other", null),
        ],
        snapshotsTotal: 9,
      },
    });
    const ran = await vmferry("domain", "show", "web");
    assert.equal(ran.exit, 0, ran.err);
    const tree = ran.out.slice(ran.out.indexOf("snapshots "));
    assert.equal(
      tree,
      [
        "snapshots    9",
        "  ├─ base  running",
        "  │  ├─ a  running",
        "  │  │  └─ a1  running",
        "  │  └─ b  running  <- current",
        "  └─ other  running",
        "  ... and 4 more",
        "",
      ].join("\n"),
    );
  });

  test("a domain whose host is silent is shown without a tree and says so; one that is nowhere or twice is refused", async () => {
    says(await vmferry("domain", "show", webUuid), 0, /did not answer/);
    says(await vmferry("domain", "show", "nope"), 3, /domain\.absent/);
    await fleet.addHost(3, {}, [domainNamed("web", { uuid: webUuid.replace("1", "9") })]);
    says(await vmferry("domain", "show", "web"), 3, /domain\.notUnique/, /--host host1/);
    says(await vmferry("domain", "show", "web", "--host", "host3"), 0, /^host +host3$/m);
  });

  test("a name cannot talk to the terminal", async () => {
    await fleet.addHost(3, {}, [domainNamed("x\u001b]0;owned\u0007\u202e", { uuid: webUuid.replace("1", "9") })]);
    const { out } = await vmferry("domains");
    assert.ok(!out.includes("\u001b") && !out.includes("\u0007") && !out.includes("\u202e"));
  });
});

test("join-token create prints the token alone on stdout", async () => {
  const ran = await vmferry("join-token", "create", "--uses", "3", "--ttl", "2h");
  assert.match(ran.out, /^vmj_[0-9A-Z]{26}_[A-Za-z0-9_-]{43}\n$/);
  assert.match(ran.err, /enrols 3 hosts until 2026-11-22T12:00:00\.000Z/);
  const json = JSON.parse((await vmferry("join-token", "create", "--json")).out);
  assert.equal(json.usesLeft, 1);
  says(await vmferry("join-token", "create", "--ttl", "400d"), 64, /request\.malformed.*ttlMs/);
});

describe("bundles", () => {
  const xml = (name: string) => `<domainsnapshot><name>${name}</name></domainsnapshot>`;
  const entries: BundleEntry[] = [
    {
      kind: "domain",
      name: "web",
      parent: null,
      current: false,
      xml: `<domain type='kvm'><name>web</name><uuid>${webUuid}</uuid></domain>`,
    },
    { kind: "snapshot", name: "base", parent: null, current: false, xml: xml("base") },
    { kind: "snapshot", name: "next", parent: "base", current: true, xml: xml("next") },
  ];
  const bucket = new Map<string, Uint8Array>();

  async function bundleFile(name: string) {
    const path = join(folder, name);
    await rm(path, { force: true });
    const facts = await writeBundle({ path, counts: { snapshots: 2, checkpoints: 0, hasCurrent: true }, entries });
    return { path, facts };
  }

  /** The bucket behind the same port; refuses whoever brings the API's token. */
  function serveBucket(): void {
    bucket.clear();
    const api = server.fetch;
    server.fetch = async (request) => {
      const { pathname } = new URL(request.url);
      if (!pathname.startsWith("/bucket/")) return api(request);
      if (request.headers.has("authorization")) return new Response("two signatures", { status: 400 });
      const key = pathname.slice("/bucket/".length);
      if (request.method === "PUT") {
        if (request.headers.get("x-signed") !== "1") return new Response(null, { status: 403 });
        const bytes = new Uint8Array(await request.arrayBuffer());
        bucket.set(key, bytes);
        fleet.script.bucket.set(key, bytes.byteLength);
        return new Response(null);
      }
      const bytes = bucket.get(key);
      return bytes === undefined ? new Response(null, { status: 404 }) : new Response(Buffer.from(bytes));
    };
  }

  /** Answers the one command that is pushed. */
  function answering(body: Parameters<MemoryFleet["runner"]["reported"]>[1]["result"]): void {
    const { push } = fleet.ports.sockets;
    fleet.ports.sockets.push = async (id, message) => {
      if (message.type === "command")
        setImmediate(
          () =>
            void fleet.runner.reported(id, {
              commandId: message.command.id,
              migrationId: message.command.migrationId,
              epoch: 1,
              ms: 1,
              result: body,
            }),
        );
      return push(id, message);
    };
  }

  test("export writes a verified file and never overwrites one", async () => {
    const { path, facts } = await bundleFile("source.vmfb");
    serveBucket();
    const key = `bundles/${facts.sha256}`;
    bucket.set(key, await readFile(path));
    fleet.script.bucket.set(key, facts.bytes);
    answering({ ok: true, body: { kind: "export", bundle: { ...facts, key } } });
    const target = join(folder, "web.vmfb");
    says(
      await vmferry("bundle", "export", "web", "--host", "host1", "-o", target),
      0,
      /2 snapshots and 0 checkpoints of web/,
    );
    assert.equal(
      createHash("sha256")
        .update(await readFile(target))
        .digest("hex"),
      facts.sha256,
    );
    says(await vmferry("bundle", "export", "web", "-o", target), 64, /exists already/);
  });

  test("export of an altered object leaves no file", async () => {
    const { path, facts } = await bundleFile("source.vmfb");
    serveBucket();
    const key = `bundles/${facts.sha256}`;
    const bytes = await readFile(path);
    bytes[bytes.byteLength - 20] = (bytes[bytes.byteLength - 20] ?? 0) ^ 1;
    bucket.set(key, bytes);
    fleet.script.bucket.set(key, facts.bytes);
    answering({ ok: true, body: { kind: "export", bundle: { ...facts, key } } });
    const ran = await vmferry("bundle", "export", "web", "-o", join(folder, "altered.vmfb"));
    assert.notEqual(ran.exit, 0);
    assert.match(ran.err, /^vmferry: bundle\.(altered|malformed): /m);
    assert.ok(!(await readdir(folder)).some((name) => name.startsWith("altered.vmfb")));
  });

  test("export that failed on the host says the host's own cause", async () => {
    const fault = { code: "snapshot.changed", cause: "one more came", action: "again", retry: "safe" } as const;
    answering({ ok: false, fault });
    const ran = await vmferry("bundle", "export", "web", "-o", join(folder, "failed.vmfb"));
    says(ran, 3, /^vmferry: snapshot\.changed: one more came$/m);
  });

  test("show draws what is in it; a file that is none is refused", async () => {
    const { path, facts } = await bundleFile("show.vmfb");
    says(
      await vmferry("bundle", "show", path),
      0,
      /^domain +web$/m,
      /^ {2}└─ base {2}/m,
      /^ {5}└─ next .*<- current$/m,
    );
    const json = JSON.parse((await vmferry("bundle", "show", path, "--json")).out);
    assert.deepEqual([json.sha256, json.entries.length], [facts.sha256, 3]);
    await writeFile(path, "no bundle");
    says(await vmferry("bundle", "show", path), 3, /^vmferry: bundle\.malformed/m);
    says(await vmferry("bundle", "show", join(folder, "none")), 66, /file\.unreadable/);
  });

  test("restore uploads without the token and redefines on the host named", async () => {
    const { path, facts } = await bundleFile("restore.vmfb");
    serveBucket();
    answering({
      ok: true,
      body: { kind: "restoreBundle", tree: { snapshots: 2, checkpoints: 0, treeSha256: facts.treeSha256 } },
    });
    says(await vmferry("bundle", "restore", path, "--host", "host2"), 0, /web on host2: 2 snapshots/);
    assert.equal(bucket.get(`bundles/${facts.sha256}`)?.byteLength, facts.bytes);
    const [pushed] = fleet.script.pushed;
    assert.ok(pushed?.message.type === "command" && pushed.message.command.kind === "restoreBundle");
    assert.deepEqual(pushed.message.command.domain, { uuid: webUuid, name: "web" });
    const again = await vmferry("bundle", "restore", path, "--host", "host2");
    says(again, 0);
  });
});
