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
import type { ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { putAutostartBack } from "./autostart.ts";
import { migrateParams } from "./flags.ts";
import { faultOf, isNoAnswer } from "./libvirt-fault.ts";
import type { Step, Work } from "./ports.ts";
import { type Probe, persistently, probeDomain } from "./probe.ts";
import { undefineDomain } from "./undefine.ts";

/** Ends the migration on the source as the receipt says. */
export const confirm: Step<"confirm"> = async (work) => {
  const { receipt } = work.command;
  const cookie = work.command.cookie === null ? new Uint8Array(0) : await work.payloads.read(work.command.cookie);
  const source = await persistently(work, (libvirt, continuous) =>
    receipt.outcome === "started"
      ? giveUp(work, libvirt, continuous, cookie)
      : takeBack(work, libvirt, continuous, cookie),
  );
  await work.milestone("confirmed", { outcome: receipt.outcome, source });
  return { kind: "confirm", source };
};

type SourceState = ReportBodyOf<"confirm">["source"];

/** Confirm3; false when libvirt no longer knows of the job (55) or the domain (42): then what is true decides. */
async function confirmed(
  work: Work<"confirm">,
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  cookieIn: Uint8Array,
  cancelled: boolean,
): Promise<boolean> {
  const { options, flags } = work.command;
  try {
    const params = migrateParams(options);
    await libvirt.call(procedures.domainMigrateConfirm3Params, { dom, params, cookieIn, flags, cancelled });
    return true;
  } catch (error) {
    if (isNoDomain(error) || (error instanceof LibvirtError && error.code === ErrorCode.OPERATION_INVALID))
      return false;
    if (isNoAnswer(error)) throw error;
    // Whatever libvirt says here, the receipt stands: go by what the source shows.
    return false;
  }
}

/** The receipt says `started`: the source's copy goes. A running one is never touched (I1, I8). */
async function giveUp(
  work: Work<"confirm">,
  libvirt: LibvirtConnection,
  continuous: boolean,
  cookie: Uint8Array,
): Promise<SourceState> {
  const { domain } = work.command;
  let probe = await probeDomain(libvirt, domain.uuid);
  if (!probe.present) return "gone";
  mustNotRun(probe);
  if (continuous && probe.active) await confirmed(work, libvirt, probe.dom, cookie, false);
  probe = await probeDomain(libvirt, domain.uuid);
  if (!probe.present) return "gone";
  mustNotRun(probe);
  try {
    if (probe.active) await libvirt.call(procedures.domainDestroyFlags, { dom: probe.dom, flags: 0 });
    await undefineDomain(libvirt, probe.dom);
  } catch (error) {
    if (isNoDomain(error)) return "gone";
    throw faultOf(error, {
      code: "confirm.failed",
      what: "The domain runs on the destination, but the source's copy could not be removed",
      action: `Run \`virsh undefine ${domain.uuid} --snapshots-metadata --checkpoints-metadata --keep-nvram --keep-tpm\` on the source.`,
      retry: "person",
    });
  }
  return "gone";
}

function mustNotRun(probe: Extract<Probe, { present: true }>): void {
  if (probe.state === "paused" || probe.state === "shutoff" || !probe.active) return;
  throw new Fault({
    code: "confirm.failed",
    cause: `The destination states that it runs the domain, but the source's copy is ${probe.state} too. Nothing was touched.`,
    action: "Look at both copies at once; fence one of them by hand, then resolve the migration.",
    retry: "person",
  });
}

/** The receipt says `destroyed`: the source goes on. It is resumed only from the pause that the migration made (I2b). */
async function takeBack(
  work: Work<"confirm">,
  libvirt: LibvirtConnection,
  continuous: boolean,
  cookie: Uint8Array,
): Promise<SourceState> {
  const { domain } = work.command;
  let probe = await probeDomain(libvirt, domain.uuid);
  if (!probe.present) throw lostSource(domain.name);
  if (continuous && probe.pausedByMigration) await confirmed(work, libvirt, probe.dom, cookie, true);
  probe = await probeDomain(libvirt, domain.uuid);
  if (!probe.present) throw lostSource(domain.name);
  if (probe.pausedByMigration) {
    try {
      await libvirt.call(procedures.domainResume, { dom: probe.dom });
    } catch (error) {
      if (isNoAnswer(error)) throw error;
      throw faultOf(error, {
        code: "confirm.failed",
        what: "The destination has no copy, but the source's domain could not be resumed",
        action: `Run \`virsh resume ${domain.uuid}\` on the source.`,
        retry: "person",
      });
    }
    probe = await probeDomain(libvirt, domain.uuid);
    if (!probe.present) throw lostSource(domain.name);
  }
  // The restore that follows sees to it in any case, and says why when it cannot.
  await putAutostartBack(libvirt, probe.dom, work.history).catch(() => {});
  if (!probe.active) return "shutoff";
  return probe.state === "paused" ? "paused" : "running";
}

function lostSource(name: string): Fault {
  return new Fault({
    code: "confirm.failed",
    cause: `The destination has no copy of "${name}", and the source no longer knows it either.`,
    action: "Restore it with `vmferry bundle restore` after defining it from the bundle's domain XML.",
    retry: "person",
  });
}
