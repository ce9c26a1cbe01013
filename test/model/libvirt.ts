/**
 * libvirt and QEMU of both hosts, as far as a migration of one domain sees them: by the rules of the libvirt facts, section 6
 * (what hangs on a connection, what closing and a restart of the daemon undo). Every function changes the given copy.
 */
import type { ModelWorld } from "./world.ts";

/** Notes the first rule that a step breaks. */
export function breaks(world: ModelWorld, rule: string): void {
  if (world.broken === "") world.broken = rule;
}

const bound = <T extends 0 | 1 | 2>(value: T): 0 | 2 => (value === 0 ? 0 : 2);

/** The shim's connection on the source ends. After PERFORM3_DONE libvirt drops the job and leaves the domain paused; a
 *  running Perform goes on without its caller. */
export function closeSource(world: ModelWorld): void {
  const { source } = world;
  source.memory.connected = false;
  source.journal.beginBound = bound(source.journal.beginBound);
  source.journal.performBound = bound(source.journal.performBound);
  source.jobBound = false;
  if (source.job === "done") source.job = "";
}

/** The shim's connection on the destination ends: an incoming domain is destroyed (autodestroy). */
export function closeDestination(world: ModelWorld): void {
  const { destination } = world;
  destination.memory.connected = false;
  destination.journal.prepareBound = bound(destination.journal.prepareBound);
  if (destination.qemu === "incoming" || destination.qemu === "whole") endIncoming(world, "autodestroy");
}

export function endIncoming(world: ModelWorld, by: string): void {
  const { source, destination } = world;
  if (destination.qemu === "whole" && source.cpu === "off" && !world.memoryLost)
    breaks(world, `I8: ${by} ends the only copy of the guest on the destination`);
  destination.qemu = "";
}

/** The daemon on the source restarts: PERFORM3 is cancelled and its domain runs on, PERFORM3_DONE is left paused. */
export function restartSourceDaemon(world: ModelWorld): void {
  closeSource(world);
  if (world.source.job === "performing") performBroken(world);
}

/** All memory is over there; the source is paused. A caller that is gone drops the job at once. */
export function performDone(world: ModelWorld): void {
  const { source, destination } = world;
  source.cpu = "paused";
  source.job = source.jobBound ? "done" : "";
  destination.qemu = "whole";
}

/** Perform ends badly: libvirt lets the source run on. */
export function performBroken(world: ModelWorld): void {
  world.source.cpu = "running";
  world.source.job = "";
}

/** The source goes on by a call of ours (Confirm cancelled, resume). */
export function resumeSource(world: ModelWorld, fenced: boolean): void {
  const { source, destination } = world;
  if (!fenced) {
    if (destination.qemu !== "") breaks(world, `I2: the source is resumed while the other copy is ${destination.qemu}`);
    else if (world.stated !== "destroyed") breaks(world, "I2: the source is resumed without a receipt that says so");
    if (world.ran) breaks(world, "I1: the source goes on from before the guest ran on the destination");
  }
  source.cpu = "running";
  source.job = "";
}

/** The source's copy is ended by a call of ours (Confirm, destroy). */
export function endSource(world: ModelWorld): void {
  const { source, destination } = world;
  if (destination.qemu !== "running" && !world.memoryLost)
    breaks(world, "I8: the source's copy is ended while the other one does not run");
  source.cpu = "off";
  source.job = "";
}

/** Finish: lets an incoming domain run that has all its memory, ends it otherwise. Answers how it ended; null: error 55. */
export function finish(world: ModelWorld, cancelled: boolean): "started" | "destroyed" | null {
  const { destination } = world;
  if (destination.qemu !== "incoming" && destination.qemu !== "whole") return null;
  if (!cancelled && destination.qemu === "whole") {
    destination.qemu = "running";
    destination.defined = true;
    world.ran = true;
    return "started";
  }
  endIncoming(world, cancelled ? "Finish(cancelled)" : "a failing Finish");
  return "destroyed";
}

/** The guest on the destination shuts itself down. */
export function endGuest(world: ModelWorld): void {
  world.destination.qemu = "";
  world.destination.endedItself = true;
  world.memoryLost = true;
}

export function losePower(world: ModelWorld, side: "source" | "destination"): void {
  const { source, destination } = world;
  if (side === "source") {
    if (source.cpu !== "off" && destination.qemu !== "running") world.memoryLost = true;
    closeSource(world);
    source.cpu = "off";
    source.job = "";
  } else {
    if (destination.qemu === "running") world.memoryLost = true;
    destination.memory.connected = false;
    destination.journal.prepareBound = bound(destination.journal.prepareBound);
    destination.qemu = "";
    destination.endedItself = false;
  }
  world.power[side] = "gone";
}
