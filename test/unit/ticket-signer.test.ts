/** The control key on both sides: what the functions sign by it, and how a host keeps its public half. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { createTicketSigner } from "#functions/ticket-signer";
import { Fault } from "#protocol/fault";
import { publicKeySchema, signatureSchema } from "#protocol/signed";
import { ticketSignedText } from "#protocol/ticket";
import { identify } from "#shim/enrolment";
import { verifyText } from "#shim/peer/seal";
import { controlKeyPkcs8, controlSigner } from "#test/fake/control-key";
import { FakeControlPlane } from "#test/fake/control-plane";

describe("ticket signer", () => {
  test("signs so that a shim can verify it, the same text always the same way", async () => {
    const signer = controlSigner();
    const publicKey = publicKeySchema.parse(await signer.publicKey());
    const text = ticketSignedText(JSON.stringify({ für: "web" }));
    const signature = signatureSchema.parse(await signer.sign(text));
    assert.ok(verifyText(publicKey, text, signature));
    assert.ok(!verifyText(publicKey, `${text} `, signature));
    assert.ok(!verifyText(await controlSigner(8).publicKey(), text, signature));
    assert.equal(await createTicketSigner(` ${controlKeyPkcs8()}\n`).sign(text), signature);
  });

  test("says what to give it when it was given nothing or nonsense, and quotes none of it", async () => {
    assert.throws(() => createTicketSigner(" "), { code: "internal" });
    const secret = Buffer.from("hunter2hunter2").toString("base64");
    await assert.rejects(createTicketSigner(secret).publicKey(), (error) => {
      assert.ok(error instanceof Fault);
      assert.match(error.action, /TICKET_KEY/);
      assert.doesNotMatch(JSON.stringify(error.toBody()), new RegExp(`hunter2|${secret}`));
      return true;
    });
  });
});

describe("the pinned control key", () => {
  let state: string;
  let plane: FakeControlPlane;
  let first: string;
  let other: string;
  const enrolment = () => ({
    stateDirectory: state,
    origin: new URL(plane.url),
    joinToken: "vmj_secretsecretsecret",
    name: "alpha",
  });
  const kept = async () => JSON.parse(await readFile(join(state, "host.json"), "utf8")) as { controlKey?: string };
  beforeEach(async () => {
    state = await mkdtemp(join(tmpdir(), "vmferry-identity-"));
    [first, other] = [await controlSigner(1).publicKey(), await controlSigner(2).publicKey()];
    plane = await FakeControlPlane.start({ controlKey: first });
  });
  afterEach(async () => {
    await plane.stop();
    await rm(state, { recursive: true, force: true });
  });

  test("comes with the enrolment and outlives the process", async () => {
    const identity = await identify(enrolment());
    assert.equal(identity.controlKey, first);
    assert.equal(identity.publicKey, [...plane.hosts.values()][0]?.publicKey);
    assert.equal(identity.key.type, "private");
    const again = await identify(enrolment());
    assert.deepEqual([again.controlKey, again.publicKey, again.hostId], [first, identity.publicKey, identity.hostId]);
    await again.pinControlKey(first);
  });

  test("of a host that was enrolled before: the first welcome's is kept, of two at once only one", async () => {
    plane.decide = {};
    const identity = await identify(enrolment());
    assert.equal(identity.controlKey, null);
    const [won, lost] = await Promise.allSettled([identity.pinControlKey(first), identity.pinControlKey(other)]);
    assert.equal(won.status, "fulfilled");
    assert.equal(lost.status, "rejected");
    assert.equal(identity.controlKey, first);
    assert.equal((await kept()).controlKey, first);
    assert.equal((await identify(enrolment())).controlKey, first);
  });

  test("is never replaced: another one is refused with what to do about it", async () => {
    const identity = await identify(enrolment());
    await assert.rejects(identity.pinControlKey(other), (error) => {
      assert.ok(error instanceof Fault && error.code === "ticket.refused");
      assert.match(error.action, /ticket-key.*host remove alpha/s);
      return true;
    });
    assert.equal(identity.controlKey, first);
    assert.equal((await kept()).controlKey, first);
    // And the next welcome with the right one is as good as ever.
    await identity.pinControlKey(first);
  });

  test("a file with a key that is none is damaged, not an unpinned host", async () => {
    await identify(enrolment());
    await writeFile(join(state, "host.json"), JSON.stringify({ ...(await kept()), controlKey: "x" }));
    await assert.rejects(identify(enrolment()), { code: "shim.unauthorised" });
  });
});
