/**
 * One state of the model: the functions' state (by number), both hosts, and what lies in the channels. Plain values only:
 * a successor is a copy with changes, and equal states have equal texts.
 *
 * A crash of a shim and its restart are one step, as is a restart of libvirt's daemon: in between the shim only fails to act,
 * and in the model every actor may fail to act for any time.
 */
import type { Outcome } from "./functions-side.ts";

/** What a shim has on its disk for this migration. Intents are commands as text; a report is "" until it is written. */
export interface ModelJournal {
  forgotten: boolean;
  intents: readonly string[];
  reports: readonly string[];
  /** The ticket is kept. */
  armed: boolean;
}

/** What dies with the process: commands taken, the one that runs, its position. Entries of `queue` that are to be resumed
 *  begin with "~". */
export interface ModelMemory {
  queue: readonly string[];
  /** "" when nothing runs. */
  running: string;
  resumed: boolean;
  /** Where the running step stands. */
  position: string;
  /** The highest epoch taken (I5). */
  epoch: number;
  /** The migration's libvirt connection lives. */
  connected: boolean;
}

/** 0: never; 1: over the connection that lives; 2: over one that is gone. */
export type Bound = 0 | 1 | 2;

export interface SourceHost {
  journal: ModelJournal & {
    stripped: boolean;
    performing: boolean;
    performRefused: boolean;
    abortAsked: boolean;
    handed: "" | "performed" | "failed";
    receipt: "" | Outcome;
    confirmed: boolean;
    beginBound: Bound;
    performBound: Bound;
  };
  memory: ModelMemory & {
    /** The abort that runs beside the others. */
    abort: string;
    /** What the running Perform will say: its failure's state, the receipt it acts by, what became of the source. */
    state: string;
    told: "" | Outcome;
    became: string;
  };
  /** libvirt and QEMU. */
  defined: boolean;
  cpu: "running" | "paused" | "off";
  job: "" | "performing" | "done";
  /** The job hangs on the connection that lives. */
  jobBound: boolean;
  /** Libvirt lacks records of the tree. */
  lacksTree: boolean;
}

export interface DestinationHost {
  journal: ModelJournal & {
    decided: "" | "go" | "cancel";
    finished: "" | Outcome;
    prepareBound: Bound;
    /** The host has booted since it decided to go: the boot of the decision is another one than this. */
    booted: boolean;
  };
  memory: ModelMemory & {
    told: "" | Outcome;
    /** The running Finish looks before it calls. */
    looks: boolean;
  };
  defined: boolean;
  /** `incoming`: waits for memory; `whole`: has it all and has never run. */
  qemu: "" | "incoming" | "whole" | "running";
  /** Libvirt still knows that the guest has shut itself down; a boot, or a restart of its daemon, forgets why. */
  endedItself: boolean;
}

export interface Power {
  /** Gone: no power. Returned: it was, and has booted since. */
  source: "" | "gone" | "returned";
  destination: "" | "gone" | "returned";
}

export interface ModelWorld {
  functions: number;
  /** The control plane is gone for good: it hears nothing and says nothing any more. */
  alone: boolean;
  source: SourceHost;
  destination: DestinationHost;
  power: Power;
  /** Commands that nobody awaits any more and that may still arrive. */
  late: { source: readonly string[]; destination: readonly string[] };
  /** Requests that were ever sent to the peer. */
  asked: { arm: boolean; handOver: "" | "performed" | "failed" };
  /** Epochs of `lost` messages ever sent. */
  lost: readonly number[];
  /** Reports of ticket commands whose journal is forgotten: they may still be repeated. `id report`. */
  repeated: readonly string[];
  /** What an outside witness keeps: the guest has run over there; its memory was lost by power. */
  ran: boolean;
  memoryLost: boolean;
  /** How the destination has stated that Finish ended. */
  stated: "" | Outcome;
  /** The destination has said that a person has to look whether the guest ran on it. */
  personAsked: boolean;
  /** Faults that may still happen. */
  faults: number;
  /** Broken rule, found while the step was taken. */
  broken: string;
}

const journal = (intents: readonly string[], reports: readonly string[]): ModelJournal => ({
  forgotten: false,
  intents,
  reports,
  armed: false,
});

const memory = (): ModelMemory => ({
  queue: [],
  running: "",
  resumed: false,
  position: "",
  epoch: 1,
  connected: true,
});

/** The tree is staged; the source runs. */
export function firstWorld(functions: number, faults: number): ModelWorld {
  return {
    functions,
    alone: false,
    source: {
      journal: {
        ...journal([], []),
        stripped: false,
        performing: false,
        performRefused: false,
        abortAsked: false,
        handed: "",
        receipt: "",
        confirmed: false,
        beginBound: 0,
        performBound: 0,
      },
      memory: { ...memory(), abort: "", state: "", told: "", became: "" },
      defined: true,
      cpu: "running",
      job: "",
      jobBound: false,
      lacksTree: false,
    },
    destination: {
      journal: { ...journal([], []), decided: "", finished: "", prepareBound: 0, booted: false },
      memory: { ...memory(), told: "", looks: false },
      defined: true,
      qemu: "",
      endedItself: false,
    },
    power: { source: "", destination: "" },
    late: { source: [], destination: [] },
    asked: { arm: false, handOver: "" },
    lost: [],
    repeated: [],
    ran: false,
    memoryLost: false,
    stated: "",
    personAsked: false,
    faults,
    broken: "",
  };
}

const bit = (value: boolean) => (value ? "1" : "0");

/** Equal texts: equal states. */
export function worldText(world: ModelWorld): string {
  const { source: s, destination: d, late, asked, power } = world;
  const sj = s.journal;
  const sm = s.memory;
  const dj = d.journal;
  const dm = d.memory;
  return [
    world.functions,
    world.faults,
    bit(sj.forgotten) + bit(sj.armed) + bit(sj.stripped) + bit(sj.performing) + bit(sj.performRefused),
    bit(sj.abortAsked) + bit(sj.confirmed) + sj.beginBound + sj.performBound,
    sj.intents.join(","),
    sj.reports.join(","),
    sj.handed,
    sj.receipt,
    sm.queue.join(","),
    sm.running,
    bit(sm.resumed) + bit(sm.connected) + sm.epoch,
    sm.position,
    sm.abort,
    sm.state,
    sm.told,
    sm.became,
    bit(s.defined) + bit(s.jobBound) + bit(s.lacksTree),
    s.cpu,
    s.job,
    bit(dj.forgotten) + bit(dj.armed) + bit(dj.booted) + dj.prepareBound,
    dj.intents.join(","),
    dj.reports.join(","),
    dj.decided,
    dj.finished,
    dm.queue.join(","),
    dm.running,
    bit(dm.resumed) + bit(dm.connected) + bit(dm.looks) + dm.epoch,
    dm.position,
    dm.told,
    bit(d.defined) + bit(d.endedItself),
    d.qemu,
    power.source,
    power.destination,
    late.source.join(","),
    late.destination.join(","),
    bit(asked.arm) + asked.handOver,
    world.lost.join(","),
    world.repeated.join(","),
    bit(world.alone) + bit(world.ran) + bit(world.memoryLost) + bit(world.personAsked),
    world.stated,
  ].join(";");
}
