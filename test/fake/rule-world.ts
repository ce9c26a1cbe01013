/** A world for rules: memory stores, a clock that only tests move, hosts as they are said to be, evacuations that end when a test says so. */
import { createHash } from "node:crypto";
import type { EvacuationStatus } from "#core/evacuation-state";
import { type RuleHost, ruleSchema } from "#core/rule";
import { createRuleBook } from "#functions/rule-book";
import { createRuleRunner, type RuleFleet } from "#functions/rule-runner";
import { cronerCron } from "#functions/schedule/croner-cron";
import { createSecretSeal } from "#functions/secret-seal";
import { createTriggerDesk } from "#functions/trigger-desk";
import type { Fault } from "#protocol/fault";
import { controlSigner } from "#test/fake/control-key";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { MemoryDedup, MemoryRules } from "#test/fake/memory-rules";
import { MemoryShutdowns } from "#test/fake/memory-shutdowns";

export const ruleHostId = (index: number) => `h_01JD00000000000000000000${String(index).padStart(2, "0")}`;
export const ruleHost = (index: number, fields: Partial<RuleHost> = {}): RuleHost => ({
  id: ruleHostId(index),
  name: `host${index}`,
  labels: { rack: index <= 2 ? "a" : "b" },
  connected: true,
  cordoned: false,
  ...fields,
});

type Evacuation = Parameters<RuleFleet["requestEvacuation"]>[0] & {
  kind: "evacuate" | "restore";
  status: EvacuationStatus;
};

export function ruleWorld(startAt = "2027-02-01T00:00:00.000Z") {
  let nowMs = Date.parse(startAt);
  let serial = 0;
  const clock = { now: () => new Date(nowMs).toISOString() };
  const ids = {
    ulid: () => `01JE0000000000000000${String(++serial).padStart(6, "0")}`,
    secret: (bytes: number) =>
      createHash("sha512").update(`secret ${++serial}`).digest().subarray(0, bytes).toString("base64url"),
  };
  const script = {
    hosts: [1, 2, 3, 4].map((index) => ruleHost(index)),
    /** Minutes that emptying a host takes, by its name; null: cannot be said. */
    minutes: new Map<string, number | null>(),
    /** Thrown by the next requests. */
    refusing: null as Fault | null,
    evacuations: [] as Evacuation[],
    /** Every request, repeated ones too. */
    requests: 0,
    cancelled: [] as string[],
    logged: [] as string[],
  };
  const known = (id: string) => script.evacuations.find((one) => one.id === id);
  const begin = (evacuation: Evacuation) => {
    script.requests += 1;
    if (script.refusing !== null) throw script.refusing;
    if (known(evacuation.id) === undefined) script.evacuations.push(evacuation);
  };
  const fleet: RuleFleet = {
    hosts: async () => structuredClone(script.hosts),
    estimateMs: async (hostId) => {
      const name = script.hosts.find(({ id }) => id === hostId)?.name ?? "";
      const minutes = script.minutes.get(name);
      return minutes === null ? null : (minutes ?? 10) * 60_000;
    },
    status: async (id) => known(id)?.status ?? null,
    requestEvacuation: async (request) => begin({ ...request, kind: "evacuate", status: "running" }),
    requestRestore: async (request) => begin({ ...request, deadlineAt: null, kind: "restore", status: "running" }),
    cancelEvacuation: async (id) => {
      script.cancelled.push(id);
      const evacuation = known(id);
      if (evacuation?.status === "running") evacuation.status = "ending";
    },
  };
  const log = { write: (...line: unknown[]) => void script.logged.push(JSON.stringify(line)) };
  const rules = new MemoryRules();
  const dedup = new MemoryDedup(clock);
  const shutdowns = new MemoryShutdowns();
  const cron = cronerCron();
  const tickets = controlSigner();
  const book = createRuleBook({ clock, rules, cron });
  const chronicle = new MemoryChronicle(positionsBy(clock));
  const runner = createRuleRunner({ clock, ids, log, chronicle, rules, dedup, shutdowns, cron, fleet });
  const seal = createSecretSeal({ ids, tickets });
  const desk = createTriggerDesk({ clock, log, rules, seal, runner });

  return {
    script,
    chronicle,
    rules,
    dedup,
    book,
    runner,
    seal,
    desk,
    cron,
    clock,
    ids,
    log,
    fleet,
    nowMs: () => nowMs,
    setNow: (at: string) => {
      nowMs = Date.parse(at);
    },
    pass: (ms: number) => {
      nowMs += ms;
    },
    /** Minutes pass, each with its tick. */
    async minutes(count: number) {
      for (let minute = 0; minute < count; minute += 1) {
        nowMs += 60_000;
        await runner.tick();
      }
    },
    /** Writes a rule from its document. */
    async write(document: unknown) {
      const rule = ruleSchema.parse(document);
      book.check(rule);
      return (await book.put(rule, "test", null)).record;
    },
    end(hostName: string, status: EvacuationStatus = "completed") {
      const evacuation = script.evacuations.findLast(({ host }) => host.name === hostName);
      if (evacuation !== undefined) evacuation.status = status;
    },
    /** Names of hosts whose evacuation was asked for, in order. */
    evacuated: () => script.evacuations.filter(({ kind }) => kind === "evacuate").map(({ host }) => host.name),
    restored: () => script.evacuations.filter(({ kind }) => kind === "restore").map(({ host }) => host.name),
  };
}
export type RuleWorld = ReturnType<typeof ruleWorld>;

/** The rule of the documentation: a rack, every first Sunday. */
export const rackRule = {
  name: "rack-b-first-sunday",
  when: { kind: "schedule", cron: "0 2 * * SUN#1", timeZone: "Europe/Berlin", until: "05:00" },
  which: { labels: { rack: "b" } },
  after: { restore: "whenBack" },
};
export const alertRule = {
  name: "failing-disk",
  when: { kind: "alertmanager", matchers: { alertname: "HostDiskFailing", severity: ["critical", "page"] } },
  which: { fromTrigger: { label: "instance" } },
};
