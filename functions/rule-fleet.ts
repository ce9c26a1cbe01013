/** The fleet and the evacuations as rules see them, and rules put together over them: what a rule asks for is what a person could ask for, with the same refusals. */
import { Fault } from "#protocol/fault";
import { evacuationRefusal } from "./core/evacuation-new.ts";
import { freshEvacuation, freshRestore, type Wish } from "./evacuation-request.ts";
import type { EvacuationRunner } from "./evacuation-runner.ts";
import type { DedupStore, HostRecord, Ports, RuleStore } from "./ports.ts";
import { hostRefusals, isConnected, isShutting } from "./refusals.ts";
import { createRuleBook } from "./rule-book.ts";
import { createRuleRunner, type RuleFleet } from "./rule-runner.ts";
import { cronerCron } from "./schedule/croner-cron.ts";
import { createSecretSeal } from "./secret-seal.ts";
import { createTriggerDesk } from "./trigger-desk.ts";

/** How long hosts are asked for one estimate or one start: a timer's call must end, and a trigger's sender waits. */
const askMsMax = 10_000;

export function createRuleFleet(
  ports: Ports,
  evacuations: Pick<EvacuationRunner, "plan" | "request" | "cancel">,
): RuleFleet {
  const { clock, hosts } = ports;
  const untilMs = () => Date.parse(clock.now()) + askMsMax;

  async function hostOf(id: string, name: string): Promise<HostRecord> {
    const host = await hosts.byId(id);
    if (host === null)
      throw new Fault({
        code: "host.absent",
        cause: `The host ${name} was removed.`,
        action: "Look at: vmferry hosts.",
        retry: "never",
      });
    return host;
  }

  const wishOf = (request: Omit<Parameters<RuleFleet["requestEvacuation"]>[0], "host">): Wish => ({
    id: request.id,
    origin: request.origin,
    policy: request.policy,
    deadlineMs:
      request.deadlineAt === null ? null : Math.max(0, Date.parse(request.deadlineAt) - Date.parse(clock.now())),
  });

  /** A selector of destinations may well match the host itself. */
  const without = <P extends { to: string[] | null }>(policy: P, hostId: string): P => ({
    ...policy,
    to: policy.to?.filter((id) => id !== hostId) ?? null,
  });

  return {
    async hosts() {
      return (await hosts.list()).map((host) => ({
        id: host.id,
        name: host.name,
        labels: host.facts?.labels ?? {},
        connected: isConnected(host, ports),
        cordoned: host.cordoned,
        shutting: isShutting(host, ports),
      }));
    },

    async estimateMs(hostId, policy) {
      const host = await hosts.byId(hostId);
      if (host === null) return null;
      const origin = { by: "an estimate", rule: null, trigger: null };
      const wish = { id: `e_${ports.ids.ulid()}`, origin, policy: without(policy, hostId), deadlineMs: null };
      const { plan } = await evacuations.plan(await freshEvacuation(ports, host, wish), untilMs());
      return plan.makespanMs;
    },

    async status(evacuationId) {
      return (await ports.evacuations.load(evacuationId))?.status ?? null;
    },

    async requestEvacuation(request) {
      const host = await hostOf(request.host.id, request.host.name);
      const refusal = hostRefusals(host, "source", ports)[0];
      if (refusal !== undefined) throw new Fault(refusal);
      const wish = wishOf({ ...request, policy: without(request.policy, host.id) });
      const fresh = await freshEvacuation(ports, host, wish);
      const tooLarge = evacuationRefusal(fresh);
      if (tooLarge !== null) throw new Fault(tooLarge);
      return evacuations.request(fresh, untilMs());
    },

    async requestRestore(request) {
      const host = await hostOf(request.host.id, request.host.name);
      const wish = wishOf({ ...request, deadlineAt: null });
      return evacuations.request(await freshRestore(ports, host, { ...wish, skip: [] }), untilMs());
    },

    cancelEvacuation: (id, by) => evacuations.cancel(id, by),
  };
}

/** Everything of rules over a deployment's ports. */
export function createRules(
  ports: Ports,
  stores: { rules: RuleStore; dedup: DedupStore },
  evacuations: Pick<EvacuationRunner, "plan" | "request" | "cancel">,
) {
  const { clock, ids, log, chronicle, shutdowns } = ports;
  const { rules, dedup } = stores;
  const cron = cronerCron();
  const fleet = createRuleFleet(ports, evacuations);
  const runner = createRuleRunner({ clock, ids, log, chronicle, rules, dedup, shutdowns, cron, fleet });
  const seal = createSecretSeal(ports);
  const desk = createTriggerDesk({ clock, log, rules, seal, runner });
  return { rules, cron, runner, seal, desk, book: createRuleBook({ clock, rules, cron }) };
}
