/**
 * The source's part of ending a migration by its ticket: arm the destination before Perform, hand it the result after, and
 * do what its receipt says. The guest is stopped in between, so nothing here waits for the functions.
 *
 * I2: no answer is no answer. Without a receipt the domain stays as Perform left it, and the same result is handed over
 * again: by this step for a while, then by the watch (hand-over-watch.ts), while the functions relay.
 */
import { createHash } from "node:crypto";
import * as z from "zod/mini";
import { type CommandOf, receiptSchema } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { type SignedText, signedTextSchema } from "#protocol/signed";
import { type PeerReply, type PerformResult, resultSignedText, type Ticket, ticketSchema } from "#protocol/ticket";
import { mustBeFresh, mustBeSigned, readTicket } from "./peer/ticket-check.ts";
import type { JournalEntry, Peers, Seal, Work } from "./ports.ts";

/** The guest runs while the destination is armed: a peer that takes longer than this is not one to depend on. */
const armMsMax = 20_000;

/** One asking: Finish itself takes well below a second, and a destination that is asked again joins what runs there. */
const askMsMax = 10_000;

/** How long Perform's own report waits for a broken channel before the functions are asked to relay. The guest is stopped. */
const insistMsMax = 3_000;
const insistPauseMs = 200;

/** Milestones: the ticket is kept here; how Perform ended, cookie C with it; what the destination has stated. */
export const armedMilestone = "armed";
const handedMilestone = "handing";
export const receiptMilestone = "receipt";

const armedSchema = z.object({ signed: signedTextSchema });
const handedSchema = z.object({ outcome: z.enum(["performed", "failed"]), cookie: z.nullable(z.string()) });
export type Handed = z.infer<typeof handedSchema>;
const withdrawnSchema = z.object({ outcome: z.literal("failed"), cookie: z.null() });
const statedSchema = z.object({ receipt: receiptSchema, cookie: z.nullable(z.string()) });

export interface Armed {
  ticket: Ticket;
  signed: SignedText;
}

/** What the destination has stated, with cookie D. */
export type Stated = Extract<PeerReply, { type: "finished" }>;

type PeerWork = Pick<Work, "peers" | "seal" | "now" | "sleep" | "milestone" | "history">;

/** Keeps the ticket, then has the destination keep it, over the very channel that will carry the result. Throws `Fault`
 *  `ticket.refused`, `peer.unreachable`, or what the destination refuses it for: Perform must not begin then. */
export async function arm(
  work: PeerWork & { command: Pick<CommandOf<"perform">, "migrationId" | "epoch" | "domain" | "ticket" | "cookie"> },
): Promise<Armed> {
  const { migrationId, epoch, domain, ticket: signed, cookie } = work.command;
  const ticket = readTicket(signed, work.seal, "source");
  const same = ticket.migrationId === migrationId && ticket.epoch === epoch && ticket.domain.uuid === domain.uuid;
  if (signed === null || !same || ticket.cookieSha256 !== cookie.sha256) throw anotherPrepare();
  mustBeFresh(ticket, work.now());
  await work.milestone(armedMilestone, { signed });
  const reply = await work.peers.ask(ticket.destination, { type: "arm", ticket: signed }, armMsMax);
  if (reply.type === "armed") return { ticket, signed };
  if (reply.type === "refused") throw new Fault(reply.fault);
  throw unexpected();
}

/** The ticket that this migration was armed with; null: none. It was verified before it was kept. */
export function armedOf(history: readonly JournalEntry[]): Armed | null {
  const data = milestoneOf(history, armedMilestone, armedSchema);
  if (data === null) return null;
  const ticket = ticketSchema.safeParse(JSON.parse(data.signed.text));
  return ticket.success ? { ticket: ticket.data, signed: data.signed } : null;
}

/** What the destination has stated already. */
export function statedOf(history: readonly JournalEntry[]): Stated | null {
  const data = milestoneOf(history, receiptMilestone, statedSchema);
  return data === null ? null : { type: "finished", ...data, fault: null };
}

/** How Perform ended, once that is on disk; null before. The first one stands, unless it was withdrawn. */
export const handedOf = (history: readonly JournalEntry[]): Handed | null =>
  milestoneOf(history, handedMilestone, withdrawnSchema) ?? milestoneOf(history, handedMilestone, handedSchema);

function milestoneOf<T>(history: readonly JournalEntry[], name: string, schema: z.ZodMiniType<T>): T | null {
  for (const entry of history) {
    if (entry.type !== "milestone" || entry.name !== name) continue;
    const decoded = schema.safeParse(entry.data);
    if (decoded.success) return decoded.data;
  }
  return null;
}

/** Keeps how Perform ended, before anybody is told: what is handed over is the same ever after. */
export async function keepResult(work: PeerWork, cookie: Uint8Array | null): Promise<Handed> {
  const standing = handedOf(work.history);
  if (standing !== null) return standing;
  const handed: Handed =
    cookie === null
      ? { outcome: "failed", cookie: null }
      : { outcome: "performed", cookie: Buffer.from(cookie).toString("base64") };
  await work.milestone(handedMilestone, handed);
  return handed;
}

/** Somebody let the guest run again after Perform (I1): from now on the destination is asked to end its copy. When it was
 *  started there already, the destination says so. */
export async function withdrawResult(work: Pick<PeerWork, "milestone">): Promise<Handed> {
  const handed: Handed = { outcome: "failed", cookie: null };
  await work.milestone(handedMilestone, handed);
  return handed;
}

/** Asks the destination once. Throws `Fault` when no statement came: `peer.unreachable`, `receipt.refused`, or what it refuses
 *  to state one for. */
export async function askOnce(parts: { peers: Peers; seal: Seal }, armed: Armed, handed: Handed): Promise<Stated> {
  const { ticket, signed } = armed;
  const { migrationId, epoch, domain } = ticket;
  const cookie = handed.cookie === null ? null : Buffer.from(handed.cookie, "base64");
  const text = JSON.stringify({
    migrationId,
    epoch,
    ticketSha256: createHash("sha256").update(signed.text).digest("hex"),
    outcome: handed.outcome,
    cookieSha256: cookie === null ? null : createHash("sha256").update(cookie).digest("hex"),
  } satisfies PerformResult);
  const result = { text, signature: parts.seal.sign(resultSignedText(text)) };
  const request = { type: "handOver", ticket: signed, result, cookie: handed.cookie } as const;
  const reply = await parts.peers.ask(ticket.destination, request, askMsMax);
  if (reply.type === "refused") throw new Fault(reply.fault);
  if (reply.type !== "finished") throw unexpected();
  mustBeSigned(reply.receipt, { migrationId, domainUuid: domain.uuid, publicKey: ticket.destination.publicKey });
  return reply;
}

/** No answer yet, or none of a shim that has read its journal: asked again at once. */
const insistCodes: ReadonlySet<string> = new Set(["peer.unreachable", "shim.restarted"]);

/** Hands the result over until the destination has stated how Finish ended; null when it cannot be reached for a while.
 *  Throws `Fault` when it answers and states nothing. */
export async function handOver(work: PeerWork, armed: Armed, handed: Handed): Promise<Stated | null> {
  const known = statedOf(work.history);
  if (known !== null) return known;
  const startedMs = Date.parse(work.now());
  for (;;) {
    try {
      const stated = await askOnce(work, armed, handed);
      await work.milestone(receiptMilestone, { receipt: stated.receipt, cookie: stated.cookie });
      return stated;
    } catch (error) {
      if (!(error instanceof Fault) || !insistCodes.has(error.code)) throw error;
      // The clock bounds patience only; what is concluded from its end is nothing.
      if (Date.parse(work.now()) - startedMs >= insistMsMax) return null;
      await work.sleep(insistPauseMs);
    }
  }
}

const anotherPrepare = () =>
  new Fault({
    code: "ticket.refused",
    cause: "The ticket was issued for another migration, or another Prepare, than the one that it came with.",
    action: "Migrate again; report it as a defect if it stays.",
    retry: "safe",
  });

const unexpected = () =>
  new Fault({
    code: "peer.unreachable",
    cause: "The destination's shim answered the ticket with something else.",
    action: "Compare the versions of both shims, then migrate again.",
    retry: "safe",
  });
