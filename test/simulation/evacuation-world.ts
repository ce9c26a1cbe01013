/**
 * A fleet in virtual time for whole evacuations: hosts that go silent and come back, migrations that take their time and end in every
 * way, persons who migrate, cancel, remove and close hosts meanwhile. It does what it is asked, refuses what the control plane's
 * records would refuse, and keeps what an onlooker needs in order to say whether all was right.
 */
import type { EvacuationEffect, RunningMigration, SeenHost } from "#core/evacuation-event";
import { networksOf } from "#core/evacuation-limits";
import { type PlacementDomain, type PlacementView, type Verdict, verdictKey } from "#core/placement-view";
import type { Status } from "#core/state";
import type { FaultBody, FaultCode } from "#protocol/fault";

/** Of a seed, the same on every machine. */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface WorldHost {
  id: string;
  name: string;
  memoryKiB: number;
  cordoned: boolean;
  silentSinceMs: number | null;
  network: string | null;
  /** It is heard of again from then on. */
  backAtMs: number;
}

export interface WorldMigration extends RunningMigration {
  /** Whose: an evacuation's id, or a person's. */
  by: string;
  endsAtMs: number;
  status: Status;
  fault: FaultBody | null;
  /** How it will end. */
  fate: { status: Exclude<Status, "running">; fault: FaultBody | null };
}

export interface Weather {
  /** Of migrations: end other than completed. */
  failures: number;
  /** Of hosts in a minute: go silent. */
  silence: number;
  /** In a minute: half of the fleet goes silent at once. */
  massSilence: number;
  /** In a minute: a person does something. */
  persons: number;
  /** Of effects: lost between commit and dispatch; dispatched twice. */
  lost: number;
  repeated: number;
  /** Of rounds: the control plane is away. */
  away: number;
  /** Of domains: cannot be moved at all, until somebody ejects the CD. */
  unmovable: number;
}

export const calm: Weather = {
  failures: 0,
  silence: 0,
  massSilence: 0,
  persons: 0,
  lost: 0,
  repeated: 0,
  away: 0,
  unmovable: 0,
};

const giB = 1_048_576;
const failures: readonly FaultCode[] = [
  "perform.failed",
  "prepare.failed",
  "begin.failed",
  "destination.lost",
  "storage.unreachable",
  "domain.busy",
  "domain.hostdev",
  "libvirt.failed",
];

export const faultOf = (code: FaultCode): FaultBody => ({
  code,
  cause: `it was ${code}`,
  action: "look",
  retry: "safe",
});

export class World {
  readonly random: () => number;
  readonly weather: Weather;
  nowMs = Date.parse("2026-11-22T00:00:00.000Z");
  readonly hosts: WorldHost[] = [];
  /** Each of them runs, always: nothing here can stop one. What a person removes is no longer in here. */
  readonly domains = new Map<string, PlacementDomain & { stuck: boolean }>();
  readonly migrations = new Map<string, WorldMigration>();
  #persons = 0;

  constructor(seed: number, size: { hosts: number; domains: number }, weather: Weather) {
    this.random = randomOf(seed);
    this.weather = weather;
    for (let index = 0; index < size.hosts; index += 1)
      this.hosts.push({
        id: `h_${String(index).padStart(26, "0")}`,
        name: `host${index}`,
        memoryKiB: (16 + this.below(3) * 16) * giB,
        cordoned: false,
        silentSinceMs: null,
        network: ["rack-a", "rack-b", null][index % 3] ?? null,
        backAtMs: 0,
      });
    for (let index = 0; index < size.domains; index += 1) {
      const uuid = `${String(this.below(1e8)).padStart(8, "0")}-0000-4000-8000-${String(index).padStart(12, "0")}`;
      const memoryKiB = (1 + this.below(4)) * giB;
      const host = this.pick(this.hosts);
      // A host that is fuller than the policy allows could not take back what it has given.
      if (this.#usedKiB(host) + memoryKiB + giB > host.memoryKiB) continue;
      this.domains.set(uuid, {
        uuid,
        name: `vm${index}`,
        hostId: host.id,
        memoryKiB,
        vcpus: 1,
        active: true,
        snapshots: 0,
        labels: this.chance(0.1) ? { priority: "90" } : {},
        stuck: this.chance(weather.unmovable),
      });
    }
  }

  chance = (of: number): boolean => this.random() < of;
  below = (count: number): number => Math.floor(this.random() * count);

  pick<T>(from: readonly T[]): T {
    const found = from[this.below(from.length)];
    if (found === undefined) throw new Error("nothing to pick from");
    return found;
  }

  #usedKiB = ({ id }: WorldHost): number =>
    [...this.domains.values()].reduce((sum, { hostId, memoryKiB }) => sum + (hostId === id ? memoryKiB : 0), 0);

  host(id: string): WorldHost {
    const found = this.hosts.find((host) => host.id === id);
    if (found === undefined) throw new Error(`no host ${id}`);
    return found;
  }

  running = (): WorldMigration[] => [...this.migrations.values()].filter(({ status }) => status === "running");

  /** Time passes: migrations end, hosts come and go, persons act. */
  pass(ms: number): void {
    this.nowMs += ms;
    const minutes = ms / 60_000;
    for (const host of this.hosts)
      if (host.silentSinceMs === null) {
        if (this.chance(this.weather.silence * minutes)) this.#silence(host, this.nowMs - this.below(ms));
      } else if (host.backAtMs <= this.nowMs) host.silentSinceMs = null;
    if (this.chance(this.weather.massSilence * minutes))
      for (const host of this.hosts)
        if (host.silentSinceMs === null && this.chance(0.6)) this.#silence(host, this.nowMs - this.below(20_000));
    for (const migration of this.running()) if (migration.endsAtMs <= this.nowMs) this.#end(migration);
    if (this.chance(this.weather.persons * minutes)) this.#person();
  }

  /** Quiet: whatever was wrong is over. */
  heal(): void {
    Object.assign(this.weather, calm);
    for (const host of this.hosts) host.silentSinceMs = null;
    for (const domain of this.domains.values()) domain.stuck = false;
  }

  #silence(host: WorldHost, sinceMs: number): void {
    host.silentSinceMs = sinceMs;
    host.backAtMs = this.nowMs + (1 + this.below(30)) * 60_000;
  }

  #end(migration: WorldMigration): void {
    const silent = [migration.sourceId, migration.destinationId].some((id) => this.host(id).silentSinceMs !== null);
    const fate =
      silent && this.chance(0.5)
        ? { status: "rolledBack" as const, fault: faultOf("destination.lost") }
        : migration.fate;
    migration.status = fate.status;
    migration.fault = fate.fault;
    const domain = this.domains.get(migration.domainUuid);
    if (fate.status === "completed" && domain !== undefined) domain.hostId = migration.destinationId;
  }

  #person(): void {
    const running = this.running();
    const domain = this.pick([...this.domains.values()]);
    const busy = running.some(({ domainUuid }) => domainUuid === domain.uuid);
    const act = this.below(10);
    if (act < 4 && !busy) {
      const destination = this.pick(this.hosts);
      if (destination.id === domain.hostId) return;
      this.#persons += 1;
      const migrationId = `m_${String(this.#persons).padStart(26, "P")}`;
      this.#create(
        { migrationId, domainUuid: domain.uuid, sourceId: domain.hostId, destinationId: destination.id },
        "person",
      );
    } else if (act < 6 && running.length > 0) {
      const cancelled = this.pick(running);
      cancelled.fate = { status: "cancelled", fault: faultOf("migration.cancelled") };
    } else if (act === 6 && !busy) this.domains.delete(domain.uuid);
    else if (act === 7) this.pick(this.hosts).cordoned = this.chance(0.5);
    else domain.stuck = !domain.stuck && this.chance(0.3);
  }

  #create(what: RunningMigration, by: string): void {
    const failed = this.chance(this.weather.failures);
    const fate = !failed
      ? { status: "completed" as const, fault: null }
      : {
          status: this.chance(0.15)
            ? ("stranded" as const)
            : this.chance(0.3)
              ? ("refused" as const)
              : ("rolledBack" as const),
          fault: faultOf(this.pick(failures)),
        };
    const endsAtMs =
      this.nowMs +
      (fate.status === "refused" ? 2_000 : 10_000 + this.below(fate.status === "completed" ? 180_000 : 90_000));
    this.migrations.set(what.migrationId, { ...what, by, endsAtMs, status: "running", fault: null, fate });
  }

  /** As the runner's `request`: once per id, under the domain's lock. A fault of a busy domain leaves a refused record. */
  start(effect: Extract<EvacuationEffect, { type: "startMigration" }>, by: string): FaultBody | null {
    if (this.migrations.has(effect.migrationId)) return null;
    const { migrationId, sourceId, destinationId } = effect;
    const what = { migrationId, domainUuid: effect.domain.uuid, sourceId, destinationId };
    const destination = this.host(destinationId);
    if (destination.cordoned) return faultOf("host.cordoned");
    const domain = this.domains.get(what.domainUuid);
    if (domain === undefined || domain.hostId !== sourceId) return faultOf("domain.absent");
    const busy = this.running().some(({ domainUuid }) => domainUuid === what.domainUuid);
    this.#create(what, by);
    const created = this.migrations.get(migrationId);
    if (!busy || created === undefined) return null;
    created.status = "refused";
    created.fault = faultOf("domain.busy");
    return created.fault;
  }

  seen = (): SeenHost[] =>
    this.hosts.map(({ id, cordoned, silentSinceMs, network }) => ({ id, cordoned, silentSinceMs, network }));

  /** `emptied`: hosts that evacuations are emptying, which take nothing. `committed`: what they have decided and not yet created. `asked`: domains that preflights were made for. */
  view(
    emptied: ReadonlySet<string>,
    committed: readonly RunningMigration[],
    asked: ReadonlySet<string>,
  ): PlacementView {
    const moving = new Map<string, RunningMigration>();
    for (const each of [...this.running(), ...committed]) moving.set(each.domainUuid, each);
    const allowed: Verdict = { allowed: true, atMs: this.nowMs };
    const stuck: Verdict = {
      allowed: false,
      atMs: this.nowMs,
      blockers: [{ code: "domain.hostdev", cause: "It has a host's device.", action: "Detach it." }],
    };
    const verdicts = new Map<string, Verdict>();
    for (const domain of this.domains.values())
      if (asked.has(domain.uuid))
        for (const host of this.hosts) verdicts.set(verdictKey(domain.uuid, host.id), domain.stuck ? stuck : allowed);
    return {
      atMs: this.nowMs,
      hosts: this.hosts.map(({ id, name, memoryKiB, cordoned, silentSinceMs }) => ({
        id,
        name,
        labels: {},
        cpus: 64,
        memoryKiB,
        closed:
          silentSinceMs !== null
            ? { code: "host.offline", cause: `${name} is silent.`, action: "Wait." }
            : cordoned || emptied.has(id)
              ? { code: "host.cordoned", cause: `${name} is closed.`, action: "Open it." }
              : null,
      })),
      domains: [...this.domains.values()].map(({ stuck: _, ...domain }) => domain),
      verdicts,
      moving: [...moving.values()].map(({ domainUuid, sourceId, destinationId }) => ({
        domainUuid,
        sourceId,
        destinationId,
      })),
      networks: networksOf(this.seen()),
    };
  }
}
