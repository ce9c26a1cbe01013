/**
 * What can happen to an evacuation, and what follows from it. Events are past tense and carry the time at which they were
 * observed. Effects are imperatives, each may be repeated: a cordon of a cordoned host is nothing new, and a migration is
 * started under an id that is fixed in the state before, so that starting it twice is starting it once.
 */
import type { DomainRef } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import type { Plan } from "./placement-view.ts";
import type { Status } from "./state.ts";

/** A migration under way, whoever asked for it: a person, this evacuation, another one (also one committed and not yet created). */
export interface RunningMigration {
  migrationId: string;
  domainUuid: string;
  sourceId: string;
  destinationId: string;
}

export interface SeenHost {
  id: string;
  cordoned: boolean;
  /** Unix time since which nothing was heard of it, once it counts as offline; null: it is heard of. */
  silentSinceMs: number | null;
  /** It has said that it shuts down: its silence is no failure. Absent: it has not. */
  shutting?: boolean;
  /** The value of its label `network`; null: it has none. */
  network: string | null;
}

export type EvacuationEvent =
  /**
   * The tick with a view: `plan` is made by `evacuationPlan` for this very state; `running` is every migration of the fleet and
   * what other evacuations have committed to start. Looks of different evacuations must not run side by side, or each
   * counts the other's slots as free: the runner takes one lease of the fleet from reading `running` to the commit.
   */
  | {
      type: "looked";
      at: string;
      plan: Plan;
      running: readonly RunningMigration[];
      /** Of the fleet: those that are unknown here neither send nor receive. */
      hosts: readonly SeenHost[];
    }
  /** The runner has created it (or found it there). */
  | { type: "migrationStarted"; at: string; domainUuid: string; migrationId: string }
  /** The runner was refused at creating it. */
  | { type: "migrationRefused"; at: string; domainUuid: string; migrationId: string; fault: FaultBody }
  /** The runner looked for it and there is none: the effect was lost between commit and dispatch. */
  | { type: "migrationMissing"; at: string; domainUuid: string; migrationId: string }
  /** It has ended, or stranded: terminal until a person acts. `fault` is null where it completed. */
  | {
      type: "migrationEnded";
      at: string;
      domainUuid: string;
      migrationId: string;
      status: Exclude<Status, "running">;
      fault: FaultBody | null;
    }
  /** No host of the fleet has it any more: somebody removed it. */
  | { type: "domainGone"; at: string; domainUuid: string }
  /** Somebody else moved it. */
  | { type: "domainElsewhere"; at: string; domainUuid: string; hostId: string }
  | { type: "cancelRequested"; at: string; by: string }
  /** Time passed and nothing is known beside. */
  | { type: "ticked"; at: string };

export const evacuationEventTypes = [
  "looked",
  "migrationStarted",
  "migrationRefused",
  "migrationMissing",
  "migrationEnded",
  "domainGone",
  "domainElsewhere",
  "cancelRequested",
  "ticked",
] as const satisfies readonly EvacuationEvent["type"][];

export type EvacuationEffect =
  /** Request the migration of exactly this id; what comes of it is told by `migrationStarted` or `migrationRefused`. */
  | {
      type: "startMigration";
      migrationId: string;
      domain: DomainRef;
      sourceId: string;
      destinationId: string;
      accept: string[];
      bandwidthMiBps: number | null;
    }
  /** Close the host to new domains. */
  | { type: "cordon"; hostId: string }
  | { type: "uncordon"; hostId: string }
  /** It has ended: free what names it as the evacuation of its host. */
  | { type: "release" };
