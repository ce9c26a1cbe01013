/** What a ticket, a result and a receipt must be to count: each of their claims taken away in turn. */
import assert from "node:assert/strict";
import { createHash, generateKeyPairSync } from "node:crypto";
import { describe, test } from "node:test";
import type { CommandOf, Receipt } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { SignedText } from "#protocol/signed";
import {
  type PerformResult,
  receiptSignedText,
  resultSignedText,
  type Ticket,
  ticketSignedText,
} from "#protocol/ticket";
import { publicKeyOf, signText } from "#shim/peer/seal";
import { mustBeFresh, mustBeSigned, readResult, readTicket } from "#shim/peer/ticket-check";
import { make } from "#test/fake/shim-process";
import { hostIds, sealOf, signedByControl, signedReceipt, ticketFor } from "#test/fake/treaty";

const command = make("perform") as CommandOf<"perform">;
const foreign = generateKeyPairSync("ed25519").privateKey;
const source = sealOf("source");
const destination = sealOf("destination");

function codeOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof Fault, String(error));
    return error.code;
  }
  return "none";
}

/** The text of `signed` with its signature by another key. */
const signedByOther = ({ text }: SignedText): SignedText => ({
  text,
  signature: signText(foreign, ticketSignedText(text)),
});

describe("a ticket", () => {
  test("of the control plane is read by the two hosts that it names, each as its own side", () => {
    const signed = ticketFor(command);
    assert.equal(readTicket(signed, source, "source").migrationId, command.migrationId);
    assert.equal(readTicket(signed, destination, "destination").destination.hostId, hostIds.destination);
  });

  const good = ticketFor(command);
  const renamed = (fields: Partial<Ticket>) => ticketFor(command, fields);
  const ticket = JSON.parse(good.text) as Ticket;
  const refusals: Record<string, [SignedText | null, "source" | "destination"]> = {
    "that is not there": [null, "destination"],
    "of another control key": [signedByOther(good), "destination"],
    "altered after it was signed": [{ ...good, text: good.text.replace('"epoch":1', '"epoch":2') }, "destination"],
    "with another white space than was signed": [
      { ...good, text: JSON.stringify(JSON.parse(good.text), null, 1) },
      "destination",
    ],
    "whose signature is of a result": [
      { text: good.text, signature: source.sign(resultSignedText(good.text)) },
      "destination",
    ],
    "that names another host id": [
      renamed({ destination: { ...ticket.destination, hostId: "h_01JD0000000000000000000009" } }),
      "destination",
    ],
    "that names another key of this host": [
      renamed({ destination: { ...ticket.destination, publicKey: publicKeyOf(foreign) } }),
      "destination",
    ],
    "brought to its source as if it were the destination": [good, "source"],
    "of a later version": [signedByControl(good.text.replace('"version":1', '"version":2')), "destination"],
    "that is no JSON": [signedByControl("ticket"), "destination"],
    "that lacks a field": [signedByControl(good.text.replace('"epoch":1,', "")), "destination"],
  };
  for (const [name, [signed, side]] of Object.entries(refusals))
    test(`${name} is refused`, () => {
      // The reading host is the destination throughout; as "source" it is not the one that is named.
      assert.equal(
        codeOf(() => readTicket(signed, destination, side)),
        "ticket.refused",
      );
    });

  test("is refused by a host that was never told a control key", () => {
    const seal = { ...destination, controlKey: () => null };
    assert.equal(
      codeOf(() => readTicket(ticketFor(command), seal, "destination")),
      "ticket.refused",
    );
  });

  test("may be armed until it expires, with the clocks' disagreement; a time that cannot be read is over", () => {
    const until = (expiresAt: string) => JSON.parse(ticketFor(command, { expiresAt }).text) as Ticket;
    const fresh = (expiresAt: string, now: string) => codeOf(() => mustBeFresh(until(expiresAt), now));
    assert.equal(fresh("2026-11-22T10:00:00.000Z", "2026-11-22T09:00:00.000Z"), "none");
    assert.equal(fresh("2026-11-22T10:00:00.000Z", "2026-11-22T10:10:00.000Z"), "none");
    assert.equal(fresh("2026-11-22T10:00:00.000Z", "2026-11-22T10:10:00.001Z"), "ticket.refused");
    assert.equal(fresh("tomorrow", "2026-11-22T10:00:00.000Z"), "ticket.refused");
  });
});

describe("a result", () => {
  const signed = ticketFor(command);
  const ticket = JSON.parse(signed.text) as Ticket;
  const ticketSha256 = createHash("sha256").update(signed.text).digest("hex");
  const { migrationId, epoch } = command;
  const stated: PerformResult = { migrationId, epoch, ticketSha256, outcome: "failed", cookieSha256: null };
  const result = (fields: Partial<PerformResult> = {}, seal = source): SignedText => {
    const text = JSON.stringify({ ...stated, ...fields });
    return { text, signature: seal.sign(resultSignedText(text)) };
  };

  test("of the source that the ticket names is read", () => {
    assert.deepEqual(readResult(result(), ticket, signed.text), stated);
  });

  const refusals: Record<string, SignedText> = {
    "without a signature": { ...result(), signature: "A".repeat(86) },
    "signed by the destination": result({}, destination),
    "signed by a stranger": {
      ...result(),
      signature: signText(foreign, resultSignedText(result().text)),
    },
    "turned round after it was signed": { ...result(), text: result().text.replace("failed", "performed") },
    "of another migration": result({ migrationId: "m_01JD0000000000000000000009" }),
    "of another epoch": result({ epoch: 2 }),
    "of another ticket": result({ ticketSha256: "0".repeat(64) }),
    "of another form": result({ outcome: "maybe" as never }),
  };
  for (const [name, altered] of Object.entries(refusals))
    test(`${name} is refused`, () => {
      assert.equal(
        codeOf(() => readResult(altered, ticket, signed.text)),
        "ticket.refused",
      );
    });
});

describe("a receipt", () => {
  const { migrationId } = command;
  const domainUuid = command.domain.uuid;
  const of = { migrationId, domainUuid, publicKey: destination.publicKey };
  const bare: Omit<Receipt, "signature"> = { outcome: "destroyed", evidence: "finish", at: "2026-11-22T10:00:00.000Z" };
  const good = signedReceipt(bare, command);

  test("counts by the key of its destination", () => {
    assert.doesNotThrow(() => mustBeSigned(good, of));
  });

  const refusals: Record<string, [Receipt, typeof of | (Omit<typeof of, "publicKey"> & { publicKey: null })]> = {
    unsigned: [bare, of],
    "of another key": [
      { ...bare, signature: signText(foreign, receiptSignedText({ migrationId, domainUuid, receipt: bare })) },
      of,
    ],
    "turned round": [{ ...good, outcome: "started" }, of],
    "with another evidence": [{ ...good, evidence: "probe" }, of],
    "of another time": [{ ...good, at: "2026-11-22T10:00:00.001Z" }, of],
    "of another migration": [good, { ...of, migrationId: "m_01JD0000000000000000000009" }],
    "of another domain": [good, { ...of, domainUuid: "11111111-2222-3333-4444-555555555555" }],
    "by nobody's key": [good, { ...of, publicKey: null }],
    "whose signature is of a ticket": [{ ...bare, signature: ticketFor(command).signature }, of],
  };
  for (const [name, [receipt, told]] of Object.entries(refusals))
    test(`${name} does not count`, () => {
      assert.equal(
        codeOf(() => mustBeSigned(receipt, told)),
        "receipt.refused",
      );
    });
});
