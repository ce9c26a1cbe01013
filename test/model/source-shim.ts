/**
 * The source's steps (perform.ts, hand-over.ts, hand-over-watch.ts, confirm.ts, restore.ts, source.ts of the shim), cut where a
 * crash, a lost connection or somebody else's step may come in between: at journal entries, calls of libvirt, questions to
 * the peer.
 */
import { commandOf, commandText, type FunctionsSide, type Outcome } from "./functions-side.ts";
import {
  end,
  epochOf,
  intend,
  isIdle,
  isRefused,
  journalReport,
  reportOf,
  resumedMark,
  startNext,
  take,
  textOf,
  unreported,
} from "./lane.ts";
import { closeSource, endSource, performBroken, resumeSource } from "./libvirt.ts";
import type { Rules } from "./rules.ts";
import type { Emit } from "./step.ts";
import type { ModelWorld } from "./world.ts";

const fencedDestination = (functions: FunctionsSide, world: ModelWorld) =>
  functions.state(world.functions).fenced?.side === "destination";

/** The domain's state as a probe tells it. */
function stateOf({ source }: ModelWorld): string {
  if (!source.defined) return "nostate";
  return source.cpu === "off" ? "shutoff" : source.cpu;
}

function useConnection({ source }: ModelWorld): void {
  const { journal, memory } = source;
  memory.connected = true;
  const { kind } = commandOf(memory.running);
  if (kind === "begin" && journal.beginBound === 0) journal.beginBound = 1;
  if (kind === "perform" && journal.performBound === 0) journal.performBound = 1;
}

/** Whether what Perform has bound still hangs on the connection that lives. */
function isContinuous({ source }: ModelWorld): boolean {
  const { beginBound, performBound } = source.journal;
  return performBound === 0 ? beginBound !== 2 : performBound === 1;
}

/** What the destination's shim would answer to a hand-over now. */
const peerStates = ({ destination, power }: ModelWorld): "" | Outcome =>
  power.destination === "gone" || destination.journal.forgotten ? "" : destination.journal.finished;

function clearWork(world: ModelWorld): void {
  const { memory } = world.source;
  memory.state = "";
  memory.told = "";
  memory.became = "";
}

/** The end of Perform, well or badly, with what is known by then. */
function endPerform(world: ModelWorld, rules: Rules): void {
  const { memory } = world.source;
  const { state, told, became } = memory;
  const source = became === "" ? "paused" : became;
  let report: string;
  if (state === "") report = told === "" ? "ok" : `ok:${told}:${source}`;
  else if (told === "") report = `fail:${state}`;
  else report = `fail:${source === "gone" ? "nostate" : source}:${told}`;
  clearWork(world);
  end(world.source, report, rules);
}

/** A step that acts by a receipt has done what it can; `became` "" says that it could not. */
function endActing(world: ModelWorld, rules: Rules): void {
  const { memory } = world.source;
  if (commandOf(memory.running).kind === "perform") {
    endPerform(world, rules);
    return;
  }
  const report = memory.became === "" ? "fail" : `ok:${memory.told}:${memory.became}`;
  clearWork(world);
  end(world.source, report, rules);
}

export function sourceSteps(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  if (world.power.source === "gone") return;
  const { journal, memory, job, cpu } = world.source;
  if (memory.abort !== "") abortStep(world, rules, emit);
  if (memory.position !== "") runningStep(world, functions, rules, emit);
  // Perform's own watch, or the connection's end, as Perform's caller sees it.
  if (memory.position === "called") {
    if (job === "performing" && journal.abortAsked)
      emit("the source's watch aborts Perform", (next) => breakCalled(next));
    if (!memory.connected)
      emit("the source's shim sees that Perform's answer is lost", (next) => {
        next.source.memory.position = "settling";
      });
    else if (job === "" && cpu === "running")
      emit("Perform's failure is answered", (next) => {
        next.source.memory.state = "running";
        next.source.memory.position = "failing";
      });
  }
  watchStep(world, rules, emit);
  forgetStep(world, functions, rules, emit);
}

/** Perform ends by an abort; its caller, when there is one, is told. */
function breakCalled(world: ModelWorld): void {
  performBroken(world);
}

function abortStep(world: ModelWorld, _rules: Rules, emit: Emit): void {
  const { journal, memory, job } = world.source;
  emit("the source's shim carries the abort out", (next) => {
    const { source } = next;
    let aborted = false;
    if (!journal.performing) aborted = !journal.performRefused;
    else if (job === "performing") {
      breakCalled(next);
      aborted = true;
    }
    journalReport(source, memory.abort, aborted ? "ok:yes" : "ok:no");
    source.memory.abort = "";
  });
}

/** An abort begins at once, beside what runs. */
export function takeAbort(world: ModelWorld, text: string): void {
  const { source } = world;
  intend(source, text);
  source.journal.abortAsked = true;
  source.memory.abort = text;
  source.memory.epoch = Math.max(source.memory.epoch, commandOf(text).epoch);
}

function runningStep(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  const { journal, memory, job, jobBound } = world.source;
  const command = commandOf(memory.running);
  switch (memory.position) {
    case "begin":
      emit("the source strips its tree", (next) => {
        const { source } = next;
        useConnection(next);
        source.lacksTree = false;
        source.journal.stripped = false;
        if (source.job !== "" || source.cpu !== "running") {
          end(source, "fail", rules);
          return;
        }
        source.journal.stripped = true;
        source.lacksTree = true;
        source.memory.position = "stripped";
      });
      return;
    case "stripped":
      emit("Begin, and the source's tree is redefined", (next) => {
        useConnection(next);
        next.source.lacksTree = false;
        next.source.journal.stripped = false;
        end(next.source, "ok", rules);
      });
      return;
    case "perform":
      if (memory.resumed) {
        emit("the source takes Perform up again", (next) => {
          const { source } = next;
          if (journal.armed && journal.handed === "performed") source.memory.position = "handing";
          else if (journal.performing) source.memory.position = "settling";
          else {
            source.memory.state = stateOf(next);
            endPerform(next, rules);
          }
        });
        return;
      }
      emit("the source keeps the ticket and asks to arm", (next) => {
        const { source } = next;
        useConnection(next);
        if (source.job !== "" || !source.defined) {
          source.memory.position = "refusing";
          return;
        }
        source.journal.armed = true;
        next.asked.arm = rules.armsFirst;
        source.memory.position = rules.armsFirst ? "arming" : "ready";
      });
      return;
    case "arming":
      if (world.power.destination !== "gone" && world.destination.journal.armed && !world.destination.journal.forgotten)
        emit("the source hears that the destination is armed", (next) => {
          next.source.memory.position = "ready";
        });
      emit("the source hears nothing, or no, of the arming", (next) => {
        next.source.memory.position = "refusing";
      });
      return;
    case "refusing":
      emit("Perform is refused before it began", (next) => {
        next.source.journal.performRefused = true;
        next.source.memory.state = stateOf(next);
        endPerform(next, rules);
      });
      return;
    case "ready":
      emit("the source journals that Perform begins", (next) => {
        const { source } = next;
        if (source.journal.abortAsked) {
          source.memory.position = "refusing";
          return;
        }
        source.journal.performing = true;
        source.memory.position = "calling";
      });
      return;
    case "calling":
      emit("the source calls Perform", (next) => {
        const { source } = next;
        if (!source.memory.connected) source.memory.position = "settling";
        else if (source.job !== "" || source.cpu === "off" || !source.defined) {
          source.memory.state = stateOf(next);
          source.memory.position = "failing";
        } else {
          source.job = "performing";
          source.jobBound = true;
          source.memory.position = "called";
        }
      });
      return;
    case "settling":
      if (job === "performing")
        emit("the source aborts a Perform whose answer is lost", (next) => {
          useConnection(next);
          performBroken(next);
        });
      else
        emit("the source looks at the domain after a lost Perform", (next) => {
          useConnection(next);
          next.source.memory.state = stateOf(next);
          next.source.memory.position = "failing";
        });
      return;
    case "failing":
      emit("the source journals that Perform failed", (next) => {
        const { source } = next;
        if (!source.journal.armed) {
          endPerform(next, rules);
          return;
        }
        if (source.journal.handed === "") source.journal.handed = "failed";
        next.asked.handOver = source.journal.handed;
        source.memory.position = "handing";
      });
      return;
    case "performed":
      emit("the source journals Perform's success", (next) => {
        const { source } = next;
        if (rules.journalsResult) source.journal.handed = "performed";
        next.asked.handOver = "performed";
        source.memory.position = rules.confirmsByReceipt ? "handing" : "acting";
        if (!rules.confirmsByReceipt) source.memory.told = "started";
      });
      return;
    case "handing": {
      const stated = journal.receipt === "" ? peerStates(world) : journal.receipt;
      if (stated !== "")
        emit(`the source keeps the receipt: ${stated}`, (next) => {
          next.source.journal.receipt = stated;
          next.source.memory.told = stated;
          next.source.memory.position = "acting";
        });
      // What is in the journal needs no answer any more.
      if (journal.receipt !== "") return;
      emit("the source hears no receipt for a while", (next) => {
        if (rules.silenceIsNoAnswer) {
          endPerform(next, rules);
          return;
        }
        next.source.memory.told = "destroyed";
        next.source.memory.position = "acting";
      });
      return;
    }
    case "confirm": {
      const contradicted = journal.receipt !== "" && journal.receipt !== command.receipt;
      emit(`the source confirms by the receipt: ${command.receipt}`, (next) => {
        const { source } = next;
        if (contradicted || command.receipt === null) {
          end(source, "fail", rules);
          return;
        }
        source.memory.told = command.receipt;
        source.memory.position = "acting";
      });
      return;
    }
    case "acting":
      actingStep(world, functions, rules, emit);
      return;
    case "removing":
      emit("the source undefines its domain", (next) => {
        useConnection(next);
        next.source.defined = false;
        next.source.memory.became = "gone";
        next.source.memory.position = "noting";
      });
      return;
    case "noting":
      emit("the source journals that it has confirmed", (next) => {
        next.source.journal.confirmed = true;
        endActing(next, rules);
      });
      return;
    case "restore":
      emit("the source restores", (next) => {
        const { source } = next;
        useConnection(next);
        const stuck = source.defined && source.cpu === "paused" && source.job === "";
        if (stuck && rules.restoreLeavesPaused) {
          end(source, "fail", rules);
          return;
        }
        if (stuck) resumeSource(next, fencedDestination(functions, next));
        source.lacksTree = false;
        source.journal.stripped = false;
        end(source, `ok:${stateOf(next)}`, rules);
      });
      return;
    case "called":
      if (job === "done" && jobBound)
        emit("Perform's success is answered", (next) => {
          next.source.memory.position = "performed";
        });
      return;
    default:
      throw new TypeError(`the source's shim stands at ${memory.position}`);
  }
}

/** confirmBy: gives the domain up, or takes it back. */
function actingStep(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  const { memory } = world.source;
  const act = (next: ModelWorld): void => {
    const { source } = next;
    useConnection(next);
    const became = (what: string): void => {
      source.memory.became = what;
      source.memory.position = "noting";
    };
    if (memory.told === "started") {
      if (!source.defined) became("gone");
      else if (source.cpu === "running" && rules.sparesRunning) endActing(next, rules);
      else if (source.cpu === "off") source.memory.position = "removing";
      else {
        const byConfirm = isContinuous(next) && source.job === "done";
        endSource(next);
        source.memory.position = "removing";
        if (!byConfirm) return;
        source.defined = false;
        became("gone");
      }
      return;
    }
    if (!source.defined) endActing(next, rules);
    else if (source.cpu !== "paused") became(source.cpu === "off" ? "shutoff" : "running");
    else if (source.journal.performRefused) became("paused");
    else {
      resumeSource(next, fencedDestination(functions, next));
      became("running");
    }
  };
  emit(memory.told === "started" ? "the source's copy is given up" : "the source is taken back", act);
  if (world.faults > 0 && world.source.memory.connected)
    emit.fault(
      `${memory.told === "started" ? "giving up" : "taking back"} is done and its answer lost with the connection`,
      (next) => {
        const { position, became } = next.source.memory;
        act(next);
        if (next.source.memory.running === "") return;
        next.source.memory.position = position;
        next.source.memory.became = became;
        closeSource(next);
      },
    );
}

/** hand-over-watch.ts: asks on for a receipt when Perform's report has gone without one. */
function watchStep(world: ModelWorld, rules: Rules, emit: Emit): void {
  const { source } = world;
  const { journal, memory } = source;
  const stated = peerStates(world);
  if (stated === "" || journal.forgotten || journal.handed === "" || !journal.armed) return;
  if (journal.receipt !== "" || journal.confirmed) return;
  const perform = reportOf(source, ({ kind }) => kind === "perform");
  if (perform === null || perform === "") return;
  const kinds = journal.intents.map((text) => commandOf(text).kind);
  if ((kinds.includes("confirm") || kinds.includes("restore")) && unreported(source).length > 0) return;
  const isOwn = (text: string) => textOf(text).startsWith("ticketConfirm:");
  if (memory.queue.some(isOwn) || isOwn(memory.running)) return;
  const attempt = journal.intents.filter(isOwn).length + 1;
  if (attempt > ownTriesMax) return;
  const text = commandText({
    id: `ticketConfirm:${attempt}`,
    kind: "confirm",
    epoch: epochOf(journal),
    cancelled: false,
    receipt: stated,
  });
  if (isRefused(source, text, rules)) return;
  emit(`the source's watch hears the receipt: ${stated}`, (next) => take(next.source, text, rules));
}

/** Tries of a command that a shim makes itself; real shims go on, each time the same. */
export const ownTriesMax = 2;

const endsHere = (text: string, report: string): boolean => {
  const { kind, receipt } = commandOf(text);
  if (!report.startsWith("ok")) return false;
  if (kind === "confirm") return receipt === "started";
  if (kind === "perform") return report === "ok:started:gone";
  return kind === "restore";
};

/** The functions have the report that ends this host's part: the migration is forgotten here. */
function forgetStep(world: ModelWorld, functions: FunctionsSide, _rules: Rules, emit: Emit): void {
  const { source } = world;
  const { journal } = source;
  if (world.alone || journal.forgotten || !isIdle(source) || source.memory.abort !== "") return;
  const isOver = journal.intents.some((text, index) => {
    const report = journal.reports[index] ?? "";
    return (
      endsHere(text, report) && functions.reported(world.functions, commandOf(text).id, report) === world.functions
    );
  });
  if (!isOver) return;
  emit("the source forgets the migration", (next) => {
    closeSource(next);
    forgetTickets(next, next.source.journal);
    next.source.journal = {
      forgotten: true,
      intents: [],
      reports: [],
      armed: false,
      stripped: false,
      performing: false,
      performRefused: false,
      abortAsked: false,
      handed: "",
      receipt: "",
      confirmed: false,
      beginBound: 0,
      performBound: 0,
    };
    next.source.memory.epoch = 0;
  });
}

/** Reports of ticket commands may still lie in the channel. */
export function forgetTickets(
  world: ModelWorld,
  journal: { intents: readonly string[]; reports: readonly string[] },
): void {
  const lying = journal.intents.flatMap((text, index) =>
    text.startsWith("ticket") && journal.reports[index] !== ""
      ? [`${commandOf(text).id} ${journal.reports[index]}`]
      : [],
  );
  if (lying.length > 0) world.repeated = [...new Set([...world.repeated, ...lying])].sort();
}

/** The shim is killed and started again: what it had not reported is taken up. */
export function crashSource(world: ModelWorld, rules: Rules): void {
  closeSource(world);
  const { source } = world;
  const cut = unreported(source);
  source.memory = {
    queue: cut.filter((text) => commandOf(text).kind !== "abort").map((text) => resumedMark + text),
    running: "",
    resumed: false,
    position: "",
    epoch: epochOf(source.journal),
    connected: false,
    abort: cut.find((text) => commandOf(text).kind === "abort") ?? "",
    state: "",
    told: "",
    became: "",
  };
  startNext(source, rules);
}
