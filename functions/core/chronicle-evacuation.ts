/** An evacuation, undo or restore as the chronicle tells it: that it began and how it ended. */
import { type ChronicleEvent, eventHead } from "./chronicle-event.ts";
import { type EvacuationState, evacuationSummary } from "./evacuation-state.ts";

type EventOf<T extends ChronicleEvent["type"]> = Extract<ChronicleEvent, { type: T }>;

const core = ({ id, kind, host, origin, deadlineAt, domains }: EvacuationState) => ({
  id,
  kind,
  host: { id: host.id, name: host.name },
  origin,
  deadlineAt,
  domains: domains.length,
});

export const evacuationStarted = (state: EvacuationState): EventOf<"dev.vmferry.evacuation.started"> => ({
  ...eventHead(`${state.id}-started`, state.id, state.createdAt),
  type: "dev.vmferry.evacuation.started",
  data: core(state),
});

/** Null: it has not ended. */
export function evacuationEnded(state: EvacuationState): EventOf<"dev.vmferry.evacuation.ended"> | null {
  const { endedAt, stopped } = state;
  if (endedAt === null) return null;
  return {
    ...eventHead(`${state.id}-ended`, state.id, endedAt),
    type: "dev.vmferry.evacuation.ended",
    data: {
      ...core(state),
      status: state.status,
      durationMs: Math.max(0, Date.parse(endedAt) - Date.parse(state.createdAt)),
      counts: evacuationSummary(state).counts,
      error: stopped === null ? null : { code: stopped.code, cause: stopped.cause, action: stopped.action },
    },
  };
}
