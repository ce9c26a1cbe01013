/**
 * What must hold: in every state (I1, I8, and at an end I4), and of the whole graph (I10: an end stays reachable from
 * everywhere once faults stop). What a single step may not do is noted by the step itself (I2, I6, I7).
 */
import type { FunctionsSide } from "./functions-side.ts";
import type { ModelWorld } from "./world.ts";

/** The first rule that is broken in this state; "" when none is. */
export function brokenIn(world: ModelWorld, functions: FunctionsSide): string {
  if (world.broken !== "") return world.broken;
  const { source, destination, stated } = world;
  if (source.cpu === "running" && destination.qemu === "running") return "I1: the guest runs on both hosts";
  if (source.cpu === "off" && destination.qemu !== "running" && destination.qemu !== "whole" && !world.memoryLost)
    return "I8: no copy of the guest is left";
  const { receipt, step } = functions.state(world.functions);
  if (receipt !== null && receipt.evidence !== "fenced" && receipt.outcome !== stated)
    return `I7: the functions believe in ${receipt.outcome}, the destination has stated ${stated === "" ? "nothing" : stated}`;
  return step === "ended" || step === "sweeping" ? brokenAtEnd(world, functions) : "";
}

/** I4: exactly one host has the domain, as it should be; the other one keeps nothing. */
function brokenAtEnd(world: ModelWorld, functions: FunctionsSide): string {
  const { source, destination, power } = world;
  const { status, step, fenced } = functions.state(world.functions);
  const isOwing = (side: "source" | "destination") =>
    fenced?.side === side && (step === "sweeping" || power[side] === "gone");
  if (status === "completed") {
    if (destination.qemu !== "running" && !world.memoryLost)
      return "I4: completed, and the domain does not run on the destination";
    if (!destination.defined) return "I4: completed, and the destination does not keep the domain";
    if (!isOwing("source") && source.defined) return "I4: completed, and the source keeps a definition";
  }
  if (status === "rolledBack" || status === "cancelled") {
    if (!isOwing("source")) {
      if (!source.defined) return `I4: ${status}, and the source has lost the domain`;
      if (source.cpu !== "running" && !world.memoryLost) return `I4: ${status}, and the source is ${source.cpu}`;
      if (source.lacksTree) return `I4: ${status}, and the source lacks its tree`;
    }
    if (!isOwing("destination") && (destination.defined || destination.qemu !== ""))
      return `I4: ${status}, and the destination keeps a ${destination.qemu === "" ? "definition" : `copy (${destination.qemu})`}`;
  }
  return "";
}

/**
 * The end: the migration's result stands, and no host that is there remembers it. Where the control plane is gone for good, the
 * two shims alone must get as far as a guest that runs on one host.
 */
export function isAtRest(world: ModelWorld, functions: FunctionsSide): boolean {
  if (world.alone) return runsOnce(world);
  const { step } = functions.state(world.functions);
  const { source, destination, power } = world;
  const isAway = power.source === "gone" || power.destination === "gone";
  if (step !== "ended" && !(step === "sweeping" && isAway)) return false;
  const isQuiet = (side: "source" | "destination") => world[side].journal.forgotten || power[side] === "gone";
  const isFresh = source.journal.intents.length + destination.journal.intents.length === 0;
  return (isQuiet("source") && isQuiet("destination")) || isFresh;
}

const runsOnce = ({ source, destination, memoryLost }: ModelWorld): boolean => {
  if (memoryLost) return true;
  if (destination.qemu === "running") return source.cpu === "off";
  return source.cpu === "running" && source.job === "";
};
