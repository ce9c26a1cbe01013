/** A small fleet for the cases of an evacuation: hosts and domains by number, a view of them, and a planner that takes the first host that may. */
import type { Evacuated } from "#core/evacuation";
import { evacuate } from "#core/evacuation";
import type { EvacuationEffect, EvacuationEvent, RunningMigration, SeenHost } from "#core/evacuation-event";
import { type EvacuationInput, newEvacuation } from "#core/evacuation-new";
import { type EvacuationDomain, type EvacuationState, evacuationPolicyDefault } from "#core/evacuation-state";
import type { BlockedDomain, Plan, PlannedMove } from "#core/placement-view";
import type { FaultBody } from "#protocol/fault";

export const startMs = Date.parse("2026-11-22T10:00:00.000Z");
export const after = (ms: number): string => new Date(startMs + ms).toISOString();

export const uuid = (index: number): string => `00000000-0000-4000-8000-${String(index).padStart(12, "0")}`;
export const hostId = (index: number): string => `h_${String(index).padStart(26, "0")}`;
export const evacuationId = (index: number): string => `e_01K${String(index).padStart(23, "0")}`;

export const input = (count: number, more: Partial<EvacuationInput> = {}): EvacuationInput => ({
  id: evacuationId(1),
  host: { id: hostId(0), name: "host0" },
  origin: { by: "token t1", rule: null, trigger: null },
  policy: { ...evacuationPolicyDefault, ...more.policy },
  deadlineMs: 2 * 60 * 60_000,
  domains: Array.from({ length: count }, (_, index) => ({
    domain: { uuid: uuid(index), name: `vm${index}` },
    memoryKiB: 1_048_576,
    vcpus: 2,
    priority: 50,
  })),
  ...("deadlineMs" in more ? { deadlineMs: more.deadlineMs ?? null } : {}),
});

export const born = (count: number, more: Partial<EvacuationInput> = {}): EvacuationState =>
  newEvacuation(input(count, more), after(0));

export const move = (domain: number, to: number, more: Partial<PlannedMove> = {}): PlannedMove => ({
  domainUuid: uuid(domain),
  fromId: hostId(0),
  toId: hostId(to),
  reason: "most room",
  runnersUp: [],
  wave: 0,
  startMs: 0,
  endMs: 10_000,
  proven: true,
  ...more,
});

export const block = (domain: number, code: FaultBody["code"]): BlockedDomain => ({
  domainUuid: uuid(domain),
  fromId: hostId(0),
  blocker: { code, cause: `cause of ${code}`, action: "do something" },
});

export const planOf = (moves: PlannedMove[], blocked: BlockedDomain[] = []): Plan => ({
  moves,
  blocked,
  makespanMs: 0,
  rooms: [],
  home: [],
  homeBlocked: [],
});

export const seen = (
  count: number,
  silent: Record<number, number> = {},
  cordoned: readonly number[] = [0],
  networks: Readonly<Record<number, string>> = {},
): SeenHost[] =>
  Array.from({ length: count }, (_, index) => ({
    id: hostId(index),
    cordoned: cordoned.includes(index),
    silentSinceMs: silent[index] ?? null,
    network: networks[index] ?? null,
  }));

export const look = (
  ms: number,
  moves: PlannedMove[],
  more: { blocked?: BlockedDomain[]; running?: RunningMigration[]; hosts?: SeenHost[] } = {},
): EvacuationEvent => ({
  type: "looked",
  at: after(ms),
  plan: planOf(moves, more.blocked),
  running: more.running ?? [],
  hosts: more.hosts ?? seen(4),
});

export const minute = 60_000;
export const cancel = (ms: number): EvacuationEvent => ({ type: "cancelRequested", at: after(ms), by: "token t1" });
export const tick = (ms: number): EvacuationEvent => ({ type: "ticked", at: after(ms) });

export function domainAt(state: EvacuationState, index: number): EvacuationDomain {
  const found = state.domains.find(({ domain }) => domain.uuid === uuid(index));
  if (found === undefined) throw new Error(`no domain ${index}`);
  return found;
}

export const fault = (code: FaultBody["code"], cause = `cause of ${code}`): FaultBody => ({
  code,
  cause,
  action: "look",
  retry: "safe",
});

/** How the migration that runs for a domain ended. */
export function ends(
  state: EvacuationState,
  index: number,
  ms: number,
  status: Extract<EvacuationEvent, { type: "migrationEnded" }>["status"],
  code: FaultBody["code"] = "perform.failed",
): EvacuationEvent {
  return {
    type: "migrationEnded",
    at: after(ms),
    domainUuid: uuid(index),
    migrationId: domainAt(state, index).migrationId ?? "",
    status,
    fault: status === "completed" ? null : fault(code),
  };
}

/** One after the other; with the effects of all. */
export function play(
  state: EvacuationState,
  ...events: readonly ((state: EvacuationState) => EvacuationEvent)[]
): Evacuated {
  return events.reduce<Evacuated>(
    (made, event) => {
      const next = evacuate(made.state, event(made.state));
      return { state: next.state, effects: [...made.effects, ...next.effects] };
    },
    { state, effects: [] },
  );
}

export const started = (effects: readonly EvacuationEffect[]): string[] =>
  effects.flatMap((effect) =>
    effect.type === "startMigration" ? [`${effect.domain.name}>${effect.destinationId.slice(-1)}`] : [],
  );

export const kindsOf = (effects: readonly EvacuationEffect[]): string[] => effects.map(({ type }) => type);
