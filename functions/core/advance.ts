/**
 * The way forward: what each report of success leads to. The nine steps of the design in order; a domain without snapshots
 * and checkpoints skips export and stage, one that is not running skips Perform (libvirt-domain.c,
 * virDomainMigrateVersion3Full: offline goes from Prepare to Finish).
 */
import type { CommandKind, PeerEnd, Receipt, ReportBodyOf, Side } from "#protocol/command";
import type { FaultBody, Finding } from "#protocol/fault";
import { change, cut, type Draft, end, enter, fail, failureOf, later, note } from "./draft.ts";
import { findingCharsMax, findingsMax, ticketMsMax } from "./limits.ts";
import {
  confirmSource,
  restoreSource,
  retreat,
  rolledBack,
  settleDestination,
  undoDestination,
  undoSource,
} from "./retreat.ts";
import type { BlobName, MigrationState, Step, StoredBlob } from "./state.ts";

export interface Success<K extends CommandKind> {
  draft: Draft;
  body: ReportBodyOf<K>;
  blobs: Partial<Record<BlobName, StoredBlob>>;
  ms: number;
}
type Advance<K extends CommandKind> = (success: Success<K>) => Draft;

/** Each command is awaited in the steps named here only; anywhere else its report is history and changes nothing. */
export const stepsOf: Record<CommandKind, readonly Step[]> = {
  inspectSource: ["inspectingSource"],
  inspectDestination: ["inspectingDestination"],
  export: ["exporting"],
  stage: ["staging"],
  begin: ["beginning"],
  prepare: ["preparing"],
  perform: ["performing"],
  abort: ["performing"],
  finish: ["finishing", "abortingFinish"],
  confirm: ["confirming", "abortingConfirm", "sweeping"],
  settle: ["settling", "sweeping"],
  restore: ["restoring", "sweeping"],
  unstage: ["unstaging", "sweeping"],
  restoreBundle: [],
};

const keep = (draft: Draft, blobs: Partial<Record<BlobName, StoredBlob>>): Draft =>
  change(draft, { blobs: { ...draft.state.blobs, ...blobs } });

const settled = (draft: Draft, kind: CommandKind): Draft =>
  change(draft, { pending: draft.state.pending.filter((pending) => pending.kind !== kind) });

const inspectSource: Advance<"inspectSource"> = ({ draft, body, blobs, ms }) => {
  const { snapshots, checkpoints } = body.carries;
  const { state, memoryKiB, vcpus, autostart } = body.domain;
  const offline = state === "shutoff";
  const learned = change(keep(draft, blobs), {
    facts: { state, memoryKiB, vcpus, autostart, snapshots, checkpoints },
    findings: bounded(body.findings),
    snapshots: { total: snapshots, staged: 0, verified: 0 },
    options: { ...draft.state.options, offline },
  });
  const noted = note(learned, {
    side: "source",
    ms,
    note: `inspected: ${state}, ${snapshots} snapshots, ${checkpoints} checkpoints`,
  });
  return firstBlocker(noted) ?? enter(noted, "inspectingDestination", "inspectDestination");
};

/** As many findings as an item can hold, texts cut; the first of every code is kept, so no blocker and no risk is lost. */
function bounded(findings: readonly Finding[]): Finding[] {
  const first = findings.filter(({ code }, index) => findings.findIndex((other) => other.code === code) === index);
  const more = findings.filter((finding) => !first.includes(finding));
  return [...first, ...more.slice(0, Math.max(0, findingsMax - first.length))].map((finding) => ({
    ...finding,
    cause: cut(finding.cause, findingCharsMax),
    action: cut(finding.action, findingCharsMax),
  }));
}

const inspectDestination: Advance<"inspectDestination"> = ({ draft, body, ms }) => {
  const { accept, facts } = draft.state;
  const accepted = new Set(accept);
  const storageAccepted = accepted.has("storage.notShared") || accepted.has("storage.cacheMode");
  const noted = note(
    change(draft, {
      findings: bounded([...draft.state.findings, ...body.findings]),
      options: { ...draft.state.options, unsafe: body.storageProven || storageAccepted },
    }),
    {
      side: "destination",
      ms,
      note: body.storageProven ? "inspected: storage proven to be the same by both shims" : "inspected",
    },
  );
  const refused = firstBlocker(noted) ?? unacceptedRisks(noted, accepted);
  if (refused !== null) return refused;
  const carries = (facts?.snapshots ?? 0) + (facts?.checkpoints ?? 0) > 0;
  return carries ? enter(noted, "exporting", "export") : enter(noted, "beginning", "begin");
};

function firstBlocker(draft: Draft): Draft | null {
  const blocker = draft.state.findings.find((finding) => finding.severity === "blocker");
  return blocker === undefined
    ? null
    : retreat(draft, failureOf({ ...plain(blocker), retry: "never" }, draft.state.step, null));
}

const plain = ({ code, cause, action }: Finding) => ({ code, cause, action });

function unacceptedRisks(draft: Draft, accepted: ReadonlySet<string>): Draft | null {
  const open = draft.state.findings.filter((finding) => finding.severity === "risk" && !accepted.has(finding.code));
  const first = open[0];
  if (first === undefined) return null;
  const codes = [...new Set(open.map((finding) => finding.code))].join(",");
  return retreat(
    draft,
    failureOf(
      {
        code: "risk.notAccepted",
        cause: first.cause,
        action: `${first.action} Or accept what was found by name: --accept ${codes}`,
        retry: "person",
      },
      draft.state.step,
      null,
    ),
  );
}

const exported: Advance<"export"> = ({ draft, body, ms }) => {
  const { bundle } = body;
  const noted = note(change(draft, { bundle }), {
    side: "source",
    ms,
    note: `bundle of ${bundle.snapshots} snapshots, ${bundle.checkpoints} checkpoints, ${bundle.bytes} bytes`,
  });
  return enter(change(noted, { touched: { ...noted.state.touched, staged: true } }), "staging", "stage");
};

/** I3: the source is stripped only after the destination read its tree back and it is the bundle's. */
const staged: Advance<"stage"> = ({ draft, body, ms }) => {
  const { bundle, snapshots } = draft.state;
  if (bundle !== null && body.tree.treeSha256 !== bundle.treeSha256)
    return retreat(draft, mismatch(draft, "The tree read back on the destination is not the bundle's."));
  const noted = note(change(draft, { snapshots: { ...snapshots, staged: body.tree.snapshots } }), {
    side: "destination",
    ms,
    note: `${body.tree.snapshots} snapshots staged and read back`,
  });
  return enter(noted, "beginning", "begin");
};

const mismatch = (draft: Draft, cause: string) =>
  failureOf(
    {
      code: "snapshot.mismatch",
      cause,
      action: "Nothing is lost: the bundle is kept. Compare with: vmferry bundle show.",
      retry: "person",
    },
    draft.state.step,
    "destination",
  );

const begun: Advance<"begin"> = ({ draft, body, blobs, ms }) => {
  const stripped = body.strippedMs > 0 ? `, source without snapshot metadata for ${Math.ceil(body.strippedMs)} ms` : "";
  const noted = note(change(keep(draft, blobs), { flags: body.flags, strippedMs: body.strippedMs }), {
    side: "source",
    ms,
    note: `cookie A of ${body.cookie.bytes} bytes, XML of ${body.xml.bytes} bytes${stripped}`,
  });
  return enter(change(noted, { touched: { ...noted.state.touched, prepared: true } }), "preparing", "prepare");
};

const prepared: Advance<"prepare"> = ({ draft, body, blobs, ms }) => {
  const noted = note(change(keep(draft, blobs), { uri: body.uri, peer: body.peer }), {
    side: "destination",
    ms,
    note: `cookie B of ${body.cookie.bytes} bytes`,
  });
  if (noted.state.options.offline) return enter(noted, "finishing", "finish");
  // The guest runs: without a way from shim to shim it must not come to depend on ours.
  if (body.peer === null) return retreat(noted, noPeer(noted));
  const ticket = { epoch: noted.state.epoch, expiresAt: later(noted.at, ticketMsMax) };
  return enter(change(noted, { ticket }), "performing", "perform");
};

const noPeer = ({ state }: Draft) =>
  failureOf(
    {
      code: "peer.unreachable",
      cause: `The shim on ${state.destination.name} has no peer channel, so nobody could end the migration without us.`,
      action: `Look at why it does not listen (journalctl -u vmferry-shim on ${state.destination.name}), then migrate again.`,
      retry: "safe",
    },
    "preparing",
    "destination",
  );

const performed: Advance<"perform"> = ({ draft, body, blobs, ms }) => {
  const { downtimeMs, transferredBytes } = body.statistics;
  const noted = noteBeforeReceipt(
    change(keep(draft, blobs), {
      downtimeMs,
      transferredBytes,
      touched: { ...draft.state.touched, performed: true },
    }),
    { side: "source", ms, note: `cookie C of ${body.cookie?.bytes ?? "unknown"} bytes` },
  );
  if (body.ended !== null) return endedByPeers(noted, body.ended);
  // The destination's own word came before: only the source has not heard it.
  const { receipt } = noted.state;
  if (receipt === null) return enter(noted, "finishing", "finish");
  return receipt.outcome === "started" ? confirmSource(noted, "confirming") : undoSource(turnRound(noted, null));
};

/** Perform ended before the destination stated how Finish did, whichever was learnt first: the story is told in that order. */
function noteBeforeReceipt(draft: Draft, line: { side: Side; ms: number; note: string }): Draft {
  const last = draft.state.timeline.at(-1);
  if (draft.state.receipt === null || last?.step !== "finishing") return note(draft, line);
  const before = change({ ...draft, at: last.at }, { timeline: draft.state.timeline.slice(0, -1) });
  const noted = note(before, line);
  return { ...change(noted, { timeline: [...noted.state.timeline, last] }), at: draft.at };
}

/** The shims have ended the handshake by their ticket: what is left is to learn it, and to do what they could not. */
function endedByPeers(draft: Draft, { receipt, source, fault, finishMs, confirmMs }: PeerEnd): Draft {
  const told = draft.state.receipt === null ? peerReceipt(change(draft, { receipt }), receipt, finishMs) : draft;
  const noted = note(told, { step: "confirming", side: "source", ms: confirmMs, note: `confirmed: ${source}` });
  if (receipt.outcome === "started")
    return source === "gone" ? settleDestination(noted) : confirmSource(noted, "confirming");
  const paused = change(noted, { touched: { ...noted.state.touched, performed: source === "paused" } });
  return undoSource(turnRound(paused, fault));
}

/** What the destination stated, learnt from whoever tells it first. */
export function peerReceipt(draft: Draft, { outcome, evidence }: Receipt, ms: number): Draft {
  return note(draft, {
    step: "finishing",
    side: "destination",
    ms,
    note: `receipt: ${outcome} (by ${evidence}), shim to shim`,
  });
}

/** Finish was asked to start the domain and did not. */
export function turnRound(draft: Draft, fault: FaultBody | null): Draft {
  const why = fault ??
    draft.state.abortCause ?? {
      code: "finish.failed" as const,
      cause: "The destination did not start the domain.",
      action: "Look at the destination's QEMU log, then migrate again.",
      retry: "safe" as const,
    };
  return change(fail(draft, failureOf(why, "finishing", "destination")), { epoch: draft.state.epoch + 1 });
}

/** Too late to stop is no reason to think so later: another cancel may be asked for, and a later failure has its own cause. */
const aborted: Advance<"abort"> = ({ draft, body }) =>
  note(change(settled(draft, "abort"), body.aborted ? {} : { abortCause: null }), {
    side: "source",
    note: body.aborted ? "Perform asked to stop" : "too late to stop Perform: its end decides",
  });

/** The receipt decides, on the way forward and on the way back alike (I7). */
const finished: Advance<"finish"> = ({ draft, body, blobs, ms }) => {
  const { receipt, cookie } = body;
  const size = cookie === null ? "" : `, cookie D of ${cookie.bytes} bytes`;
  const noted = note(change(keep(draft, blobs), { receipt }), {
    side: "destination",
    ms,
    note: `receipt: ${receipt.outcome} (by ${receipt.evidence})${size}`,
  });
  if (receipt.outcome === "started") return confirmSource(noted, "confirming");
  return undoSource(noted.state.step === "abortingFinish" ? noted : turnRound(noted, body.fault));
};

const confirmed: Advance<"confirm"> = ({ draft, body, ms }) => {
  const noted = note(draft, { side: "source", ms, note: `confirmed: ${body.source}` });
  return noted.state.receipt?.outcome === "started" ? settleDestination(noted) : restoreSource(noted);
};

/**
 * I4: completed only with the tree complete on the host that has the domain. The shim compared it with the bundle; what
 * stands otherwise is the owner's own change since the guest arrived. A report that claims neither is a defect of the shim,
 * which has forgotten the migration by then: a person must look, and nothing is tried again.
 */
const settledThere: Advance<"settle"> = ({ draft, body, ms }) => {
  const { bundle, snapshots } = draft.state;
  const changed = body.changedByOwner === true ? ", changed by its owner since it arrived" : "";
  const noted = note(draft, {
    side: "destination",
    ms,
    note: `settled: ${body.state}, ${body.tree.snapshots} snapshots verified${changed}`,
  });
  const grown =
    bundle !== null && (body.tree.snapshots > bundle.snapshots || body.tree.checkpoints > bundle.checkpoints);
  const same = bundle === null || body.tree.treeSha256 === bundle.treeSha256;
  if (!same && !grown && body.changedByOwner !== true)
    return end(
      fail(noted, mismatch(noted, "The tree on the destination is not the bundle's.")),
      "stranded",
      "stranded",
    );
  const whole = change(noted, { snapshots: { ...snapshots, verified: body.tree.snapshots }, failure: null });
  return end(whole, "completed", "completed");
};

const restored: Advance<"restore"> = ({ draft, body, ms }) => {
  const { bundle } = draft.state;
  const same = bundle === null || body.tree.treeSha256 === bundle.treeSha256;
  const said = same ? "its tree compared" : "its tree has been changed by others since the export";
  const strips = (draft.state.attempts.begin ?? 0) > 0 && body.absent !== true;
  const { snapshots } = draft.state;
  const counted = strips ? change(draft, { snapshots: { ...snapshots, restored: body.tree.snapshots } }) : draft;
  return undoDestination(
    note(counted, {
      side: "source",
      ms,
      note:
        body.absent === true
          ? "the source no longer knows the domain: somebody has removed it"
          : `source ${body.state}, ${body.tree.snapshots} snapshots, ${said}`,
    }),
  );
};

const unstaged: Advance<"unstage"> = ({ draft, body, ms }) =>
  rolledBack(
    note(draft, { side: "destination", ms, note: body.removed ? "staged definition removed" : "nothing left there" }),
  );

export const advances: { [K in Exclude<CommandKind, "restoreBundle">]: Advance<K> } = {
  inspectSource,
  inspectDestination,
  export: exported,
  stage: staged,
  begin: begun,
  prepare: prepared,
  perform: performed,
  abort: aborted,
  finish: finished,
  confirm: confirmed,
  settle: settledThere,
  restore: restored,
  unstage: unstaged,
};

/** A receipt that says otherwise than an earlier one is a defect of a shim: nothing is decided by it (I7). A person's
 *  statement is no receipt of the destination: its own word, which the source had before, stands against it. */
export function contradicts(state: MigrationState, receipt: Receipt): boolean {
  const known = state.receipt;
  if (known === null || known.outcome === receipt.outcome) return false;
  return !(known.evidence === "fenced" && receipt.evidence !== "fenced");
}
