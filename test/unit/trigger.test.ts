/** What comes in at a trigger's door: signatures, tokens, forged, replayed, old, unknown; and what each source's message becomes. */
import assert from "node:assert/strict";
import { createHmac, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { beforeEach, describe, test } from "node:test";
import { ruleSchema } from "#core/rule";
import { hostShutdownEvent, isFor, isNamedBy, readTrigger } from "#core/trigger-event";
import { sha256Hex } from "#functions/rule-book";
import type { TriggerRequest } from "#functions/trigger-desk";
import { placeOf } from "#functions/trigger-desk";
import { isSignedBy, isTimely, publicKeyBytes, secretBytes } from "#functions/trigger-signature";
import { Fault } from "#protocol/fault";
import { alertRule, type RuleWorld, ruleHost, ruleWorld } from "#test/fake/rule-world";

const hookRule = {
  name: "hook",
  when: { kind: "webhook", matchers: { type: "host.failing" } },
  which: { fromTrigger: { label: "host" } },
};
const healthRule = {
  name: "health",
  when: { kind: "aws-health", matchers: { eventTypeCategory: ["issue", "scheduledChange"] } },
  which: { fromTrigger: { label: "entity", hostLabel: "instance-id" } },
};
const secret = randomBytes(32);
const secretText = `whsec_${secret.toString("base64")}`;
const body = JSON.stringify({
  type: "host.failing",
  timestamp: "2027-02-01T00:00:00Z",
  data: { labels: { host: "host1" } },
});

let world: RuleWorld;
beforeEach(async () => {
  world = ruleWorld();
  for (const rule of [hookRule, healthRule, alertRule]) await world.write(rule);
  await addSecret("hook", secretText);
});

async function addSecret(rule: string, text: string): Promise<void> {
  const head = { id: world.ids.ulid(), rule, createdAt: world.clock.now(), by: "test" };
  await world.rules.addCredential({ ...head, kind: "secret", value: await world.seal.seal(text, placeOf(head)) });
}
async function addToken(rule: string, text: string): Promise<void> {
  const value = await sha256Hex(text);
  await world.rules.addCredential({
    id: world.ids.ulid(),
    rule,
    kind: "token",
    value,
    createdAt: world.clock.now(),
    by: "test",
  });
}

const v1 = (key: Buffer, id: string, timestamp: string, text: string) =>
  `v1,${createHmac("sha256", key).update(`${id}.${timestamp}.${text}`).digest("base64")}`;
const nowSeconds = () => String(world.nowMs() / 1000);

interface Sent {
  rule?: string;
  kind?: TriggerRequest["kind"];
  text?: string;
  headers?: Record<string, string>;
}
const send = ({ rule = "hook", kind = "webhook", text = body, headers = {} }: Sent) =>
  world.desk.take({ rule, kind, header: (name) => headers[name], body: new TextEncoder().encode(text) });
function signed(
  id = "msg_1",
  change: { timestamp?: string; key?: Buffer; text?: string } = {},
): Record<string, string> {
  const timestamp = change.timestamp ?? nowSeconds();
  return {
    "webhook-id": id,
    "webhook-timestamp": timestamp,
    "webhook-signature": v1(change.key ?? secret, id, timestamp, change.text ?? body),
  };
}
const told = async (sent: Sent): Promise<string> => {
  try {
    await send(sent);
  } catch (error) {
    assert.ok(error instanceof Fault, String(error));
    return JSON.stringify(error.toBody());
  }
  return "taken";
};

describe("Standard Webhooks", () => {
  test("the specification's own example", async () => {
    // standard-webhooks: the vector that its libraries share.
    const key = secretBytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    assert.ok(key);
    const message = {
      id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
      timestamp: "1614265330",
      signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
      body: new TextEncoder().encode('{"test": 2432232314}'),
    };
    assert.equal(await isSignedBy(message, [{ kind: "secret", bytes: key, counts: true }]), true);
    assert.equal(await isSignedBy(message, [{ kind: "secret", bytes: key, counts: false }]), false);
    assert.equal(isTimely(message, 1614265330_000), true);
  });

  test("a signed message evacuates, once however often it is sent", async () => {
    assert.deepEqual(await send({ headers: signed() }), { accepted: 1, repeated: 0, ignored: 0 });
    assert.deepEqual(await send({ headers: signed() }), { accepted: 0, repeated: 1, ignored: 0 });
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("one of several signatures and one of several secrets is enough", async () => {
    const other = randomBytes(24);
    await addSecret("hook", `whsec_${other.toString("base64")}`);
    const headers = signed("msg_2", { key: other });
    headers["webhook-signature"] = `v1,${"A".repeat(43)}= v2,unknown ${headers["webhook-signature"]}`;
    assert.equal((await send({ headers })).accepted, 1);
    assert.equal((await send({ headers: signed("msg_3") })).accepted, 1);
  });

  test("Ed25519 by the sender's public key", async () => {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const raw = publicKey.export({ type: "spki", format: "der" }).subarray(-32);
    const text = `whpk_${raw.toString("base64")}`;
    assert.ok(publicKeyBytes(text));
    const head = { id: "k1", rule: "hook", createdAt: world.clock.now(), by: "test" };
    await world.rules.addCredential({ ...head, kind: "publicKey", value: text });
    const timestamp = nowSeconds();
    const signature = sign(null, Buffer.from(`msg_4.${timestamp}.${body}`), privateKey).toString("base64");
    const headers = { "webhook-id": "msg_4", "webhook-timestamp": timestamp, "webhook-signature": `v1a,${signature}` };
    assert.equal((await send({ headers })).accepted, 1);
    assert.notEqual(await told({ headers: { ...headers, "webhook-id": "msg_5" } }), "taken");
  });

  test("whoever cannot prove himself is told one and the same, and changes nothing", async () => {
    const refusals = new Map<string, string>();
    const attempt = async (name: string, sent: Sent) => refusals.set(name, await told(sent));
    await attempt("no headers", {});
    await attempt("another key", { headers: signed("msg_1", { key: randomBytes(32) }) });
    await attempt("nobody's key", { headers: signed("msg_1", { key: Buffer.alloc(32) }) });
    await attempt("an altered body", { headers: signed(), text: body.replace("host1", "host2") });
    await attempt("another id", { headers: { ...signed(), "webhook-id": "msg_2" } });
    await attempt("another time", { headers: { ...signed(), "webhook-timestamp": String(Number(nowSeconds()) + 1) } });
    await attempt("too old", { headers: signed("msg_1", { timestamp: String(Number(nowSeconds()) - 301) }) });
    await attempt("from the future", { headers: signed("msg_1", { timestamp: String(Number(nowSeconds()) + 301) }) });
    await attempt("a time that is none", { headers: signed("msg_1", { timestamp: "1e9" }) });
    await attempt("an id with a dot", { headers: signed("msg.1") });
    await attempt("not JSON, unsigned", { text: "{" });
    await attempt("an unknown rule", { rule: "nobody", headers: signed() });
    await attempt("no rule's name", { rule: "../../x", headers: signed() });
    await attempt("a rule of another kind", { rule: "failing-disk", headers: signed() });
    await attempt("a token where a signature is needed", { headers: { authorization: "Bearer x" } });
    await attempt("a token that is none", {
      rule: "failing-disk",
      kind: "alertmanager",
      headers: { authorization: "Bearer x" },
    });
    await attempt("no token", { rule: "failing-disk", kind: "alertmanager" });
    await attempt("an unknown rule's alert", {
      rule: "nobody",
      kind: "alertmanager",
      headers: { authorization: "Bearer x" },
    });
    await attempt("the signed kind at another door", { kind: "alertmanager", headers: signed() });
    assert.deepEqual(new Set(refusals.values()).size, 1, JSON.stringify([...refusals]));
    assert.match([...refusals.values()][0] ?? "", /request.unauthorised/);
    assert.equal(await world.rules.state("hook"), null);
    assert.equal(world.script.requests, 0);
  });

  test("a replay after its time is refused, whether it was heard or not", async () => {
    const headers = signed();
    await send({ headers });
    world.pass(301_000);
    assert.match(await told({ headers }), /request.unauthorised/);
  });

  test("only who has proved himself learns what is wrong with a body", async () => {
    for (const text of ["{", "[]", '{"type":"x"}', '{"type":"x","data":{"labels":[]}}'])
      assert.match(await told({ text, headers: signed("msg_1", { text }) }), /request.malformed/, text);
  });

  test("a deleted rule's sender is nobody", async () => {
    await world.book.change("hook", "test", { deleted: true });
    assert.match(await told({ headers: signed() }), /request.unauthorised/);
  });

  test("a key ties a firing to its resolve", async () => {
    const say = (action: string) =>
      JSON.stringify({ type: "host.failing", data: { action, key: "k", labels: { host: "host1" } } });
    await send({ text: say("fire"), headers: signed("m1", { text: say("fire") }) });
    await send({ text: say("resolve"), headers: signed("m2", { text: say("resolve") }) });
    assert.equal(world.script.cancelled.length, 1);
  });

  test("a secret is sealed: the store does not hold it, and elsewhere it does not open", async () => {
    const [stored] = await world.rules.credentials("hook");
    assert.ok(stored);
    assert.ok(
      !stored.value.includes(secret.toString("base64")) && !stored.value.includes(secret.toString("base64url")),
    );
    assert.equal(await world.seal.open(stored.value, placeOf(stored)), secretText);
    assert.equal(await world.seal.open(stored.value, placeOf({ ...stored, rule: "other" })), null);
    const altered = stored.value.replace(/\.(.)/, (_, first: string) => `.${first === "A" ? "B" : "A"}`);
    assert.equal(await world.seal.open(altered, placeOf(stored)), null);
  });

  test("secrets and keys of the wrong size are none", () => {
    assert.equal(secretBytes(`whsec_${Buffer.alloc(23).toString("base64")}`), null);
    assert.equal(secretBytes(`whsec_${Buffer.alloc(65).toString("base64")}`), null);
    assert.equal(secretBytes("plain"), null);
    assert.equal(publicKeyBytes(`whpk_${Buffer.alloc(31).toString("base64")}`), null);
  });
});

describe("Alertmanager", () => {
  const message = (fields: object = {}) =>
    JSON.stringify({
      version: "4",
      groupKey: '{}:{alertname="HostDiskFailing"}',
      truncatedAlerts: 0,
      status: "firing",
      receiver: "vmferry",
      orgId: 1,
      alerts: [
        {
          status: "firing",
          labels: { alertname: "HostDiskFailing", severity: "page", instance: "host2:9100" },
          annotations: { summary: "a disk fails" },
          startsAt: "2027-02-01T00:00:00.000Z",
          endsAt: "0001-01-01T00:00:00Z",
          fingerprint: "c1",
          silenceURL: "http://grafana",
        },
      ],
      ...fields,
    });
  const headers = { authorization: "Bearer vmt_good" };
  const ask = (text: string) => send({ rule: "failing-disk", kind: "alertmanager", text, headers });
  beforeEach(() => addToken("failing-disk", "vmt_good"));

  test("with the rule's token; keys that are not known are no matter", async () => {
    assert.deepEqual(await ask(message()), { accepted: 1, repeated: 0, ignored: 0 });
    assert.deepEqual(await ask(message()), { accepted: 0, repeated: 1, ignored: 0 });
    assert.deepEqual(world.evacuated(), ["host2"]);
  });

  test("the token of another rule opens nothing", async () => {
    await addToken("health", "vmt_other");
    const other = { authorization: "Bearer vmt_other" };
    assert.match(
      await told({ rule: "failing-disk", kind: "alertmanager", text: message(), headers: other }),
      /unauthorised/,
    );
  });

  test("another version, no fingerprint, too many alerts: refused, with the path and without the value", async () => {
    const alert = JSON.parse(message()).alerts[0];
    for (const fields of [
      { version: "3" },
      { alerts: [{ ...alert, fingerprint: "" }] },
      { alerts: Array(201).fill(alert) },
    ]) {
      const said = await told({ rule: "failing-disk", kind: "alertmanager", text: message(fields), headers });
      assert.match(said, /request.malformed/);
      assert.doesNotMatch(said, /host2/);
    }
    assert.deepEqual(world.evacuated(), []);
  });
});

describe("AWS Health", () => {
  const message = (detail: object = {}) => ({
    version: "0",
    id: "7bf73129-1428-4cd3-a780-95db273d1602",
    "detail-type": "AWS Health Event",
    source: "aws.health",
    account: "123456789012",
    time: "2027-02-01T00:00:00Z",
    region: "us-east-1",
    resources: ["i-abcd1111"],
    detail: {
      eventArn: "arn:aws:health:eu-central-1::event/EC2/AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED/x",
      service: "EC2",
      eventTypeCode: "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED",
      eventTypeCategory: "scheduledChange",
      eventScopeCode: "ACCOUNT_SPECIFIC",
      communicationId: "c0ffee",
      eventRegion: "eu-central-1",
      affectedEntities: [{ entityValue: "i-abcd1111" }, { entityValue: "i-abcd2222" }],
      affectedAccount: "123456789012",
      page: "1",
      totalPages: "1",
      ...detail,
    },
  });
  const headers = { authorization: "Bearer vmt_health" };
  const ask = (detail: object = {}) =>
    send({ rule: "health", kind: "aws-health", text: JSON.stringify(message(detail)), headers });
  beforeEach(async () => {
    await addToken("health", "vmt_health");
    world.script.hosts = [
      ruleHost(1, { labels: { "instance-id": "i-abcd1111" } }),
      ruleHost(2, { labels: { "instance-id": "i-other" } }),
    ];
  });

  test("entities become hosts by a label; the same communication of the same account is one", async () => {
    assert.deepEqual(await ask(), { accepted: 2, repeated: 0, ignored: 0 });
    assert.deepEqual(world.evacuated(), ["host1"]);
    // The entity that no host has is listened to again later; the one that has is not.
    assert.deepEqual(await ask(), { accepted: 0, repeated: 2, ignored: 0 });
    world.pass(11 * 60_000);
    assert.deepEqual(await ask(), { accepted: 1, repeated: 1, ignored: 0 });
    assert.deepEqual(world.evacuated(), ["host1"]);
    assert.equal((await ask({ eventTypeCategory: "accountNotification" })).ignored, 2);
  });

  test("the region is the one that is struck", () => {
    const read = readTrigger("aws-health", message(), { rule: ruleSchema.parse(healthRule), nowMs: 0, messageId: "" });
    assert.ok(read.ok);
    assert.equal(read.events[0]?.data.labels.region, "eu-central-1");
    assert.equal(read.events[0]?.dedupkey, "aws-health c0ffee 123456789012 i-abcd1111");
  });

  describe("that names no entity, only account, region and service", () => {
    const refusals = async (rule: string) => (await world.rules.state(rule))?.refusals.map(({ cause }) => cause) ?? [];
    const bare = { affectedEntities: undefined };
    const regional = (which: object) => world.write({ ...healthRule, name: "regional", which });
    const askRegional = async (detail: object = bare) => {
      await addToken("regional", "vmt_regional");
      const own = { authorization: "Bearer vmt_regional" };
      return send({ rule: "regional", kind: "aws-health", text: JSON.stringify(message(detail)), headers: own });
    };

    test("starts nothing where the rule takes its hosts from the event, and says what to do, once", async () => {
      assert.deepEqual(await ask(bare), { accepted: 1, repeated: 0, ignored: 0 });
      assert.deepEqual(await ask({ affectedEntities: [] }), { accepted: 0, repeated: 1, ignored: 0 });
      assert.deepEqual(world.evacuated(), []);
      const [cause, ...more] = await refusals("health");
      assert.deepEqual(more, []);
      assert.match(
        cause ?? "",
        /names no entity.*123456789012.*EC2.*eu-central-1.*vmferry rule run health --host HOST.*which\.names/,
      );
      assert.equal((await ask({ ...bare, eventTypeCategory: "accountNotification" })).ignored, 1);
    });

    test("nor where the event's region or account alone would name hosts", async () => {
      world.script.hosts = [ruleHost(1, { labels: { region: "eu-central-1" } })];
      await regional({ fromTrigger: { label: "region", hostLabel: "region" } });
      await askRegional();
      assert.deepEqual(world.evacuated(), []);
      assert.match((await refusals("regional"))[0] ?? "", /names no entity/);
    });

    test("starts the hosts that the rule itself names, and its end takes back what has not started", async () => {
      await regional({ labels: { "instance-id": "i-other" } });
      assert.equal((await askRegional()).accepted, 1);
      assert.deepEqual(world.evacuated(), ["host2"]);
      assert.equal((await askRegional({ ...bare, statusCode: "closed" })).accepted, 1);
      assert.equal(world.script.cancelled.length, 1);
    });

    test("a page of several without entities says nothing: the others do", async () => {
      await regional({ labels: { "instance-id": "i-other" } });
      const page = { ...bare, page: "2", totalPages: "3" };
      assert.deepEqual(await askRegional(page), { accepted: 0, repeated: 0, ignored: 0 });
      assert.deepEqual(world.evacuated(), []);
    });
  });

  test("an event of another source is refused", async () => {
    const text = JSON.stringify({ ...message(), source: "aws.ec2" });
    assert.match(await told({ rule: "health", kind: "aws-health", text, headers }), /request.malformed/);
  });
});

describe("events", () => {
  test("a host's shutdown names itself, and only by its own shim", async () => {
    const rule = ruleSchema.parse({ name: "off", when: { kind: "host-shutdown" }, which: { labels: { rack: "a" } } });
    const record = await world.write(rule);
    const event = hostShutdownEvent({ id: ruleHost(1).id, name: "host1" }, "boot-1", world.clock.now());
    assert.ok(isFor(rule, event));
    assert.equal(readTrigger("host-shutdown", {}, { rule, nowMs: 0, messageId: "" }).ok, false);
    assert.equal(record.name, "off");
    for (let told = 0; told < 3; told += 1) await world.runner.shutdown(event);
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("labels are bounded, texts alone, and never a prototype", () => {
    const labels = JSON.parse(
      `{"__proto__":"x","constructor":"y","n":3,"o":{},"long":"${"x".repeat(300)}","host":"host1"}`,
    );
    const many = Object.fromEntries(Array.from({ length: 100 }, (_, index) => [`l${index}`, "v"]));
    const read = (given: object) =>
      readTrigger(
        "webhook",
        { type: "t", data: { labels: given } },
        { rule: ruleSchema.parse(hookRule), nowMs: 0, messageId: "m" },
      );
    const one = read(labels);
    assert.ok(one.ok);
    assert.deepEqual(one.events[0]?.data.labels, { constructor: "y", n: "3", host: "host1", type: "t" });
    const two = read(many);
    assert.ok(two.ok);
    assert.equal(Object.keys(two.events[0]?.data.labels ?? {}).length, 33);
  });

  test("a host is named by its name, its name with a port, or a label of its own", () => {
    const read = readTrigger(
      "webhook",
      { type: "t", data: { labels: { host: "host1:9100", other: "toString" } } },
      { rule: ruleSchema.parse(hookRule), nowMs: 0, messageId: "m" },
    );
    assert.ok(read.ok);
    const [event] = read.events;
    assert.ok(event);
    assert.equal(isNamedBy(event, { label: "host" }, ruleHost(1)), true);
    assert.equal(isNamedBy(event, { label: "host" }, ruleHost(2)), false);
    assert.equal(isNamedBy(event, { label: "absent" }, ruleHost(1)), false);
    assert.equal(
      isNamedBy(event, { label: "host", hostLabel: "address" }, ruleHost(1, { labels: { address: "host1:9100" } })),
      true,
    );
    assert.equal(isNamedBy(event, { label: "other", hostLabel: "toString" }, ruleHost(1)), false);
  });
});
