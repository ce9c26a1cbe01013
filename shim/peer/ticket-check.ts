/**
 * Whether a ticket, a result or a receipt is what it claims to be. Nothing is done by one that is not signed by the key that
 * had to sign it, names another host, or belongs to another Prepare: the answer is a refusal with its cause, while the
 * guest still runs where it ran.
 */
import { createHash } from "node:crypto";
import type { Receipt } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { SignedText } from "#protocol/signed";
import {
  type PerformResult,
  performResultSchema,
  receiptSignedText,
  resultSignedText,
  type Ticket,
  ticketSchema,
  ticketSignedText,
} from "#protocol/ticket";
import type { Seal } from "../ports.ts";
import { verifyText } from "./seal.ts";

/** How far a host's clock may be behind or before the control plane's; only the arming of a ticket looks at clocks. */
const clockSkewMsMax = 10 * 60_000;

function refused(why: string): Fault {
  return new Fault({
    code: "ticket.refused",
    cause: `The ticket is not accepted: ${why}.`,
    action:
      "Migrate again. If it stays, compare the clocks of both hosts and the control plane, then enrol the host again.",
    retry: "safe",
  });
}

/** The ticket of a signed text, if the control plane signed it and this host is that side of it. Throws `ticket.refused`. */
export function readTicket(signed: SignedText | null, seal: Seal, side: "source" | "destination"): Ticket {
  if (signed === null) throw refused("there is none");
  const controlKey = seal.controlKey();
  if (controlKey === null) throw refused("this host was never told the control plane's key");
  if (!verifyText(controlKey, ticketSignedText(signed.text), signed.signature))
    throw refused("it is not signed by the control plane that this host enrolled with");
  const ticket = ticketSchema.safeParse(parseJson(signed.text));
  if (!ticket.success) throw refused("it has another form than this version's");
  const mine = ticket.data[side];
  if (mine.hostId !== seal.hostId || mine.publicKey !== seal.publicKey)
    throw refused(`it names another host as its ${side}`);
  return ticket.data;
}

/** Only the arming is bound to time: an armed ticket holds until the migration's end. */
export function mustBeFresh(ticket: Ticket, now: string): void {
  // Written so that a time which cannot be read is no time at all.
  if (!(Date.parse(now) <= Date.parse(ticket.expiresAt) + clockSkewMsMax))
    throw refused(`it expired at ${ticket.expiresAt}`);
}

/** The source's statement of how Perform ended; `ticketText` is the ticket as it was signed. Throws `ticket.refused`. */
export function readResult(signed: SignedText, ticket: Ticket, ticketText: string): PerformResult {
  if (!verifyText(ticket.source.publicKey, resultSignedText(signed.text), signed.signature))
    throw refused("the result that came with it is not signed by its source");
  const result = performResultSchema.safeParse(parseJson(signed.text));
  if (!result.success) throw refused("the result that came with it has another form than this version's");
  if (result.data.migrationId !== ticket.migrationId || result.data.epoch !== ticket.epoch)
    throw refused("the result that came with it is of another migration");
  if (result.data.ticketSha256 !== createHash("sha256").update(ticketText).digest("hex"))
    throw refused("the result that came with it is of another ticket");
  return result.data;
}

/** I2, I7: a receipt counts only by the key of who may give it. Throws `receipt.refused`. */
export function mustBeSigned(
  receipt: Receipt,
  of: { migrationId: string; domainUuid: string; publicKey: string | null },
): void {
  const text = receiptSignedText({ ...of, receipt });
  if (of.publicKey !== null && receipt.signature !== undefined && verifyText(of.publicKey, text, receipt.signature))
    return;
  throw new Fault({
    code: "receipt.refused",
    cause: `The receipt (${receipt.outcome}, by ${receipt.evidence}) is not signed by the key that had to sign it.`,
    action: "Nothing was touched. Look at the shim's log on the destination and report it as a defect.",
    retry: "person",
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
