/**
 * Where the fleet and the records disagree. Pure: what the hosts say of their domains and journals and what the functions
 * have recorded go in, named differences come out, each with its cause, the next action, and a repair only where one is
 * provably safe. Hosts speak late and one by one, so whatever is moving or has moved a moment ago is left out: silence
 * about it is not a claim. No action and no repair stops, starts or undefines a copy that is active (I8).
 */
import * as z from "zod/mini";
import type { DomainState } from "#protocol/command";
import type { InventoryDomain, OpenJournal } from "#protocol/message";
import type { MigrationState } from "./state.ts";

export const driftCodes = [
  "running.twice",
  "active.twice",
  "defined.twice",
  "staged.left",
  "running.elsewhere",
  "snapshot.missing",
  "journal.left",
  "lock.left",
  "sweep.owed",
] as const;

/** `critical`: data may be lost at this moment. `warning`: a person should act. `note`: worth knowing, ends by itself. */
export const severities = ["critical", "warning", "note"] as const;

export const repairSchema = z.object({
  kind: z.literal("release"),
  migrationId: z.string(),
  domainUuid: z.string(),
  /** Hosts whose pointer to the migration goes as well. */
  hostIds: z.array(z.string()),
});
export type Repair = z.infer<typeof repairSchema>;

export const driftSchema = z.object({
  code: z.enum(driftCodes),
  severity: z.enum(severities),
  domain: z.nullable(z.object({ uuid: z.string(), name: z.string() })),
  /** By name; the one that is right by the records, if any, comes first. */
  hosts: z.array(z.string()),
  migration: z.nullable(z.string()),
  cause: z.string(),
  action: z.string(),
  /** What the control plane does about it by itself; null: nothing, a person has to. */
  repair: z.nullable(repairSchema),
});
export type Drift = z.infer<typeof driftSchema>;

export interface DriftHost {
  id: string;
  name: string;
  /** Heard of lately, so that its inventory is how things are and not how they were. */
  connected: boolean;
  lastSeenAt: string | null;
  openJournals: { at: string; journals: readonly OpenJournal[] } | null;
  domains: readonly InventoryDomain[];
}

export type DriftMigration = Pick<
  MigrationState,
  "id" | "domain" | "source" | "destination" | "status" | "step" | "endedAt"
> & {
  /** Null: only its row was read. */
  detail: Pick<MigrationState, "snapshots" | "bundle" | "fenced" | "sweep"> | null;
};

export interface FleetView {
  /** When it was looked at, RFC 3339. */
  at: string;
  hosts: readonly DriftHost[];
  locks: readonly { domainUuid: string; migrationId: string }[];
  migrations: readonly DriftMigration[];
  /** Ids that a lock or a journal names and no record has. */
  unknown: readonly string[];
}

/** After a migration's end its hosts may still be telling what they did: events arrive within seconds, facts each minute. */
export const settledMsMin = 2 * 60_000;

/** A difference in snapshots is worth a word while the bundle is kept as a safety copy; later it is its owner's own affair. */
export const bundleMsKept = 7 * 24 * 60 * 60_000;

interface Copy {
  host: DriftHost;
  domain: InventoryDomain;
}

const runningStates: ReadonlySet<DomainState> = new Set(["running", "blocked"]);
const activeStates: ReadonlySet<DomainState> = new Set([...runningStates, "paused", "shutdown", "pmsuspended"]);
const isRunning = ({ domain }: Copy) => runningStates.has(domain.state);
const isActive = ({ domain }: Copy) => activeStates.has(domain.state);

/** Every difference, the worst first. The order of what goes in changes nothing. */
export function drifts(view: FleetView): Drift[] {
  const byId = new Map(view.migrations.map((migration) => [migration.id, migration]));
  const found = [
    ...placementsOf(view).flatMap((copies) => ofDomain(view, copies)),
    ...view.hosts.flatMap((host) => ofJournals(view, host, byId)),
    ...view.locks.flatMap((lock) => ofLock(view, lock, byId)),
    ...view.migrations.flatMap((migration) => ofSweep(view, migration)),
  ];
  return found
    .map((drift) => ({ drift, key: sortKey(drift) }))
    .sort(byKey)
    .map(({ drift }) => drift);
}

const sortKey = ({ severity, code, domain, hosts, migration, cause }: Drift): string =>
  [
    severities.indexOf(severity),
    driftCodes.indexOf(code),
    domain?.uuid ?? "",
    hosts.join(),
    migration ?? "",
    cause,
  ].join(" ");
const byKey = (one: { key: string }, other: { key: string }) =>
  one.key < other.key ? -1 : one.key > other.key ? 1 : 0;

const elapsedMs = (from: string, to: string) => Date.parse(to) - Date.parse(from);

/** The copies of each domain, by UUID. */
function placementsOf({ hosts }: FleetView): Copy[][] {
  const placed = new Map<string, Copy[]>();
  for (const host of [...hosts].sort((one, other) => (one.id < other.id ? -1 : 1)))
    for (const domain of host.domains) placed.set(domain.uuid, [...(placed.get(domain.uuid) ?? []), { host, domain }]);
  return [...placed.values()];
}

function ofDomain(view: FleetView, copies: readonly Copy[]): Drift[] {
  const [first] = copies;
  if (first === undefined) return [];
  const own = view.migrations
    .filter(({ domain }) => domain.uuid === first.domain.uuid)
    .sort((one, other) => (one.id < other.id ? -1 : 1));
  const moving = own.filter(({ endedAt }) => endedAt === null);
  if (moving.length > 0) return whileMoving(copies, moving);
  const last = own.at(-1) ?? null;
  if (last?.endedAt != null && elapsedMs(last.endedAt, view.at) < settledMsMin) return [];
  const recorded = last === null ? null : recordedHostId(last);
  if (copies.length > 1) return severalCopies(copies, last, recorded);
  return [...elsewhere(first, last, recorded), ...missingSnapshots(view, first, last, recorded)];
}

/** The two hosts of a migration count as one place while it runs; a third one has no business with the domain. */
function whileMoving(copies: readonly Copy[], moving: readonly DriftMigration[]): Drift[] {
  const between = new Set(moving.flatMap(({ source, destination }) => [source.id, destination.id]));
  const inside = copies.filter(({ host }) => between.has(host.id));
  const outside = copies.filter(({ host }) => !between.has(host.id));
  const [migration] = moving;
  const representative = inside.find(({ host }) => host.id === migration?.source.id) ?? inside[0];
  if (outside.length === 0 || representative === undefined) return [];
  return severalCopies([representative, ...outside], null, representative.host.id);
}

/** Where the domain is by the record of its last migration; null where only a person knows. */
function recordedHostId({ status, source, destination }: DriftMigration): string | null {
  if (status === "completed") return destination.id;
  return status === "stranded" || status === "running" ? null : source.id;
}

const heard = ({ host, domain }: Copy): string =>
  `${host.name} (${domain.state}${host.connected ? "" : `, as last heard ${host.lastSeenAt === null ? "of it" : `at ${host.lastSeenAt}`}`})`;

const refOf = ({ domain }: Copy) => ({ uuid: domain.uuid, name: domain.name });

function severalCopies(copies: readonly Copy[], last: DriftMigration | null, recorded: string | null): Drift[] {
  const [first] = copies;
  if (first === undefined) return [];
  const active = copies.filter(isActive);
  const running = copies.filter(isRunning);
  // What runs is right before any record: nobody is told to give up a running copy.
  const right = (active.length === 1 ? active[0] : copies.find(({ host }) => host.id === recorded)) ?? null;
  const ordered = right === null ? copies : [right, ...copies.filter((copy) => copy !== right)];
  const { name, uuid } = first.domain;
  const where = ordered.map(heard).join(", ");
  const byRecords =
    right === null ? "The records do not say which one is right." : `By the records ${right.host.name} has it.`;
  const head = {
    domain: refOf(first),
    hosts: ordered.map(({ host }) => host.name),
    migration: last?.id ?? null,
    repair: null,
  };
  if (running.length > 1)
    return [
      {
        ...head,
        code: "running.twice",
        severity: "critical",
        cause: `Domain ${name} runs on more than one host: ${where}. ${byRecords} On shared disks each copy destroys what the other writes.`,
        action: `Suspend at once, on every one of these hosts: virsh suspend ${uuid}. Then find out by the guest's own data which copy is the right one, before anything is ended or resumed.`,
      },
    ];
  if (active.length > 1)
    return [
      {
        ...head,
        code: "active.twice",
        severity: "critical",
        cause: `Domain ${name} is held in memory on more than one host: ${where}. ${byRecords} One of them must never go on.`,
        action: `Resume and end nothing before it is clear which copy is newer: look at vmferry migrations and at both hosts' shim logs.`,
      },
    ];
  const wrong = ordered.filter((copy) => copy !== right);
  const undefine = `virsh undefine ${uuid} --snapshots-metadata --checkpoints-metadata --keep-nvram --keep-tpm`;
  const staged = right === null ? undefined : wrong.find((copy) => wasStaged(copy, last));
  const others = wrong.filter((copy) => copy !== staged);
  const found: Drift[] = [];
  if (staged !== undefined && right !== null)
    found.push({
      ...head,
      hosts: [right.host.name, staged.host.name],
      code: "staged.left",
      severity: "warning",
      cause: `${last?.id ?? "A migration"} ended as ${last?.status ?? "failed"}, and a definition of ${name} stands on its destination ${staged.host.name}, not running. The domain is on ${right.host.name}.`,
      action: `If nobody defined it there on purpose, on ${staged.host.name}: ${undefine}. Disks are not touched by it.`,
    });
  if (others.length > 0)
    found.push({
      ...head,
      hosts: [...(right === null ? [] : [right.host.name]), ...others.map(({ host }) => host.name)],
      code: "defined.twice",
      severity: "warning",
      cause: `Domain ${name} is defined on more than one host: ${where}. ${byRecords}`,
      action:
        right === null
          ? "Find out on which host its disks and snapshots are the newest ones before anything is started or undefined."
          : `If the other definition is not wanted, on ${others.map(({ host }) => host.name).join(" and ")}: ${undefine}. Start it nowhere but on ${right.host.name}.`,
    });
  return found;
}

/** A migration that turned back staged it, or somebody defined it there since: only a person knows which. */
const wasStaged = ({ host }: Copy, last: DriftMigration | null): boolean =>
  last !== null && host.id === last.destination.id && (last.status === "rolledBack" || last.status === "cancelled");

function elsewhere(copy: Copy, last: DriftMigration | null, recorded: string | null): Drift[] {
  if (last === null || recorded === null || copy.host.id === recorded || !isActive(copy)) return [];
  const side = recorded === last.source.id ? last.source : last.destination;
  return [
    {
      code: "running.elsewhere",
      severity: "warning",
      domain: refOf(copy),
      hosts: [copy.host.name],
      migration: last.id,
      cause: `Domain ${copy.domain.name} is on ${heard(copy)}. By ${last.id} (${last.status}) it was on ${side.name}, which does not name it any more.`,
      action: `If somebody moved it by other means there is nothing to do; the next migration begins where it is. Else look at ${side.name}'s own list: virsh list --all.`,
      repair: null,
    },
  ];
}

function missingSnapshots(view: FleetView, copy: Copy, last: DriftMigration | null, recorded: string | null): Drift[] {
  const { host, domain } = copy;
  if (last?.detail == null || last.endedAt === null || host.id !== recorded || !host.connected) return [];
  if (elapsedMs(last.endedAt, view.at) > bundleMsKept) return [];
  const { snapshots, bundle } = last.detail;
  const expected = last.status === "completed" ? snapshots.verified : snapshots.total;
  if (domain.snapshots >= expected) return [];
  const kept =
    bundle === null
      ? "There is no bundle of it."
      : `Its bundle is ${bundle.key} in the bucket; put it back with: vmferry bundle restore FILE --host ${host.name}.`;
  return [
    {
      code: "snapshot.missing",
      // Owners delete snapshots one by one; that none is left is rarely anybody's wish.
      severity: domain.snapshots === 0 ? "warning" : "note",
      domain: refOf(copy),
      hosts: [host.name],
      migration: last.id,
      cause: `Domain ${domain.name} on ${host.name} has ${domain.snapshots} snapshots; ${last.id} left it there with ${expected}.`,
      action: `If its owner deleted them there is nothing to do. ${kept}`,
      repair: null,
    },
  ];
}

const isTask = (id: string): boolean => id.startsWith("b_");
/** What a fenced host still owes is asked of it by command when it returns. */
const owes = (migration: DriftMigration, hostId: string): boolean =>
  migration.step === "sweeping" &&
  migration.detail?.fenced != null &&
  migration[migration.detail.fenced.side].id === hostId;

function ofJournals(view: FleetView, host: DriftHost, byId: ReadonlyMap<string, DriftMigration>): Drift[] {
  const { openJournals } = host;
  if (openJournals === null) return [];
  return openJournals.journals.flatMap(({ id }): Drift[] => {
    const migration = byId.get(id);
    const why = isTask(id) ? null : whyLeft(openJournals.at, host, id, migration, view.unknown);
    if (why === null) return [];
    return [
      {
        code: "journal.left",
        severity: "warning",
        domain: migration === undefined ? null : { uuid: migration.domain.uuid, name: migration.domain.name },
        hosts: [host.name],
        migration: id,
        cause: `The shim on ${host.name} keeps an open journal of ${id}: ${why}.`,
        action: `Look at what that host has of the domain (vmferry host show ${host.name}) and at the story (vmferry migration show ${id}). The journal is below the shim's state directory, journal/${id}.jsonl; it may hold the only copy of a snapshot's metadata, so keep a copy of it.`,
        repair: null,
      },
    ];
  });
}

function whyLeft(
  saidAt: string,
  host: DriftHost,
  id: string,
  migration: DriftMigration | undefined,
  unknown: readonly string[],
): string | null {
  if (migration === undefined) return unknown.includes(id) ? "no such migration is recorded here" : null;
  if (migration.source.id !== host.id && migration.destination.id !== host.id)
    return `it goes from ${migration.source.name} to ${migration.destination.name} and is none of this host's`;
  if (migration.endedAt === null || owes(migration, host.id)) return null;
  return elapsedMs(migration.endedAt, saidAt) < settledMsMin
    ? null
    : `it ended as ${migration.status} at ${migration.endedAt} and asks nothing more of it`;
}

function ofLock(
  view: FleetView,
  { domainUuid, migrationId }: FleetView["locks"][number],
  byId: ReadonlyMap<string, DriftMigration>,
): Drift[] {
  const migration = byId.get(migrationId);
  const absent = migration === undefined && view.unknown.includes(migrationId);
  const ended = migration?.endedAt != null && elapsedMs(migration.endedAt, view.at) >= settledMsMin;
  if (isTask(migrationId) || (!absent && !ended)) return [];
  const sides = migration === undefined ? [] : [migration.source, migration.destination];
  const hostIds = sides.filter(({ id }) => migration !== undefined && !owes(migration, id)).map(({ id }) => id);
  return [
    {
      code: "lock.left",
      severity: "note",
      domain: migration === undefined ? null : { uuid: domainUuid, name: migration.domain.name },
      hosts: [],
      migration: migrationId,
      cause: `The domain ${domainUuid} is still locked by ${migrationId}, which ${migration === undefined ? "is not recorded" : `ended as ${migration.status}`}.`,
      action: "Nothing to do: the lock is freed by itself within minutes.",
      repair: { kind: "release", migrationId, domainUuid, hostIds },
    },
  ];
}

function ofSweep(view: FleetView, migration: DriftMigration): Drift[] {
  const { step, detail, endedAt, id, domain } = migration;
  if (step !== "sweeping" || detail?.fenced == null || endedAt === null) return [];
  if (elapsedMs(endedAt, view.at) < settledMsMin) return [];
  const fenced = migration[detail.fenced.side];
  const host = view.hosts.find((one) => one.id === fenced.id);
  // Removed: nobody is left to be asked.
  if (host === undefined) return [];
  return [
    {
      code: "sweep.owed",
      severity: "note",
      domain: { uuid: domain.uuid, name: domain.name },
      hosts: [fenced.name],
      migration: id,
      cause: `Host ${fenced.name} was stated to be fenced, and keeps what it had of ${id} (${detail.sweep.join(", ")}).`,
      action: `Let it return without starting ${domain.name} on it; its shim then sweeps by itself. If it never returns: vmferry host remove ${fenced.name}.`,
      repair: null,
    },
  ];
}
