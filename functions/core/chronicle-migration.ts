/**
 * A migration as the chronicle tells it: that it began, that it waits for a person, how it ended. Pure, and the ids follow from the state alone, so that
 * whoever finds the state again tells the very same line.
 */
import { type ChronicleEvent, eventHead, type MigrationResult } from "./chronicle-event.ts";
import type { HostRef, MigrationState, Step } from "./state.ts";

type EventOf<T extends ChronicleEvent["type"]> = Extract<ChronicleEvent, { type: T }>;

const refOf = ({ id, name }: HostRef) => ({ id, name });

const core = ({ id, domain, source, destination, origin }: MigrationState) => ({
  id,
  domain: { uuid: domain.uuid, name: domain.name },
  source: refOf(source),
  destination: refOf(destination),
  origin: origin ?? null,
});

export const migrationStarted = (state: MigrationState): EventOf<"dev.vmferry.migration.started"> => ({
  ...eventHead(`${state.id}-started`, state.id, state.createdAt),
  type: "dev.vmferry.migration.started",
  data: core(state),
});

/** Its result stands but for what a fenced host will be asked when it is back: until then it waits, and may be completed after all. */
const waitsForFenced = ({ status, step }: MigrationState): boolean => status === "stranded" && step === "sweeping";

/** Null: it goes on, or has ended. Each time that it strands is a line of its own. */
export function migrationStranded(state: MigrationState): EventOf<"dev.vmferry.migration.stranded"> | null {
  if (state.status !== "stranded" || (state.endedAt !== null && !waitsForFenced(state))) return null;
  // What an earlier version stranded has no count.
  const id = `${state.id}-stranded-${waitsForFenced(state) ? "fenced" : (state.strandings ?? 0)}`;
  return {
    ...eventHead(id, state.id, state.updatedAt),
    type: "dev.vmferry.migration.stranded",
    data: resultOf(state, state.updatedAt),
  };
}

/** Null: it has not ended. */
export function migrationEnded(state: MigrationState): EventOf<"dev.vmferry.migration.ended"> | null {
  if (state.endedAt === null || waitsForFenced(state)) return null;
  return {
    ...eventHead(`${state.id}-ended`, state.id, state.endedAt),
    type: "dev.vmferry.migration.ended",
    data: resultOf(state, state.endedAt),
  };
}

function resultOf(state: MigrationState, at: string): MigrationResult {
  const { failure, snapshots } = state;
  return {
    ...core(state),
    status: state.status,
    durationMs: Math.max(0, Date.parse(at) - Date.parse(state.createdAt)),
    blackoutMs: state.downtimeMs,
    transferredBytes: state.transferredBytes,
    phasesMs: phasesMs(state),
    snapshots: {
      total: snapshots.total,
      staged: snapshots.staged,
      verified: snapshots.verified,
      restored: snapshots.restored ?? 0,
      quarantined: quarantined(state),
    },
    error:
      failure === null
        ? null
        : {
            code: failure.code,
            phase: failure.phase,
            side: failure.side,
            cause: failure.cause,
            action: failure.action,
          },
  };
}

/** What the hosts said of how long they worked, added up by step. */
function phasesMs({ timeline }: MigrationState): Partial<Record<Step, number>> {
  const sums: Partial<Record<Step, number>> = {};
  for (const { step, ms } of timeline)
    if (ms !== null) sums[step] = Math.min((sums[step] ?? 0) + ms, Number.MAX_SAFE_INTEGER);
  return sums;
}

/** Records without their data that somebody accepted. A snapshot may lack it in several of the domain's images: the worst image counts. */
const quarantined = ({ findings, accept }: MigrationState): number =>
  findings.reduce(
    (most, { code, severity, count }) =>
      code === "snapshot.incomplete" && severity === "risk" && accept.includes(code)
        ? Math.max(most, count ?? 1)
        : most,
    0,
  );
