/**
 * The destination's answers to its peer: arm, and hand over. Everything goes through this host's executor and journal, as
 * the functions' own commands do, so that the first decision stands whoever asked for it (I7).
 */
import { createHash } from "node:crypto";
import type { HandedBlob } from "#protocol/blob";
import type { Command, Report } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { SignedText } from "#protocol/signed";
import { type PeerReply, type PeerRequest, type Ticket, ticketCommandId, ticketKindOf } from "#protocol/ticket";
import { armedMilestone, armedOf } from "../hand-over.ts";
import type { MigrationRecord } from "../migration-record.ts";
import { finishedOf } from "../moment.ts";
import type { Seal } from "../ports.ts";
import { mustBeFresh, readResult, readTicket } from "./ticket-check.ts";

/** What the desk needs of the executor. */
export interface DeskExecutor {
  /** What is known of a migration; null: nothing, or it is over. */
  record(migrationId: string): MigrationRecord | null;
  /** Journals a point of a migration that is not over. */
  milestone(migrationId: string, commandId: string, name: string, data: Record<string, unknown>): Promise<void>;
  /** Executes a command, or joins the one of that id, and resolves with its report. */
  carryOut(command: Command): Promise<Report>;
}

export interface PeerDeskParts {
  executor: DeskExecutor;
  seal: Seal;
  now(): string;
}

export class PeerDesk {
  readonly #parts: PeerDeskParts;

  constructor(parts: PeerDeskParts) {
    this.#parts = parts;
  }

  /** `peerKey`: the key that the other end of the connection has proven. Never rejects. */
  async answer(peerKey: string, request: PeerRequest): Promise<PeerReply> {
    if (request.type === "greet") return { type: "greeted" };
    try {
      const ticket = readTicket(request.ticket, this.#parts.seal, "destination");
      if (peerKey !== ticket.source.publicKey) throw stranger();
      return request.type === "arm" ? await this.#arm(ticket, request.ticket) : await this.#handOver(ticket, request);
    } catch (error) {
      if (error instanceof Fault) return { type: "refused", fault: error.toBody() };
      return { type: "refused", fault: ownFault(error) };
    }
  }

  async #arm(ticket: Ticket, signed: SignedText): Promise<PeerReply> {
    const { executor, now } = this.#parts;
    const record = executor.record(ticket.migrationId);
    if (record === null) throw notHere();
    const prepared = record.prepared(ticket.cookieSha256);
    if (prepared === null || !record.holdsIncoming) throw notHere();
    const armed = armedOf(record.history());
    if (armed?.signed.text === signed.text) return { type: "armed" };
    // The first ticket stands here: by a second one nothing could be handed over.
    if (armed !== null) throw notHere();
    mustBeFresh(ticket, now());
    if (ticket.epoch < record.epoch) throw overtaken();
    await executor.milestone(ticket.migrationId, prepared, armedMilestone, { signed });
    return { type: "armed" };
  }

  async #handOver(ticket: Ticket, request: Extract<PeerRequest, { type: "handOver" }>): Promise<PeerReply> {
    const { executor } = this.#parts;
    const result = readResult(request.result, ticket, request.ticket.text);
    const cookie = result.outcome === "performed" ? cookieBlob(request.cookie, result.cookieSha256) : null;
    const record = executor.record(ticket.migrationId);
    if (record === null) throw notHere();
    const standing = finishedOf(record.history());
    if (standing !== null) return finished(standing, null);
    if (armedOf(record.history())?.signed.text !== request.ticket.text) throw notHere();
    const report = await executor.carryOut(finishCommand(ticket, record, cookie));
    // Asked of the journal and not of the report: an earlier decision may have stood in the way of this one.
    const now = finishedOf(executor.record(ticket.migrationId)?.history() ?? record.history());
    if (now !== null) return finished(now, report);
    if (!report.result.ok) return { type: "refused", fault: report.result.fault };
    throw new TypeError("Finish ended well and left no receipt");
  }
}

/** The Finish of the ticket: the one that runs, or a new one after those that failed. */
function finishCommand(ticket: Ticket, record: MigrationRecord, cookie: HandedBlob | null): Command {
  const earlier = record.intents().filter(({ id }) => ticketKindOf(id) === "finish");
  const last = earlier.at(-1);
  if (last !== undefined && record.report(last.id) === undefined) return last;
  const { migrationId, epoch, domain, options, flags } = ticket;
  const id = ticketCommandId(migrationId, "finish", earlier.length + 1);
  return { id, migrationId, epoch, domain, kind: "finish", cookie, cancelled: cookie === null, options, flags };
}

function finished(standing: NonNullable<ReturnType<typeof finishedOf>>, report: Report | null): PeerReply {
  const { receipt, cookie } = standing;
  const body = report?.result.ok === true && report.result.body.kind === "finish" ? report.result.body : null;
  return {
    type: "finished",
    receipt,
    cookie: cookie?.in === "inline" ? cookie.base64 : null,
    fault: body?.fault ?? null,
  };
}

function cookieBlob(base64: string | null, sha256: string | null): HandedBlob {
  const bytes = Buffer.from(base64 ?? "", "base64");
  const found = createHash("sha256").update(bytes).digest("hex");
  if (base64 === null || found !== sha256)
    throw new Fault({
      code: "cookie.altered",
      cause: "Cookie C is not the one that the source signed for.",
      action: "It is sent again by itself; report it as a defect if it stays.",
      retry: "safe",
    });
  return { in: "handed", base64: bytes.toString("base64"), sha256: found, bytes: bytes.byteLength };
}

const stranger = () =>
  new Fault({
    code: "ticket.refused",
    cause: "The ticket names another source than the host that brings it.",
    action: "Look at who speaks to this host's peer port; report it as a defect if it is the source.",
    retry: "person",
  });

const notHere = () =>
  new Fault({
    code: "destination.lost",
    cause: "This host holds no incoming domain of that ticket (any more).",
    action: "The source goes on; migrate again.",
    retry: "safe",
  });

const overtaken = () =>
  new Fault({
    code: "epoch.stale",
    cause: "The ticket was overtaken by a newer decision of the control plane.",
    action: "Nothing: the control plane says what follows.",
    retry: "never",
  });

const ownFault = (error: unknown) => ({
  code: "internal" as const,
  cause: `The destination's shim failed by an error of its own (${error instanceof Error ? error.name : typeof error}).`,
  action: "Look at the shim's log on the destination and report it as a defect.",
  retry: "safe" as const,
});
