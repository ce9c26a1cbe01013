/**
 * The destination's steps (destination.ts, finish.ts of the shim) and its peer desk (peer/desk.ts), cut where a crash, a lost
 * connection or somebody else's step may come in between. Its journal is the arbiter between finish and abort.
 */
import {
  commandOf,
  commandText,
  type FunctionsSide,
  type ModelCommand,
  type Outcome,
  triesMax,
} from "./functions-side.ts";
import {
  end,
  epochOf,
  isIdle,
  isRefused,
  isTaken,
  reportOf,
  resumedMark,
  startNext,
  take,
  unreported,
} from "./lane.ts";
import { breaks, closeDestination, endIncoming, finish } from "./libvirt.ts";
import type { Rules } from "./rules.ts";
import { forgetTickets, ownTriesMax } from "./source-shim.ts";
import type { Emit } from "./step.ts";
import type { ModelWorld } from "./world.ts";

function useConnection({ destination }: ModelWorld): void {
  const { journal, memory } = destination;
  memory.connected = true;
  if (commandOf(memory.running).kind === "prepare" && journal.prepareBound === 0) journal.prepareBound = 1;
}

const isActive = ({ destination }: ModelWorld): boolean => destination.qemu !== "";

/** outcomeOf of the shim's probe; null: an incoming domain still waits. */
function seen({ destination }: ModelWorld, rules: Rules): Outcome | null {
  if (destination.qemu === "running") return "started";
  if (destination.qemu !== "") return null;
  return destination.endedItself && !rules.asksAboutOwnEnd ? "started" : "destroyed";
}

/** The row of `finishingBooted` that strands: defined, off, and nobody knows why. */
const isUnknowable = ({ destination }: ModelWorld, rules: Rules): boolean =>
  (destination.journal.booted || (destination.endedItself && rules.asksAboutOwnEnd)) &&
  destination.journal.decided === "go" &&
  destination.qemu === "" &&
  destination.defined;

/** Real shims and functions try on for ever, each time the same; the model's last try waits instead. */
function isLastTry({ id }: ModelCommand): boolean {
  const [kind = "", attempt = ""] = id.split(":");
  return Number(attempt) >= (kind === "ticketFinish" ? ownTriesMax : triesMax);
}

export function destinationSteps(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  if (world.power.destination === "gone") return;
  if (world.destination.memory.position !== "") runningStep(world, functions, rules, emit);
  deskSteps(world, rules, emit);
  forgetStep(world, functions, emit);
}

function runningStep(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  const { memory } = world.destination;
  const command = commandOf(memory.running);
  switch (memory.position) {
    case "prepare":
      emit("the destination prepares", (next) => {
        const { destination } = next;
        useConnection(next);
        if (isActive(next)) {
          end(destination, "fail", rules);
          return;
        }
        destination.qemu = "incoming";
        destination.endedItself = false;
        destination.memory.position = "prepared";
      });
      return;
    case "prepared":
      emit("the destination reports Prepare", (next) => end(next.destination, "ok", rules));
      return;
    case "finish":
      emit(`the destination decides: ${command.cancelled ? "give up" : "finish"}`, (next) => {
        const { destination } = next;
        const { journal } = destination;
        if (journal.finished !== "") {
          end(destination, `ok:${journal.finished}`, rules);
          return;
        }
        destination.memory.looks = destination.memory.resumed || journal.decided !== "";
        if (journal.decided === "" || !rules.journalsDecision) journal.decided = command.cancelled ? "cancel" : "go";
        destination.memory.position = "finishing";
      });
      return;
    case "finishing":
    case "ending":
      finishingStep(world, functions, rules, emit);
      return;
    case "stating":
      emit(`the destination journals its receipt: ${memory.told}`, (next) => {
        const { destination } = next;
        state(next, rules);
        destination.memory.position = command.kind === "unstage" ? "unstage" : "reporting";
        if (command.kind === "unstage") destination.memory.told = "";
      });
      return;
    case "reporting":
      emit("the destination reports Finish", (next) => {
        const { told } = next.destination.memory;
        clearWork(next);
        end(next.destination, `ok:${told}`, rules);
      });
      return;
    case "unstage":
      emit("the destination takes away what it holds", (next) => {
        const { destination } = next;
        const { journal } = destination;
        useConnection(next);
        if (!isActive(next)) {
          destination.defined = false;
          destination.memory.position = "unstaged";
        } else if (destination.qemu === "running" || journal.decided === "go") {
          end(destination, "fail", rules);
        } else {
          journal.decided = "cancel";
          destination.memory.looks = true;
          destination.memory.position = "ending";
        }
      });
      return;
    case "unstaged":
      emit("the destination reports that nothing is left", (next) => end(next.destination, "ok", rules));
      return;
    case "settle":
      emit("the destination settles", (next) => {
        const { destination } = next;
        useConnection(next);
        const isSettled = destination.defined && (destination.qemu === "running" || destination.qemu === "");
        end(destination, isSettled ? `ok:${destination.qemu === "" ? "shutoff" : "running"}` : "fail", rules);
      });
      return;
    default:
      throw new TypeError(`the destination's shim stands at ${memory.position}`);
  }
}

function clearWork(world: ModelWorld): void {
  const { memory } = world.destination;
  memory.told = "";
  memory.looks = false;
}

/** The milestone `finished`: the first one stands, and it has to be true (I7). */
function state(world: ModelWorld, rules: Rules): void {
  const { destination } = world;
  const { told } = destination.memory;
  if (told === "") return;
  if (world.stated !== "" && world.stated !== told)
    breaks(world, `I7: the destination states ${told} after it has stated ${world.stated}`);
  if (told === "destroyed" && destination.qemu !== "")
    breaks(world, `I7: the destination states destroyed while its copy is ${destination.qemu}`);
  if (told === "started" && !world.ran) breaks(world, "I7: the destination states started and it never ran");
  world.stated = told;
  world.personAsked = false;
  if (destination.journal.finished === "" && rules.journalsReceipt) destination.journal.finished = told;
}

/** finishAs: looks, or calls Finish3. */
function finishingStep(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  const { journal, memory } = world.destination;
  const tell = (next: ModelWorld, told: Outcome): void => {
    next.destination.memory.told = told;
    next.destination.memory.position = "stating";
  };
  const looksFirst = (memory.looks || journal.prepareBound === 2) && seen(world, rules) !== null;
  // A connection that is gone has taken an incoming domain with it, so looking always ends.
  if (looksFirst && rules.strandsAfterBoot && isUnknowable(world, rules)) {
    const waits = isLastTry(commandOf(memory.running)) && functions.state(world.functions).receipt === null;
    if (waits && world.personAsked) return;
    emit("the destination cannot know whether the guest ran on it: a person has to look", (next) => {
      useConnection(next);
      next.personAsked = true;
      if (waits) return;
      clearWork(next);
      end(next.destination, "fail", rules);
    });
    return;
  }
  if (looksFirst) {
    emit("the destination looks how Finish ended", (next) => {
      useConnection(next);
      tell(next, rules.looksAfterLostFinish ? (seen(next, rules) ?? "destroyed") : "destroyed");
    });
    return;
  }
  const cancelled = journal.decided === "cancel";
  emit(`the destination calls Finish${cancelled ? "(cancelled)" : ""}`, (next) => {
    useConnection(next);
    const ended = finish(next, cancelled);
    tell(next, ended ?? seen(next, rules) ?? "destroyed");
  });
  if (world.faults === 0) return;
  if (!cancelled && world.destination.qemu === "whole")
    emit.fault("Finish fails over there", (next) => {
      useConnection(next);
      endIncoming(next, "a failing Finish");
      tell(next, "destroyed");
    });
  emit.fault(`Finish${cancelled ? "(cancelled)" : ""} is done and its answer lost with the connection`, (next) => {
    useConnection(next);
    finish(next, cancelled);
    closeDestination(next);
    next.destination.memory.looks = true;
  });
}

export function holdsIncoming({ destination }: ModelWorld): boolean {
  if (reportOf(destination, ({ kind }) => kind === "prepare") !== "ok") return false;
  return !destination.journal.intents.some((text) => ["finish", "unstage"].includes(commandOf(text).kind));
}

/** What lies in the peer channel and may be taken at any time, and again. */
function deskSteps(world: ModelWorld, rules: Rules, emit: Emit): void {
  const { destination, asked } = world;
  const { journal } = destination;
  if (journal.forgotten) return;
  if (asked.arm && !journal.armed && epochOf(journal) <= 1 && holdsIncoming(world))
    emit("the destination keeps the ticket", (next) => {
      next.destination.journal.armed = true;
    });
  if (asked.handOver === "" || journal.finished !== "" || !journal.armed) return;
  const own = journal.intents.filter((text) => text.startsWith("ticketFinish:"));
  if (own.some((text) => journal.reports[journal.intents.indexOf(text)] === "")) return;
  if (own.length >= ownTriesMax) return;
  const text = commandText({
    id: `ticketFinish:${own.length + 1}`,
    kind: "finish",
    epoch: 1,
    cancelled: asked.handOver === "failed",
    receipt: null,
  });
  if (isTaken(destination, text) || isRefused(destination, text, rules)) return;
  emit(`the destination is handed the result: ${asked.handOver}`, (next) => take(next.destination, text, rules));
}

function forgetStep(world: ModelWorld, functions: FunctionsSide, emit: Emit): void {
  const { destination } = world;
  const { journal } = destination;
  if (world.alone || journal.forgotten || !isIdle(destination)) return;
  const isOver = journal.intents.some((text, index) => {
    const { kind, id } = commandOf(text);
    const report = journal.reports[index] ?? "";
    const ends = (kind === "settle" || kind === "unstage") && report.startsWith("ok");
    return ends && functions.reported(world.functions, id, report) === world.functions;
  });
  if (!isOver) return;
  emit("the destination forgets the migration", (next) => {
    closeDestination(next);
    forgetTickets(next, next.destination.journal);
    next.destination.journal = {
      forgotten: true,
      intents: [],
      reports: [],
      armed: false,
      decided: "",
      finished: "",
      prepareBound: 0,
      booted: false,
    };
    next.personAsked = false;
    next.destination.memory.epoch = 0;
  });
}

/** Tells the functions that the incoming domain is gone with its connection, when there was one. */
export function noteLost(world: ModelWorld): void {
  const { epoch } = world.destination.memory;
  if (holdsIncoming(world) && !world.lost.includes(epoch)) world.lost = [...world.lost, epoch].sort();
}

/** The host has power again: what was decided was decided in another boot. */
export function bootDestination(world: ModelWorld, rules: Rules): void {
  const { journal } = world.destination;
  journal.booted = journal.decided === "go" && journal.finished === "";
  crashDestination(world, rules);
  noteLost(world);
}

export function crashDestination(world: ModelWorld, rules: Rules): void {
  closeDestination(world);
  const { destination } = world;
  destination.memory = {
    queue: unreported(destination).map((text) => resumedMark + text),
    running: "",
    resumed: false,
    position: "",
    epoch: epochOf(destination.journal),
    connected: false,
    told: "",
    looks: false,
  };
  startNext(destination, rules);
}
