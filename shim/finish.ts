/**
 * Finish on the destination: the single arbiter between starting the domain here and giving it up.
 *
 * The decision is journalled before libvirt is asked; whichever stands there first stays (I7). A lost answer is never an
 * answer (I1, I2): the domain is looked at by its UUID until it shows how Finish ended.
 */

import type { LibvirtConnection } from "#libvirt/client";
import { MigrateFlag } from "#libvirt/constants";
import { isFinishCancelled } from "#libvirt/error";
import { procedures } from "#libvirt/procedures";
import type { Blob } from "#protocol/blob";
import type { Command, MigrateOptions, Receipt, ReportBodyOf } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";
import { inlineBytesMax } from "#protocol/limits";
import { receiptSignedText, ticketKindOf } from "#protocol/ticket";
import { destinationRow } from "./destination-recovery.ts";
import { destinationFlags, finishParams } from "./flags.ts";
import { faultBodyOf, isNoAnswer } from "./libvirt-fault.ts";
import { decidedMoment, decisionOf, finishedOf } from "./moment.ts";
import type { Step, Work } from "./ports.ts";
import { persistently, probeDomain } from "./probe.ts";
import { overdue } from "./recovery.ts";

/** Time between two looks at a domain that libvirt is still ending; how many there are is the row's. */
const lookMs = 250;

type FinishWork = Pick<
  Work<"finish">,
  "connection" | "sleep" | "milestone" | "now" | "history" | "payloads" | "seal"
> & { command: Pick<Command, "id" | "migrationId" | "kind" | "domain"> };

interface FinishCall {
  uuid: string;
  name: string;
  options: MigrateOptions;
  flags: number;
  /** Cookie C; asked for only when libvirt is called. */
  readCookie(): Promise<Uint8Array>;
  cancelled: boolean;
}

export const finish: Step<"finish"> = async (work) => {
  const { domain, options, flags, cancelled } = work.command;
  const finished = finishedOf(work.history);
  if (finished !== null) return { kind: "finish", ...finished, fault: null };
  const decided = decisionOf(work.history);
  const standing = decided?.cancelled ?? cancelled;
  let cookieIn: Uint8Array | null = null;
  const readCookie = async () => {
    const { cookie } = work.command;
    // To give it up, libvirt needs no cookie, and one that nobody can read must not be in the way.
    cookieIn ??= standing || cookie === null ? new Uint8Array(0) : await work.payloads.read(cookie);
    return cookieIn;
  };
  if (decided === null) {
    // Before the decision: a cookie that is altered or gone leaves everything open, the way back too.
    await readCookie();
    await work.milestone("finishing", { cancelled, bootId: work.seal.bootId });
  }
  const call = { uuid: domain.uuid, name: domain.name, options, flags, readCookie, cancelled: standing };
  return finishAs(work, call, work.resumed || decided !== null);
};

/** Calls Finish unless the domain shows already how an earlier one ended, and states the receipt. */
async function finishAs(work: FinishWork, call: FinishCall, lookFirst: boolean): Promise<ReportBodyOf<"finish">> {
  let look = lookFirst;
  let fault: FaultBody | null = null;
  let cookieOut: Uint8Array | null = null;
  const unsigned = await persistently(work, async (libvirt, continuous): Promise<Receipt> => {
    // Offline, what was staged looks like what has arrived: only the call itself tells, and it harms nobody twice.
    if ((look || !continuous) && !(call.options.offline && !call.cancelled)) {
      const seen = await settledOutcome(work, libvirt, call, { cut: !continuous, refused: false });
      if (seen !== null) return { outcome: seen, evidence: "probe", at: work.now() };
    }
    look = true;
    const cookieIn = await call.readCookie();
    try {
      const result = await libvirt.call(procedures.domainMigrateFinish3Params, {
        params: finishParams(call.options, call.name),
        cookieIn,
        flags: destinationFlags(call.flags),
        cancelled: call.cancelled,
      });
      cookieOut = result.cookieOut;
      return { outcome: "started", evidence: "finish", at: work.now() };
    } catch (error) {
      if (isNoAnswer(error)) throw error;
      if (isFinishCancelled(error)) return { outcome: "destroyed", evidence: "finish", at: work.now() };
      fault = faultBodyOf(error, {
        code: "finish.failed",
        what: "Finish on the destination failed",
        action: "The source goes on once this side is proven to have no copy.",
        retry: "safe",
      });
      const seen = await settledOutcome(work, libvirt, call, { cut: true, refused: true });
      if (seen !== null) return { outcome: seen, evidence: "probe", at: work.now() };
      throw new Fault(fault, { cause: error });
    }
  });
  const { migrationId } = work.command;
  const text = receiptSignedText({ migrationId, domainUuid: call.uuid, receipt: unsigned });
  const receipt: Receipt = { ...unsigned, signature: work.seal.sign(text) };
  const cookie = cookieOut === null ? null : await cookieBlob(work, cookieOut);
  await work.milestone("finished", { receipt, cookie });
  return { kind: "finish", receipt, cookie, fault: receipt.outcome === "started" || call.cancelled ? null : fault };
}

/** Cookie D only carries figures to the source's Confirm: a bucket that is away is no reason to keep the receipt back, and
 *  by the ticket nobody waits for a bucket at all. */
async function cookieBlob(work: FinishWork, bytes: Uint8Array): Promise<Blob | null> {
  if (ticketKindOf(work.command.id) !== null && bytes.byteLength > inlineBytesMax) return null;
  try {
    return await work.payloads.write(bytes);
  } catch {
    return null;
  }
}

/**
 * How Finish has ended, seen from the domain, by the recovery table. Null: libvirt is to be asked. `cut`: it cannot wait for
 * anybody any more (its connection is lost, or `refused` by libvirt's own answer), so libvirt will end it; look until it has.
 */
async function settledOutcome(
  work: FinishWork,
  libvirt: LibvirtConnection,
  { uuid, options: { offline }, cancelled }: FinishCall,
  { cut, refused }: { cut: boolean; refused: boolean },
): Promise<Receipt["outcome"] | null> {
  // Decided by this very run, it is decided in this boot.
  const { bootId } = decisionOf(work.history) ?? {};
  const booted = bootId !== undefined && bootId !== work.seal.bootId;
  const moment = decidedMoment({ cancelled, cut, refused, offline, booted });
  for (let waitedMs = 0; ; waitedMs += lookMs) {
    const row = destinationRow(work, await probeDomain(libvirt, uuid), { moment });
    if (row.do === "stateStarted") return "started";
    if (row.do === "stateDestroyed") return "destroyed";
    if (row.do === "callFinish" || overdue(row, waitedMs) === "callFinish") return null;
    await work.sleep(lookMs);
  }
}

/**
 * For the way back: ends an incoming domain that Finish was never called for. Does nothing when there is none. When Finish
 * was decided the other way, or the domain runs, it is not touched and `destination.active` says so (I7, I8).
 */
export async function cancelIncoming(work: CancelWork): Promise<boolean> {
  const { domain } = work.command;
  const probe = await persistently(work, (libvirt) => probeDomain(libvirt, domain.uuid));
  const row = destinationRow(work, probe);
  if (row.do !== "endIncoming") return false;
  if (decisionOf(work.history) === null)
    await work.milestone("finishing", { cancelled: true, bootId: work.seal.bootId });
  // Offline, nothing shows whether Finish has been called: then it is, once more.
  const offline = row.found === "inactive";
  const options: MigrateOptions = { offline, unsafe: false, autoConverge: false, bandwidthMiBps: null };
  const flags = MigrateFlag.PERSIST_DEST | (offline ? MigrateFlag.OFFLINE : MigrateFlag.LIVE);
  const readCookie = async () => new Uint8Array(0);
  const call = { uuid: domain.uuid, name: domain.name, options, flags, readCookie, cancelled: true };
  const { receipt } = await finishAs(work, call, !offline);
  if (receipt.outcome === "destroyed") return true;
  // It was taken over after all: the row of what it shows now says what a person has to do.
  const now = await persistently(work, (libvirt) => probeDomain(libvirt, domain.uuid));
  return destinationRow(work, now).do === "endIncoming";
}

type CancelWork = Pick<
  Work<"unstage">,
  "connection" | "sleep" | "milestone" | "now" | "history" | "payloads" | "command" | "seal"
>;
