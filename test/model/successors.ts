/**
 * Every step that may come next in a state: of the functions (a report, a tick, a person), of both shims, of libvirt, of the
 * channels, and the faults while some are left. Channels are sets: a message that was ever sent may be taken late, again, in
 * any order, or never.
 */
import type { Side } from "#protocol/command";
import { bootDestination, crashDestination, destinationSteps, noteLost } from "./destination-shim.ts";
import { commandOf, type FunctionsSide } from "./functions-side.ts";
import { conflicting, end, epochOf, isRefused, isTaken, take } from "./lane.ts";
import {
  breaks,
  closeDestination,
  closeSource,
  endGuest,
  endIncoming,
  losePower,
  performBroken,
  performDone,
  restartSourceDaemon,
} from "./libvirt.ts";
import { personSteps } from "./person.ts";
import type { Rules } from "./rules.ts";
import { crashSource, sourceSteps, takeAbort } from "./source-shim.ts";
import { copyOf, type Emit } from "./step.ts";
import type { ModelWorld } from "./world.ts";

export interface Successor {
  label: string;
  isFault: boolean;
  world: ModelWorld;
}

export type FaultKind =
  | "crashSource"
  | "crashDestination"
  | "cutSource"
  | "cutDestination"
  | "performFails"
  | "phaseFails"
  | "treeChanges"
  | "answers"
  | "cancel"
  | "overdue"
  | "functionsDie"
  | "powerSource"
  | "powerDestination"
  | "guestEnds"
  | "endsAtFinish"
  | "reasonForgotten"
  | "incomingDies";

export const allFaults: readonly FaultKind[] = [
  "crashSource",
  "crashDestination",
  "cutSource",
  "cutDestination",
  "performFails",
  "phaseFails",
  "treeChanges",
  "answers",
  "cancel",
  "overdue",
  "functionsDie",
  "powerSource",
  "powerDestination",
  "guestEnds",
  // The destination loses power, or the guest ends by itself, between Finish and its receipt.
  "endsAtFinish",
  // The QEMU that waits for Finish dies by itself: libvirt gives the staged definition the same reason as a guest that has run.
  "incomingDies",
];

/**
 * Known to break a rule, and so not among them. `reasonForgotten`: the guest has ended by itself between Finish and its receipt,
 * and libvirt's daemon restarts, in the same boot, before the destination's shim has looked. The daemon forgets why the domain
 * is off, so it looks as if the guest had never run there, and its source goes on from before (I1). Only the three together.
 */
export const knownFaults: readonly FaultKind[] = ["reasonForgotten"];

export interface Model {
  functions: FunctionsSide;
  rules: Rules;
  faults: ReadonlySet<FaultKind>;
}

const sides = ["source", "destination"] as const;

export function successorsOf(world: ModelWorld, model: Model): Successor[] {
  const { functions, rules } = model;
  const found: Successor[] = [];
  const emit: Emit = Object.assign(
    (label: string, change: (next: ModelWorld) => void) => {
      const next = copyOf(world);
      change(next);
      tidy(next, model);
      found.push({ label, isFault: false, world: next });
    },
    {
      fault: (label: string, change: (next: ModelWorld) => void) => {
        if (world.faults === 0 || !model.faults.has("answers")) return;
        const next = copyOf(world);
        next.faults -= 1;
        change(next);
        tidy(next, model);
        found.push({ label: `FAULT: ${label}`, isFault: true, world: next });
      },
    },
  );
  if (!world.alone) {
    functionsSteps(world, model, emit);
    for (const side of sides) deliveries(world, model, side, emit);
  }
  sourceSteps(world, functions, rules, emit);
  destinationSteps(world, functions, rules, emit);
  libvirtSteps(world, emit);
  powerSteps(world, model, emit);
  personSteps(world, functions, rules, emit);
  if (world.faults > 0) faultSteps(world, model, found);
  return found;
}

/** The functions decide; commands that are awaited no more may still arrive. */
function decided(next: ModelWorld, model: Model, number: number): void {
  const { functions } = model;
  for (const side of sides) {
    const now = new Set(functions.commands(number, side));
    const dropped = functions.commands(next.functions, side).filter((text) => !now.has(text));
    if (dropped.length > 0) next.late[side] = [...new Set([...next.late[side], ...dropped])].sort();
  }
  next.functions = number;
}

/** Late commands that can have no effect any more are left out, so that equal futures are equal states. */
function tidy(next: ModelWorld, { rules }: Model): void {
  for (const side of sides) {
    const late = next.late[side];
    if (late.length === 0) continue;
    const lane = next[side];
    const kept = late.filter((text) => {
      if (lane.journal.forgotten && rules.keepsTombstone) return false;
      if (rules.checksEpoch && commandOf(text).epoch < epochOf(lane.journal)) return false;
      return !lane.journal.intents.includes(text);
    });
    if (kept.length < late.length) next.late[side] = kept;
  }
}

function functionsSteps(world: ModelWorld, model: Model, emit: Emit): void {
  const { functions } = model;
  const number = world.functions;
  const to = (label: string, next: number): void => {
    if (next !== number) emit(label, (copy) => decided(copy, model, next));
  };
  for (const side of sides) {
    const { intents, reports } = world[side].journal;
    intents.forEach((text, index) => {
      const report = reports[index] ?? "";
      if (report === "") return;
      const { id } = commandOf(text);
      to(`the functions learn of ${id}: ${report}`, functions.reported(number, id, report));
    });
  }
  for (const lying of world.repeated) {
    const [id = "", report = ""] = lying.split(" ");
    to(`the functions learn again of ${id}: ${report}`, functions.reported(number, id, report));
  }
  for (const epoch of world.lost)
    to("the functions learn that the incoming domain is lost", functions.connectionLost(number, epoch));
  to("the timer tries again", functions.triedAgain(number));
  for (const side of sides) {
    if (world.power[side] !== "gone") continue;
    to(`a person states that the ${side}, which is gone, is fenced`, functions.fenced(number, side));
    const waits = functions.commands(number, side).length > 0;
    if (waits) to("the timer gives up a step whose host is gone", functions.overdue(number));
  }
}

/** A command arrives: awaited now, or late. */
function deliveries(world: ModelWorld, model: Model, side: Side, emit: Emit): void {
  if (world.power[side] === "gone") return;
  const { functions, rules } = model;
  const lane = world[side];
  const awaited = functions.commands(world.functions, side);
  for (const text of awaited.length === 0 ? world.late[side] : [...awaited, ...world.late[side]]) {
    const command = commandOf(text);
    if (conflicting(lane, text) !== null)
      emit(`${command.id} arrives with another body`, (next) => breaks(next, `I6: ${command.id} has two bodies`));
    if (isRefused(lane, text, rules)) {
      const number = functions.reported(world.functions, command.id, "fail");
      if (awaited.includes(text) && number !== world.functions)
        emit(`${command.id} is refused as overtaken`, (next) => decided(next, model, number));
      continue;
    }
    if (isTaken(lane, text)) continue;
    const late = awaited.includes(text) ? "" : " late";
    emit(`${command.id} (epoch ${command.epoch}) arrives${late} at the ${side}`, (next) => {
      if (command.kind === "abort") takeAbort(next, text);
      else take(next[side], text, rules);
    });
  }
}

function libvirtSteps(world: ModelWorld, emit: Emit): void {
  if (world.source.job !== "performing" || world.power.source === "gone") return;
  if (world.destination.qemu === "incoming" && world.source.cpu === "running")
    emit("libvirt: the memory has arrived, the source is paused", performDone);
  else emit("libvirt: Perform fails, because nothing receives it", performBroken);
}

/** A host that is gone may come back with its disks. */
function powerSteps(world: ModelWorld, { rules }: Model, emit: Emit): void {
  for (const side of sides) {
    if (world.power[side] !== "gone") continue;
    emit(`the ${side} boots`, (next) => {
      next.power[side] = "returned";
      if (side === "source") crashSource(next, rules);
      else bootDestination(next, rules);
    });
  }
}

function faultSteps(world: ModelWorld, model: Model, found: Successor[]): void {
  const { functions, rules, faults } = model;
  const fault = (kind: FaultKind, label: string, change: (next: ModelWorld) => void): void => {
    if (!faults.has(kind)) return;
    const next = copyOf(world);
    next.faults -= 1;
    change(next);
    tidy(next, model);
    found.push({ label: `FAULT: ${label}`, isFault: true, world: next });
  };
  const number = world.functions;
  const { source, destination, power } = world;
  if (power.source !== "gone") {
    if (!source.journal.forgotten)
      fault("crashSource", "the source's shim crashes and restarts", (next) => crashSource(next, rules));
    if (source.memory.connected && source.job !== "")
      fault("cutSource", "the source's libvirt connection is lost", closeSource);
    if (source.job !== "" || source.memory.position !== "")
      fault("cutSource", "libvirt's daemon on the source restarts", restartSourceDaemon);
    if (source.job === "performing" && destination.qemu === "incoming")
      // The worst of the ways to fail: everything had arrived.
      fault("performFails", "Perform fails although all memory has arrived", (next) => {
        next.destination.qemu = "whole";
        performBroken(next);
      });
    if (source.memory.position === "stripped")
      fault("phaseFails", "Begin fails, and the source's tree is redefined", (next) => {
        next.source.lacksTree = false;
        next.source.journal.stripped = false;
        end(next.source, "fail", rules);
      });
    if (source.memory.position === "performed")
      fault("treeChanges", "somebody has changed the tree: Perform is given up after its success", (next) => {
        next.source.memory.state = "paused";
        next.source.memory.position = "failing";
      });
    if (power.source === "") fault("powerSource", "the source loses its power", (next) => losePower(next, "source"));
  }
  if (power.destination !== "gone") {
    const isAtFinish = world.ran && world.stated === "";
    if (destination.memory.position === "prepare")
      fault("phaseFails", "Prepare fails", (next) => end(next.destination, "fail", rules));
    if (destination.qemu === "running")
      fault(isAtFinish ? "endsAtFinish" : "guestEnds", "the guest shuts itself down on the destination", endGuest);
    if (destination.qemu === "incoming" || destination.qemu === "whole")
      fault("incomingDies", "the destination's QEMU dies before it ever ran", (next) => {
        endIncoming(next, "its own death");
        next.destination.endedItself = true;
      });
    if (destination.endedItself && world.stated === "")
      fault(
        "reasonForgotten",
        "libvirt's daemon on the destination restarts and forgets why the guest ended",
        (next) => {
          closeDestination(next);
          next.destination.endedItself = false;
        },
      );
    if (!destination.journal.forgotten)
      fault("crashDestination", "the destination's shim crashes and restarts", (next) => {
        crashDestination(next, rules);
        noteLost(next);
      });
    // Losing the connection and a restart of the daemon do the same: an incoming domain ends, a running one stays.
    if (destination.memory.connected && destination.qemu !== "")
      fault("cutDestination", "the destination's libvirt connection is lost", (next) => {
        closeDestination(next);
        noteLost(next);
      });
    if (power.destination === "")
      fault(isAtFinish ? "endsAtFinish" : "powerDestination", "the destination loses its power", (next) =>
        losePower(next, "destination"),
      );
  }
  if (world.alone) return;
  if (functions.state(number).step === "performing" && source.journal.performing)
    fault("functionsDie", "the control plane is gone for good", (next) => {
      next.alone = true;
      next.late = { source: [], destination: [] };
    });
  const cancelled = functions.cancelRequested(number);
  if (cancelled !== number) fault("cancel", "a person cancels", (next) => decided(next, model, cancelled));
  const overdue = functions.overdue(number);
  if (overdue !== number)
    fault("overdue", "the timer gives up a step that takes too long", (next) => decided(next, model, overdue));
}
