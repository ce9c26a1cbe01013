/** `vmferry cloud init`: secrets made once and kept, what is printed can be typed as it stands, and the first join command works. */
import assert from "node:assert/strict";
import { createHash, createPrivateKey } from "node:crypto";
import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { createTicketSigner } from "#functions/ticket-signer";
import { adminToken, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run } from "#test/fake/memory-terminal";

let home: string;
let fleet: MemoryFleet;
let server: MemoryServer;
before(async () => {
  home = await mkdtemp(join(tmpdir(), "vmferry-cloud-"));
  fleet = await memoryFleet();
  server = new MemoryServer(fleet.app.fetch);
  await server.start();
});
after(async () => {
  await server.stop();
  await rm(home, { recursive: true });
});
beforeEach(() => rm(join(home, ".config"), { recursive: true, force: true }));

const folder = () => join(home, ".config", "vmferry", "stages", "prod");
const cloudInit = (...words: string[]) =>
  run(["cloud", "init", "--stage", "prod", ...words], { env: { HOME: home, PATH: `${home}/bin:${process.env.PATH}` } });
const secret = async (name: string) => (await readFile(join(folder(), name), "utf8")).trim();

describe("before the deployment", () => {
  test("the secrets are made once, readable by their owner only, and usable", async () => {
    const first = await cloudInit();
    assert.equal(first.exit, 0, first.err);
    assert.equal((await stat(folder())).mode & 0o777, 0o700);
    for (const name of ["admin-token", "ticket-key", "secrets.env"])
      assert.equal((await stat(join(folder(), name))).mode & 0o777, 0o600, name);
    const [token, key] = [await secret("admin-token"), await secret("ticket-key")];
    assert.equal(
      createPrivateKey({ key: Buffer.from(key, "base64"), format: "der", type: "pkcs8" }).asymmetricKeyType,
      "ed25519",
    );
    await createTicketSigner(key).publicKey();
    const digest = createHash("sha256").update(token).digest("hex");
    assert.equal(await secret("secrets.env"), `AdminTokenSha256=${digest}\nTicketKey=${key}`);
    for (const text of [first.out, first.err]) assert.ok(!text.includes(token) && !text.includes(key), "I9");
    await cloudInit();
    assert.deepEqual([await secret("admin-token"), await secret("ticket-key")], [token, key]);
  });

  test("what is printed are the commands to type, in their order", async () => {
    const { out } = await cloudInit();
    assert.deepEqual(
      out
        .trim()
        .split("\n")
        .map((line) => line.split("   #")[0]),
      [
        `npx sst secret load ${folder()}/secrets.env --stage prod`,
        "npx sst deploy --stage prod",
        "vmferry cloud init --stage prod --url URL",
      ],
    );
  });

  test("--set hands them to SST, and says so when that fails", async () => {
    await mkdir(join(home, "bin"), { recursive: true });
    const npx = join(home, "bin", "npx");
    await writeFile(npx, `#!/bin/sh\necho "$@" > ${home}/said\n`);
    await chmod(npx, 0o755);
    const set = await cloudInit("--set");
    assert.equal(set.exit, 0, set.err);
    assert.equal(
      (await readFile(join(home, "said"), "utf8")).trim(),
      `sst secret load ${folder()}/secrets.env --stage prod`,
    );
    assert.doesNotMatch(set.out, /secret load/);
    await writeFile(npx, "#!/bin/sh\nexit 3\n");
    const failed = await cloudInit("--set");
    assert.equal(failed.exit, 69);
    assert.match(failed.err, /cloud\.secretsNotSet: .* \(3\)/);
    await rm(npx);
  });

  test("a stage's name is one", async () => {
    for (const stage of ["../x", "Prod", "", "a".repeat(40)])
      assert.equal((await run(["cloud", "init", "--stage", stage], { env: { HOME: home } })).exit, 64, stage);
    assert.equal((await run(["cloud", "init"], { env: { HOME: home } })).exit, 64);
  });
});

describe("after it", () => {
  test("the join command is printed, works, and the other commands find the control plane", async () => {
    await cloudInit();
    await writeFile(join(folder(), "admin-token"), `${adminToken}\n`);
    const ran = await cloudInit("--url", `${server.url}/`);
    assert.equal(ran.exit, 0, ran.err);
    const [, token] = new RegExp(`^vmferry shim --url ${server.url} --join (vmj_\\S+)$`, "m").exec(ran.out) ?? [];
    const body = JSON.stringify({ token, name: "alpha", publicKey: "A".repeat(43) });
    const headers = { "content-type": "application/json" };
    const enrolled = await fetch(`${server.url}/v1/enrolments`, { method: "POST", headers, body });
    assert.equal(enrolled.status, 201, await enrolled.text());
    const hosts = await run(["hosts"], { env: { HOME: home } });
    assert.equal(hosts.exit, 0, hosts.err);
    assert.match(hosts.out, /alpha/);
  });

  test("another admin token, a wrong address and one in clear are told apart", async () => {
    await cloudInit();
    const stranger = await cloudInit("--url", server.url);
    assert.equal(stranger.exit, 77);
    assert.match(stranger.err, /does not know the admin token[\s\S]*next: Load the secrets/);
    assert.equal((await cloudInit("--url", "http://127.0.0.1:1")).exit, 69);
    const clear = await cloudInit("--url", "http://vmferry.example");
    assert.equal(clear.exit, 64);
    assert.match(clear.err, /https/);
  });
});
