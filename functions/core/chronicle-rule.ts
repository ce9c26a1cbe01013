/** A rule's run as the chronicle tells it: what set it off, which hosts it is about, how each of them ended. */
import { type ChronicleEvent, eventHead } from "./chronicle-event.ts";
import type { RuleRun } from "./rule-state.ts";

type EventOf<T extends ChronicleEvent["type"]> = Extract<ChronicleEvent, { type: T }>;

const core = (rule: string, run: RuleRun) => ({
  id: run.id,
  rule,
  ruleVersion: run.ruleVersion,
  trigger: { type: run.event.type, id: run.event.id, source: run.event.source },
  hosts: run.hosts.map(({ host, state, evacuationId, reason }) => ({
    host: { id: host.id, name: host.name },
    state,
    evacuationId,
    reason,
  })),
});

/** As it stands when it is told: hosts that join it later are among those of its end. */
export const runStarted = (rule: string, run: RuleRun): EventOf<"dev.vmferry.rule.run.started"> => ({
  ...eventHead(`${run.id}-started`, run.id, run.createdAt),
  type: "dev.vmferry.rule.run.started",
  data: { ...core(rule, run), awaitsApproval: run.hosts.some(({ state }) => state === "awaitingApproval") },
});

/** Null: it has not ended. */
export function runEnded(rule: string, run: RuleRun): EventOf<"dev.vmferry.rule.run.ended"> | null {
  if (run.endedAt === null) return null;
  return {
    ...eventHead(`${run.id}-ended`, run.id, run.endedAt),
    type: "dev.vmferry.rule.run.ended",
    data: {
      ...core(rule, run),
      approvedBy: run.approvedBy,
      durationMs: Math.max(0, Date.parse(run.endedAt) - Date.parse(run.createdAt)),
    },
  };
}
