/** Webhooks of the real Worker in `vmferry up`: posted by workerd to a receiver beside it soon after something happened, and never to a metadata service. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import * as z from "zod/mini";
import { webhookRowSchema, webhookTestedSchema, webhookWrittenSchema } from "#functions/http/webhook-resource";
import { isSignedBy, isTimely, secretBytes } from "#functions/trigger-signature";
import { openReceiver, type Receiver } from "#test/fake/webhook-receiver";

let folder: string;
let child: ChildProcess;
let url: string;
let output = "";
let receiver: Receiver;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-webhooks-up-"));
  receiver = await openReceiver();
  const options = { listen: "127.0.0.1:0", dataDir: join(folder, "data") };
  child = spawn(process.execPath, [join(import.meta.dirname, "up-program.ts"), JSON.stringify(options)], {
    env: { ...process.env, VMFERRY_CONFIG: join(folder, "config.json"), HOME: folder },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ready = /vmferry: ready on (\S+)/;
  for (const stream of [child.stdout, child.stderr])
    stream?.on("data", (chunk: Buffer) => {
      output += chunk.toString();
    });
  while (!ready.test(output)) {
    if (child.exitCode !== null) assert.fail(`it ended: ${output}`);
    await Promise.race([once(child.stdout ?? child, "data"), once(child, "exit")]);
  }
  url = ready.exec(output)?.[1] ?? "";
});
after(async () => {
  if (child.exitCode === null && child.signalCode === null) {
    child.kill("SIGTERM");
    await once(child, "exit");
  }
  await receiver.close();
  await rm(folder, { recursive: true });
});

async function api(method: string, path: string, body?: unknown) {
  const token = (await readFile(join(folder, "data", "admin-token"), "utf8")).trim();
  const response = await fetch(`${url}${path}`, {
    method,
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, text: await response.text() };
}

test("what happens is posted soon, signed; a redirect and a metadata service are not followed; no secret lies in a file or a log", async () => {
  for (const inner of ["http://169.254.169.254/latest", "https://[::ffff:a9fe:a9fe]/", "http://example.com/"])
    assert.equal((await api("PUT", "/v1/webhooks/x", { url: inner })).status, 400, inner);
  const made = await api("PUT", "/v1/webhooks/ops", { url: `${receiver.url}/hook`, types: ["request"] });
  assert.equal(made.status, 201, made.text);
  const { secret } = webhookWrittenSchema.parse(JSON.parse(made.text));
  const bytes = secretBytes(secret ?? "");
  assert.ok(secret !== null && bytes !== null);

  const tested = webhookTestedSchema.parse(JSON.parse((await api("POST", "/v1/webhooks/ops/test")).text));
  assert.deepEqual([tested.status, tested.taken, tested.error], [204, true, null]);
  const trial = await receiver.next();
  assert.equal(trial.headers["webhook-id"], tested.eventId);

  receiver.answer = { status: 302, headers: { location: `${receiver.url}/elsewhere` } };
  const redirected = webhookTestedSchema.parse(JSON.parse((await api("POST", "/v1/webhooks/ops/test")).text));
  assert.deepEqual([redirected.status, redirected.taken], [302, false]);
  await receiver.next();
  assert.ok(receiver.heard.every(({ path }) => path === "/hook"));
  receiver.answer = { status: 200 };

  // No minute's timer comes so soon: it was rung for.
  assert.equal((await api("POST", "/v1/join-tokens", { uses: 1, ttlMs: 3_600_000 })).status, 201);
  let told = "";
  do {
    const { headers, body } = await receiver.next();
    const [id = "", timestamp = "", signature = ""] = ["id", "timestamp", "signature"].map((part) =>
      String(headers[`webhook-${part}`]),
    );
    assert.ok(await isSignedBy({ id, timestamp, signature, body }, [{ kind: "secret", bytes, counts: true }]));
    assert.ok(isTimely({ id, timestamp }, Date.now()));
    assert.equal(headers["content-type"], "application/cloudevents+json");
    const event = z.object({ id: z.literal(id), data: z.looseObject({ path: z.string() }) });
    told = event.parse(JSON.parse(new TextDecoder().decode(body))).data.path;
  } while (told !== "/v1/join-tokens");

  const shown = await api("GET", "/v1/webhooks/ops");
  assert.ok(webhookRowSchema.parse(JSON.parse(shown.text)).delivery.delivered > 0);
  const plain = [secret.slice(6), Buffer.from(bytes).toString("hex")];
  for (const text of [output, shown.text]) for (const form of plain) assert.ok(!text.includes(form));
  for (const entry of await readdir(join(folder, "data"), { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const content = await readFile(join(entry.parentPath, entry.name));
    for (const form of [...plain, Buffer.from(bytes)]) assert.ok(!content.includes(form), entry.name);
  }
});
