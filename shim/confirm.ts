/**
 * Confirm on the source: gives the domain up or takes it back, as the destination's receipt says.
 *
 * I2: the domain is resumed here only with a receipt that it was destroyed or never started over there. I8: it is destroyed
 * only with a receipt that the other copy runs, and never while it runs itself.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { ErrorCode } from "#libvirt/constants";
import { isNoDomain, LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { CommandOf, Receipt, ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { textCharsMax } from "#protocol/limits";
import { putAutostartBack } from "./autostart.ts";
import { migrateParams } from "./flags.ts";
import { statedOf } from "./hand-over.ts";
import { faultOf, isNoAnswer, messageOf } from "./libvirt-fault.ts";
import { mustBeSigned, readTicket } from "./peer/ticket-check.ts";
import type { Step, Work } from "./ports.ts";
import { persistently, probeDomain } from "./probe.ts";
import { sourceRow } from "./source-recovery.ts";
import { undefineDomain } from "./undefine.ts";

/** Ends the migration on the source as the receipt says, if it is one. */
export const confirm: Step<"confirm"> = async (work) => {
  const { receipt } = work.command;
  mustCount(work);
  const cookie = work.command.cookie === null ? new Uint8Array(0) : await work.payloads.read(work.command.cookie);
  return { kind: "confirm", source: await confirmBy(work, receipt, cookie), receipt };
};

/** I2, I7: signed by the destination that the ticket names, or by the control plane for a person's statement; and not
 *  otherwise than what the destination has told this host itself. Throws `receipt.refused`. */
function mustCount({ command, seal, history }: Work<"confirm">): void {
  const { receipt, migrationId, domain, ticket, options } = command;
  const stated = statedOf(history);
  if (stated !== null && stated.receipt.outcome !== receipt.outcome) throw contradicted(stated.receipt, receipt);
  const of = { migrationId, domainUuid: domain.uuid };
  if (receipt.evidence === "fenced") mustBeSigned(receipt, { ...of, publicKey: seal.controlKey() });
  // A domain that is not running has no ticket, and is neither resumed nor stopped by a receipt.
  else if (ticket !== null || !options.offline)
    mustBeSigned(receipt, { ...of, publicKey: readTicket(ticket, seal, "source").destination.publicKey });
}

const contradicted = (known: Receipt, told: Receipt) =>
  new Fault({
    code: "receipt.refused",
    cause: `The destination has stated to this host that the domain is ${known.outcome}; the control plane says ${told.outcome}. Nothing was touched.`,
    action: "Look at both copies before anything else, and report it as a defect.",
    retry: "person",
  });

export type ConfirmWork = Pick<Work, "connection" | "sleep" | "now" | "milestone" | "happened" | "history"> & {
  command: Pick<CommandOf<"confirm" | "perform">, "kind" | "migrationId" | "domain" | "options" | "flags">;
};

/** Does what a receipt says that counts. May be repeated: what is done already is seen and left. */
export async function confirmBy(work: ConfirmWork, receipt: Receipt, cookie: Uint8Array): Promise<SourceState> {
  const source = await persistently(work, (libvirt, continuous) =>
    receipt.outcome === "started"
      ? giveUp(work, libvirt, continuous, cookie)
      : takeBack(work, libvirt, continuous, cookie),
  );
  await work.milestone("confirmed", { outcome: receipt.outcome, source });
  return source;
}

type SourceState = ReportBodyOf<"confirm">["source"];

/**
 * Confirm3. When libvirt refuses it, the receipt stands all the same and what the source shows decides; its words are
 * journalled and returned, for a failure that may follow. A job (55) or domain (42) that libvirt no longer knows is none.
 */
async function confirm3(
  work: ConfirmWork,
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  cookieIn: Uint8Array,
  cancelled: boolean,
): Promise<string> {
  const { options, flags } = work.command;
  try {
    const params = migrateParams(options);
    await libvirt.call(procedures.domainMigrateConfirm3Params, { dom, params, cookieIn, flags, cancelled });
    return "";
  } catch (error) {
    if (isNoDomain(error) || (error instanceof LibvirtError && error.code === ErrorCode.OPERATION_INVALID)) return "";
    if (isNoAnswer(error)) throw error;
    const message = messageOf(error).slice(0, textCharsMax);
    await work.milestone("confirmRefused", { message });
    return ` (after Confirm was refused: ${message})`;
  }
}

/** What the source shows, and what the recovery table says to it under that receipt. Throws where a person is needed. */
async function look(work: ConfirmWork, libvirt: LibvirtConnection, told: Receipt["outcome"], also = "") {
  const probe = await probeDomain(libvirt, work.command.domain.uuid);
  return { probe, action: sourceRow(work, probe, { told, also }).do };
}

/** The receipt says `started`: the source's copy goes. A running one is never touched (I1, I8). */
async function giveUp(
  work: ConfirmWork,
  libvirt: LibvirtConnection,
  continuous: boolean,
  cookie: Uint8Array,
): Promise<SourceState> {
  const { domain } = work.command;
  let seen = await look(work, libvirt, "started");
  if (seen.action !== "giveUp" || !seen.probe.present) return "gone";
  const asks = continuous && seen.probe.active;
  const refused = asks ? await confirm3(work, libvirt, seen.probe.dom, cookie, false) : "";
  seen = await look(work, libvirt, "started", refused);
  if (seen.action !== "giveUp" || !seen.probe.present) return "gone";
  const { dom, active } = seen.probe;
  try {
    if (active) await libvirt.call(procedures.domainDestroyFlags, { dom, flags: 0 });
    await undefineDomain(libvirt, dom);
  } catch (error) {
    if (isNoDomain(error)) return "gone";
    throw faultOf(error, {
      code: "confirm.failed",
      what: `The domain runs on the destination, but the source's copy could not be removed${refused}`,
      action: `Run \`virsh undefine ${domain.uuid} --snapshots-metadata --checkpoints-metadata --keep-nvram --keep-tpm\` on the source.`,
      retry: "person",
    });
  }
  return "gone";
}

/** The receipt says `destroyed`: the source goes on. It is resumed only from the pause that the migration made (I2b). */
async function takeBack(
  work: ConfirmWork,
  libvirt: LibvirtConnection,
  continuous: boolean,
  cookie: Uint8Array,
): Promise<SourceState> {
  const { domain } = work.command;
  let seen = await look(work, libvirt, "destroyed");
  let refused = "";
  if (continuous && (seen.action === "takeBack" || seen.action === "endJob") && seen.probe.present)
    refused = await confirm3(work, libvirt, seen.probe.dom, cookie, true);
  seen = await look(work, libvirt, "destroyed", refused);
  if (seen.action === "takeBack" && seen.probe.present) {
    try {
      await libvirt.call(procedures.domainResume, { dom: seen.probe.dom });
    } catch (error) {
      if (isNoAnswer(error)) throw error;
      throw faultOf(error, {
        code: "confirm.failed",
        what: `The destination has no copy, but the source's domain could not be resumed${refused}`,
        action: `Run \`virsh resume ${domain.uuid}\` on the source.`,
        retry: "person",
      });
    }
    seen = await look(work, libvirt, "destroyed", refused);
  }
  const { probe } = seen;
  if (!probe.present) throw new TypeError("a domain that is absent has a row that strands");
  // The restore that follows sees to it in any case, and says why when it cannot.
  await putAutostartBack(libvirt, probe.dom, work.history).catch(() => {});
  if (!probe.active) return "shutoff";
  return probe.state === "paused" ? "paused" : "running";
}
