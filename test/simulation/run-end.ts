/** What must be true when everything is over: I10, I4, and that the guest still lives its life. */
import type { ChronicleEvent } from "#core/chronicle-event";
import type { MigrationState } from "#core/state";
import { sides } from "./fault-plan.ts";
import { domainRef, migrationId, type Scenario, type Scene } from "./scene.ts";

export interface EndFault {
  invariant: string;
  text: string;
}

export async function endFaults(scene: Scene, state: MigrationState | null, scenario: Scenario): Promise<EndFault[]> {
  const { daemons, functions, witness, disks, files } = scene;
  const found: EndFault[] = [];
  const fault = (invariant: string, text: string) => found.push({ invariant, text });
  if (state === null) return [{ invariant: "I10", text: "the migration was never made" }];
  for (const text of untold(functions.chronicle.events, state)) fault("chronicle", text);
  // A person stated that the host on which the guest had started is off: nobody settles it there, and that is said.
  if (state.step === "ended" && state.status === "stranded" && state.fenced?.side === "destination") return found;
  if (state.step !== "ended" || state.status === "running" || state.status === "stranded") {
    fault("I10", `it has no end: ${state.status} in ${state.step} (${state.failure?.code}: ${state.failure?.cause})`);
    return found;
  }
  const at = state.status === "completed" ? "destination" : "source";
  const away = at === "source" ? "destination" : "source";
  const domain = daemons[at].domains.get(domainRef.uuid);
  if (domain === undefined || !domain.persistent) {
    fault("I4", `${state.status}, but the ${at} has no definition of the domain`);
    return found;
  }
  if (daemons[away].domains.has(domainRef.uuid)) fault("I4", `${state.status}, but the ${away} still knows the domain`);
  for (const side of sides) {
    const left = disks[side].names("/state/journal/");
    if (left.length > 0) fault("I4", `the ${side} has not forgotten the migration (${left.join(" ")})`);
    if (files[side].files.size > 0) fault("I4", `the ${side} still keeps a bundle`);
  }
  if ((await functions.store.domainLock(domainRef.uuid)) !== null) fault("I4", "the domain's lock is still held");
  for (const host of [state.source.id, state.destination.id])
    if ((await functions.store.migrationsOf(host)).includes(migrationId)) fault("I4", `${host} still points at it`);
  findTreeFaults(scene, domain.snapshots, fault);
  if (domain.job !== null) fault("I4", "a libvirt job is left on the domain");
  if (domain.autostart !== scenario.autostart)
    fault("I4", `autostart is ${domain.autostart ? "on" : "off"} and was ${scenario.autostart ? "on" : "off"}`);
  if (witness.powerTouched) return found;
  if (scenario.guest === "offline") {
    if (witness.life > 0) return found;
    if (domain.qemu !== null) fault("I8", "a guest that was off runs");
    return found;
  }
  if (domain.qemu === null || domain.qemu.life !== witness.life || witness.life !== 1)
    fault("I8", `the guest's life was cut (${domain.qemu === null ? "it is off" : `life ${domain.qemu.life}`})`);
  else if ((domain.qemu.cpu === "paused") !== (scenario.guest === "paused"))
    fault("I10", `the guest is left ${domain.qemu.cpu} on the ${at}`);
  return found;
}

/** What began is told as begun, what ended as ended, once each and in that order, whatever died in between. */
function untold(events: readonly ChronicleEvent[], state: MigrationState): string[] {
  const places = (type: ChronicleEvent["type"]) =>
    events.flatMap((event, index) => (event.type === type && event.subject === state.id ? [index] : []));
  const began = places("dev.vmferry.migration.started");
  const ended = places("dev.vmferry.migration.ended");
  const found: string[] = [];
  const isOver = state.endedAt !== null && (state.status !== "stranded" || state.step === "ended");
  if (isOver && ended.length !== 1) found.push(`its end is told ${ended.length} times`);
  if (!isOver && ended.length > 0) found.push("its end is told, and it has none");
  if (((state.attempts.inspectSource ?? 0) > 0 || state.endedAt !== null) && began.length !== 1)
    found.push(`its beginning is told ${began.length} times`);
  if ((began[0] ?? -1) > (ended[0] ?? events.length)) found.push("its end is told before its beginning");
  return found;
}

function findTreeFaults(
  { owned, daemons }: Scene,
  snapshots: { records: Map<string, { parent: string | null; createdAt: number }>; current: string | null },
  fault: (invariant: string, text: string) => void,
): void {
  for (const [name, { parent, createdAt, added }] of owned) {
    const record = snapshots.records.get(name);
    if (record === undefined || record.createdAt !== createdAt) fault("I4", `the snapshot "${name}" is lost`);
    else if (!added && record.parent !== parent)
      fault("I4", `the snapshot "${name}" has the parent ${record.parent} instead of ${parent}`);
  }
  for (const name of snapshots.records.keys())
    if (!owned.has(name)) fault("I4", `a snapshot "${name}" has appeared from nowhere`);
  const added = [...owned.values()].some((record) => record.added);
  const last = [...owned.keys()].at(-1) ?? null;
  if (!added && snapshots.current !== last)
    fault("I4", `the current snapshot is ${snapshots.current} instead of ${last}`);
  void daemons;
}
