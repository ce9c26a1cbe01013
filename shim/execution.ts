/**
 * One run of one step: what it is given, and its end as a report. A step that throws becomes a failed report; what is not
 * a Fault is a defect of ours, so its text stays in the log and only its class travels (I9).
 */
import type { LibvirtConnection } from "#libvirt/client";
import { decodeUp, encode } from "#protocol/codec";
import type { Command, Report } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";
import type { Progress } from "#protocol/message";
import type { Clock } from "./clock.ts";
import type { Log } from "./log.ts";
import type {
  BundleAccess,
  JournalEntry,
  MigrationConnection,
  Payloads,
  Peers,
  Seal,
  Step,
  Steps,
  Work,
} from "./ports.ts";
import { StepFault } from "./step-fault.ts";

/** What a step is given beside its command. */
export interface Surroundings {
  resumed: boolean;
  history: readonly JournalEntry[];
  milestone(name: string, data: Record<string, unknown>): Promise<void>;
  happened(name: string): boolean;
  connection(): Promise<MigrationConnection>;
  inventory(): Promise<LibvirtConnection>;
  payloads: Payloads;
  bundles: BundleAccess;
  peers: Peers;
  seal: Seal;
  bundlePath: string;
  migrationAddress: string | null;
  allowPaths: readonly string[];
  progress(progress: Progress): void;
  clock: Clock;
}

/** Never rejects. `ms` of the report is left to the caller, who knows when the command was first begun. */
export async function runStep(
  steps: Steps,
  command: Command,
  given: Surroundings,
  log: Log,
): Promise<Report["result"]> {
  const { clock, milestone, ...rest } = given;
  const work: Work = {
    ...rest,
    command,
    milestone: (name, data) => milestone(name, data ?? {}),
    sleep: (ms) => clock.sleep(ms),
    now: () => clock.now(),
  };
  try {
    // The kind picks the step that takes exactly this command; the compiler cannot follow it through the table.
    const step = steps[command.kind] as Step<Command["kind"]>;
    return { ok: true, body: await step(work) };
  } catch (error) {
    return failed(command, error, log);
  }
}

function failed(command: Command, error: unknown, log: Log): Report["result"] {
  if (error instanceof StepFault) {
    const { sourceState, receipt } = error;
    return {
      ok: false,
      fault: error.toBody(),
      ...(sourceState === undefined ? {} : { sourceState }),
      ...(receipt === undefined ? {} : { receipt }),
    };
  }
  if (error instanceof Fault) return { ok: false, fault: error.toBody() };
  log.write("error", "a step ended in an error of its own", {
    command: command.id,
    error: error instanceof Error ? (error.stack ?? error.message) : String(error),
  });
  return { ok: false, fault: ownFault(`The shim failed in ${command.kind} by an error of its own`, error) };
}

const ownFault = (what: string, error: unknown): FaultBody => ({
  code: "internal",
  cause: `${what} (${error instanceof Error ? error.name : typeof error}); its log on that host has the text.`,
  action: "Look at the shim's log (journalctl -u vmferry-shim) and report it as a defect with the command's id.",
  retry: "person",
});

/** The report itself when it can travel, else a failed one that says why not: what cannot be sent would be repeated for ever. */
export function sendable(report: Report): Report {
  try {
    decodeUp(encode({ type: "report", report }));
    return report;
  } catch (error) {
    const fault = error instanceof Fault ? error.toBody() : ownFault("The shim cannot encode its report", error);
    return { ...report, result: { ok: false, fault: { ...fault, retry: "person" } } };
  }
}

/** A report that answers a command without executing it. */
export const refusal = (command: Command, fault: FaultBody): Report => ({
  commandId: command.id,
  migrationId: command.migrationId,
  epoch: command.epoch,
  ms: 0,
  result: { ok: false, fault },
});

/** The refusal of a command of a migration that this host has finished with. */
export function forgottenRefusal(command: Command): Report {
  const report = refusal(command, staleFault(command, null));
  return report.result.ok ? report : { ...report, result: { ...report.result, forgotten: true } };
}

export const staleFault = (command: Command, known: number | null): FaultBody => ({
  code: "epoch.stale",
  cause:
    known === null
      ? `This host has finished with migration ${command.migrationId} and forgotten it.`
      : `The command is of epoch ${command.epoch}; this host has acted on epoch ${known} of the same migration.`,
  action: "Nothing: the command was overtaken by a newer decision and was not executed.",
  retry: "never",
});

export const conflictFault = (command: Command): FaultBody => ({
  code: "command.conflict",
  cause: `The command id ${command.id} came before with another body; this one was not executed.`,
  action: "Report it as a defect of the control plane with both times.",
  retry: "never",
});

/** The disk refused the intent. Nothing was begun, so a new command may be tried. */
export const unbegunFault = (command: Command, error: unknown): FaultBody => ({
  code: "internal",
  cause: `The shim cannot write its journal, so ${command.kind} was not begun (${error instanceof Fault ? error.cause_ : error instanceof Error ? error.name : typeof error}).`,
  action: "Look at the disk of the shim's state directory on that host (df, its mount), then try again.",
  retry: "safe",
});
