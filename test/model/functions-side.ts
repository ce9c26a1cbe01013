/**
 * The functions in the model: the real `transition` and the real `commandBody` of functions/core. Their states are folded
 * (times, figures and the story carry no future), numbered, and each (state, event) is computed once.
 */
import { commandBody } from "#core/command-body";
import type { MigrationEvent, StoredReport } from "#core/event";
import { unresolvable } from "#core/resolution";
import { persistentSteps } from "#core/retreat";
import { blobNames, type Failure, type MigrationState } from "#core/state";
import { ticketOf } from "#core/ticket";
import { transition } from "#core/transition";
import type { CommandKind, DomainState, Receipt, ReportBody, Side } from "#protocol/command";
import { commandSide } from "#protocol/command";
import { ticketCommandId, ticketKindOf } from "#protocol/ticket";
import {
  at,
  fault,
  freshMigration,
  inlineBlob,
  later,
  receipt,
  storedBlob,
  success,
  successes,
  tree,
} from "#test/fake/migration";

export type Outcome = "started" | "destroyed";

/** A command as the model's shims see it: what of its body decides anything. Equal text means equal body (I6). */
export interface ModelCommand {
  /** `kind:attempt`; a command that a shim makes by the ticket has the kinds `ticketFinish`, `ticketConfirm`. */
  id: string;
  kind: CommandKind;
  epoch: number;
  /** Of a finish. */
  cancelled: boolean;
  /** Of a confirm. */
  receipt: Outcome | null;
}

const commandTexts = new Map<string, ModelCommand>();

/** Commands travel and are kept as text: `id/epoch/argument`. */
export function commandText({ id, epoch, kind, cancelled, receipt: told }: ModelCommand): string {
  const text = `${id}/${epoch}/${kind === "finish" ? (cancelled ? "c" : "g") : kind === "confirm" ? told : ""}`;
  if (!commandTexts.has(text)) commandTexts.set(text, { id, epoch, kind, cancelled, receipt: told });
  return text;
}

export function commandOf(text: string): ModelCommand {
  const command = commandTexts.get(text);
  if (command === undefined) throw new TypeError(`no command was ever made that reads ${text}`);
  return command;
}

/** Tries of one kind that the timer makes in the model; a step that fails more often than this is stuck. */
export const triesMax = 4;

interface Numbered {
  state: MigrationState;
  commands: Record<Side, string[]>;
  arrows: Map<string, number>;
}

export type Decide = typeof transition;

/** What a shim reported, as text: `ok:…` or `fail:…` with the parts that decide anything. */
export type ReportText = string;

export class FunctionsSide {
  readonly #decide: Decide;
  readonly #numbers = new Map<string, number>();
  readonly #states: Numbered[] = [];

  constructor(decide: Decide = transition) {
    this.#decide = decide;
  }

  get count(): number {
    return this.#states.length;
  }

  /** The migration as it stands when the tree is staged over there and Begin has just been commanded. */
  begin(): number {
    let state = freshMigration();
    const apply = (event: MigrationEvent) => {
      state = transition(state, event).state;
    };
    apply({ type: "requested", at });
    for (const name of ["snapshots", "clear", "done", "done"]) {
      const [pending] = state.pending;
      const body = pending === undefined ? undefined : successes(pending.kind)[name];
      if (pending === undefined || body === undefined) throw new TypeError("the way to Begin has changed");
      apply({ type: "reported", at, report: success(state, pending, body) });
    }
    if (state.step !== "beginning") throw new TypeError(`the way to Begin ends in ${state.step}`);
    return this.#number(state);
  }

  state(number: number): MigrationState {
    return this.#entry(number).state;
  }

  /** The pending commands of a side, as text. */
  commands(number: number, side: Side): string[] {
    return this.#entry(number).commands[side];
  }

  reported(number: number, id: string, report: ReportText): number {
    return this.#arrow(number, `reported ${id} ${report}`, (state) => ({
      type: "reported",
      at,
      report: reportOf(state, id, report),
    }));
  }

  cancelRequested(number: number): number {
    return this.#arrow(number, "cancel", () => ({ type: "cancelRequested", at, by: "a person" }));
  }

  /** Each time it comes too late it may ask for an abort again: twice is enough to see what that does. */
  connectionLost(number: number, epoch: number): number {
    if ((this.state(number).attempts.abort ?? 0) >= 2) return number;
    return this.#arrow(number, `lost ${epoch}`, () => ({ type: "connectionLost", at, epoch, cause: "lost" }));
  }

  /** The timer finds a step without a command and tries it again. */
  triedAgain(number: number): number {
    const { step, pending, attempts } = this.state(number);
    const kind = persistentSteps[step];
    if (pending.length > 0 || kind === undefined || (attempts[kind] ?? 0) >= triesMax) return number;
    return this.#arrow(number, "tick", () => ({ type: "ticked", at: later, unreachable: [], elapsedMs: null }));
  }

  /** The timer finds a command overdue. What it only shows to people is no step of the model. */
  overdue(number: number): number {
    const { step, pending } = this.state(number);
    if (pending.length === 0 || step === "performing" || persistentSteps[step] !== undefined) return number;
    return this.#arrow(number, "tick", () => ({ type: "ticked", at: later, unreachable: [], elapsedMs: null }));
  }

  fenced(number: number, side: Side): number {
    if (unresolvable(this.state(number), side) !== null) return number;
    return this.#arrow(number, `fenced ${side}`, () => ({
      type: "resolved",
      at,
      by: "a person",
      reason: "gone",
      fenced: side,
    }));
  }

  #entry(number: number): Numbered {
    const entry = this.#states[number];
    if (entry === undefined) throw new TypeError(`no state of the functions has the number ${number}`);
    return entry;
  }

  #arrow(number: number, label: string, event: (state: MigrationState) => MigrationEvent): number {
    const entry = this.#entry(number);
    const known = entry.arrows.get(label);
    if (known !== undefined) return known;
    const next = this.#decide(entry.state, event(entry.state));
    const to = next.state === entry.state ? number : this.#number(next.state);
    entry.arrows.set(label, to);
    return to;
  }

  #number(state: MigrationState): number {
    const same = folded(state);
    const key = JSON.stringify(same);
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    const commands = { source: [] as string[], destination: [] as string[] };
    for (const pending of same.pending) commands[pending.side].push(pendingText(same, pending));
    const number = this.#states.length;
    this.#states.push({ state: same, commands, arrows: new Map() });
    this.#numbers.set(key, number);
    return number;
  }
}

const blobs = Object.fromEntries(blobNames.map((name) => [name, inlineBlob]));

function pendingText(state: MigrationState, pending: MigrationState["pending"][number]): string {
  const ticket = ticketOf(state);
  const signed = ticket === null ? null : { text: JSON.stringify(ticket), signature: "s" };
  const body = commandBody(state, pending, blobs, signed);
  if (body === null) throw new TypeError(`${state.step} cannot build ${pending.kind}`);
  if (body.kind === "perform" && body.ticket === null) throw new TypeError("Perform is commanded without a ticket");
  return commandText({
    id: pending.id.slice(state.id.length + 1),
    kind: pending.kind,
    epoch: body.epoch,
    cancelled: body.kind === "finish" && body.cancelled,
    receipt: body.kind === "confirm" ? body.receipt.outcome : null,
  });
}

/** Without what has no future: times, figures, texts, the story. A status that only calls a person is none either. */
function folded(state: MigrationState): MigrationState {
  return {
    ...state,
    status: state.step === "ended" || state.step === "sweeping" ? state.status : "running",
    version: 0,
    updatedAt: at,
    endedAt: state.endedAt === null ? null : at,
    timeline: [],
    pending: state.pending.map((pending) => ({ ...pending, issuedAt: at, deadlineAt: at })),
    receipt: state.receipt === null ? null : { ...receipt(state.receipt.outcome), evidence: evidenceOf(state.receipt) },
    fenced: state.fenced === null ? null : { ...state.fenced, by: "", reason: "", at },
    cancel: state.cancel === null ? null : { ...state.cancel, by: "", at },
    snapshots: { total: 0, staged: 0, verified: 0 },
    downtimeMs: null,
    transferredBytes: null,
    strippedMs: null,
    performSeen: null,
    abortCause: plain(state.abortCause),
    failure: plain(state.failure),
  };
}

const evidenceOf = ({ evidence }: Receipt) => (evidence === "fenced" ? "fenced" : "finish");

/** Only whether it was a cancel decides anything later. */
const plain = (failure: Failure | null): Failure | null =>
  failure === null
    ? null
    : {
        code: failure.code === "migration.cancelled" ? "migration.cancelled" : "libvirt.failed",
        cause: "",
        action: "",
        retry: "safe",
        phase: "performing",
        side: null,
      };

function reportOf(state: MigrationState, id: string, text: ReportText): StoredReport {
  const [name = "", attempt = ""] = id.split(":");
  const byTicket = ticketKindOf(`${state.id}:${id}`);
  const head = {
    commandId: byTicket === null ? `${state.id}:${id}` : ticketCommandId(state.id, byTicket, Number(attempt)),
    migrationId: state.id,
    epoch: state.epoch,
    ms: 1,
  };
  const [verdict, first, second] = text.split(":");
  if (verdict === "fail")
    return {
      ...head,
      result: {
        ok: false,
        fault,
        ...(first === undefined || first === "unknown" ? {} : { sourceState: first as DomainState }),
        ...(second === undefined || second === "none" ? {} : { receipt: receipt(outcome(second)) }),
      },
    };
  const kind = (byTicket ?? name) as CommandKind;
  const body = bodyOf(kind, first, second);
  const kept = kind === "perform" ? { C: storedBlob } : kind === "prepare" ? { B: storedBlob } : {};
  return { ...head, result: { ok: true, body, blobs: kind === "begin" ? { A: storedBlob, xml: storedBlob } : kept } };
}

function outcome(text: string | undefined): Outcome {
  if (text === "started" || text === "destroyed") return text;
  throw new TypeError(`${text} is no outcome`);
}

function bodyOf(kind: CommandKind, first: string | undefined, second: string | undefined): ReportBody {
  const source = second as "gone" | "running" | "paused" | "shutoff";
  switch (kind) {
    case "perform":
      return {
        kind,
        cookie: inlineBlob,
        statistics: { downtimeMs: null, transferredBytes: null, totalMs: null },
        ended:
          first === undefined
            ? null
            : { receipt: receipt(outcome(first)), source, fault: null, cookie: null, finishMs: 0, confirmMs: 0 },
      };
    case "abort":
      return { kind, aborted: first === "yes" };
    case "finish":
      return { kind, receipt: receipt(outcome(first)), cookie: null, fault: null };
    case "confirm":
      return { kind, source, receipt: receipt(outcome(first)) };
    case "restore":
      return { kind, tree, state: first as DomainState };
    case "settle":
      return { kind, tree, state: first as DomainState, autostart: true };
    case "unstage":
      return { kind, removed: true };
    default: {
      const body = successes(kind).done;
      if (body === undefined) throw new TypeError(`${kind} is no step of the model`);
      return body;
    }
  }
}

export const sideOf = (command: ModelCommand): Side => commandSide[command.kind];
