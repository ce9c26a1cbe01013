/**
 * `node test/bench/planner.ts`: the planner against first fit and random on generated fleets, side by side in one run, and its speed at 50 hosts out of
 * 1,000 with 10,000 domains. All three keep the same rules and are put in time by the same scheduler; only the choice of destinations differs.
 *
 *   --fleets N   of each kind, default 20        --rounds N   of the speed, default 10        --json   the figures as JSON
 */
import { parseArgs } from "node:util";
import { orderMoves, plan, type WantedMove } from "#core/placement";
import { fleetOf, hostAt, isAllowed, Ledger, type Load } from "#core/placement-ledger";
import { heldBack } from "#core/placement-obstacle";
import { type PlacementPolicy, type PlacementView, placementPolicyDefault, type Verdict } from "#core/placement-view";
import { type FleetShape, fleetView } from "../fake/fleet-view.ts";
import { Chance } from "../simulation/virtual-time.ts";
import { figure } from "./statistics.ts";

interface Outcome {
  placed: number;
  moves: number;
  makespanMs: number;
  /** Of the placed ones with an affinity group: with another one of it on their host at the end. */
  together: number;
  grouped: number;
  /** The least share of memory left on a host that received. */
  leastLeft: number;
}

type Strategy = (
  view: PlacementView,
  emptied: readonly string[],
  policy: PlacementPolicy,
  seed: number,
) => WantedMove[];

/** Domains as they come, each on what `pick` takes of the hosts that can have it. */
const simple =
  (pick: (slots: readonly number[], chance: Chance) => number | undefined): Strategy =>
  (view, emptied, policy, seed) => {
    const fleet = fleetOf(view, policy);
    const ledger = Ledger.of(fleet);
    const chance = new Chance(seed);
    const open = [...fleet.hosts.keys()].filter((slot) => {
      const { id, closed } = hostAt(fleet, slot);
      return closed === null && !emptied.includes(id);
    });
    const order = new Map(view.domains.map((domain, index) => [domain, index]));
    const place = ({ domain }: Load) => order.get(domain) ?? 0;
    return fleet.loads
      .filter((load) => emptied.includes(load.domain.hostId) && heldBack(fleet, load) === null)
      .sort((one, other) => place(one) - place(other))
      .flatMap((load) => {
        const slot = pick(
          open.filter((candidate) => ledger.fits(load, candidate) && isAllowed(load, candidate)),
          chance,
        );
        if (slot === undefined) return [];
        ledger.add(load, slot);
        return [{ domainUuid: load.domain.uuid, toId: hostAt(fleet, slot).id }];
      });
  };

const strategies: Record<string, Strategy> = {
  planner: (view, emptied, policy) => plan(view, emptied, policy).moves,
  "first fit": simple(([first]) => first),
  random: simple((slots, chance) => (slots.length === 0 ? undefined : chance.pick(slots))),
};

const kinds: Record<string, { shape: Partial<FleetShape>; emptied: number }> = {
  "roomy: 20 hosts, half full, 2 emptied": { shape: { hosts: 20, domains: 160, fillMax: 0.5 }, emptied: 2 },
  "tight: 8 hosts, 85 % full, 1 emptied": {
    shape: {
      hosts: 8,
      domains: 400,
      fillMax: 0.85,
      hostGib: [64],
      domainGib: [1, 2, 4, 6],
      closed: 0,
      antiAffinity: 0.05,
    },
    emptied: 1,
  },
  "groups: 8 hosts, 70 % full, many groups, 1 emptied": {
    shape: {
      hosts: 8,
      domains: 120,
      fillMax: 0.7,
      hostGib: [64],
      antiAffinity: 0.5,
      affinity: 0.4,
      groupSize: 2,
      closed: 0,
    },
    emptied: 1,
  },
  "small: 4 hosts, 75 % full, large domains, 1 emptied": {
    shape: { hosts: 4, domains: 24, fillMax: 0.75, hostGib: [32], domainGib: [2, 3, 5, 7, 11], closed: 0 },
    emptied: 1,
  },
};

function outcome(view: PlacementView, emptied: readonly string[], wanted: readonly WantedMove[]): Outcome {
  const { moves, makespanMs } = orderMoves(view, wanted, placementPolicyDefault);
  const ends = new Map(moves.map(({ domainUuid, toId }) => [domainUuid, toId]));
  const at = view.domains.map((domain) => ({ domain, hostId: ends.get(domain.uuid) ?? domain.hostId }));
  const placed = at.filter(({ domain }) => ends.has(domain.uuid) && emptied.includes(domain.hostId));
  const grouped = placed.filter(({ domain }) => domain.labels.affinity !== undefined);
  const together = grouped.filter(({ domain, hostId }) =>
    at.some(
      (other) =>
        other.domain !== domain && other.hostId === hostId && other.domain.labels.affinity === domain.labels.affinity,
    ),
  );
  const left = [...new Set(ends.values())].map((id) => {
    const used = at
      .filter(({ hostId, domain }) => hostId === id && domain.active)
      .reduce((sum, { domain }) => sum + domain.memoryKiB, 0);
    return 1 - used / (view.hosts.find((host) => host.id === id)?.memoryKiB ?? used);
  });
  return {
    placed: placed.length,
    moves: moves.length,
    makespanMs,
    together: together.length,
    grouped: grouped.length,
    leastLeft: Math.min(1, ...left),
  };
}

function compare(fleets: number) {
  return Object.entries(kinds).map(([kind, { shape, emptied: count }]) => {
    const sums = Object.keys(strategies).map((name) => ({ name, whole: 0, makespanMs: 0, outcomes: [] as Outcome[] }));
    let asked = 0;
    for (let seed = 1; seed <= fleets; seed += 1) {
      const view = fleetView(seed, shape);
      const emptied = view.hosts.slice(0, count).map(({ id }) => id);
      const fleet = fleetOf(view, placementPolicyDefault);
      const movable = fleet.loads.filter(
        (load) => emptied.includes(load.domain.hostId) && heldBack(fleet, load) === null,
      );
      asked += movable.length;
      for (const sum of sums) {
        const wanted = strategies[sum.name]?.(view, emptied, placementPolicyDefault, seed) ?? [];
        const result = outcome(view, emptied, wanted);
        sum.outcomes.push(result);
        if (result.placed === movable.length) sum.whole += 1;
      }
    }
    return {
      kind,
      fleets,
      asked,
      rows: sums.map(({ name, whole, outcomes }) => {
        const total = (field: keyof Outcome) => outcomes.reduce((sum, one) => sum + one[field], 0);
        return {
          strategy: name,
          placed: total("placed"),
          emptiedWholly: whole,
          moves: total("moves"),
          makespanMs: Math.round(total("makespanMs") / fleets),
          makespanPerMoveMs: Math.round(total("makespanMs") / Math.max(1, total("moves"))),
          together: total("together"),
          grouped: total("grouped"),
          leastLeft: total("leastLeft") / fleets,
        };
      }),
    };
  });
}

/** How long one plan of the stated size takes, way home and all words included. */
function speed(rounds: number) {
  const size: Partial<FleetShape> = {
    hosts: 1_000,
    domains: 10_000,
    hostGib: [64, 128],
    domainGib: [1, 2, 4, 8, 16],
    checked: 0,
  };
  const cases: Record<string, PlacementView> = {
    "nothing checked": fleetView(1, size),
    "a tenth of the pairs checked": withVerdicts(fleetView(1, size), 0.1),
    "all pairs checked": withVerdicts(fleetView(1, size), 1),
    "tight: destinations nearly full": fleetView(3, {
      ...size,
      domains: 10_000,
      fillMax: 0.97,
      hostGib: [64],
      domainGib: [4, 8, 16],
    }),
  };
  return Object.entries(cases).map(([name, view]) => {
    const emptied = view.hosts.slice(0, 50).map(({ id }) => id);
    const policy = { ...placementPolicyDefault, fleetMax: 50 };
    const samples: number[] = [];
    // What others do on the machine meanwhile is not in this one; the collector's threads are.
    const cpu: number[] = [];
    let last = plan(view, emptied, policy);
    for (let round = 0; round < rounds; round += 1) {
      const began = performance.now();
      const before = process.cpuUsage();
      last = plan(view, emptied, policy);
      const { user, system } = process.cpuUsage(before);
      samples.push(performance.now() - began);
      cpu.push((user + system) / 1000);
    }
    return {
      name,
      domains: view.domains.length,
      moves: last.moves.length,
      blocked: last.blocked.length,
      ms: figure(samples),
      cpuMs: figure(cpu),
    };
  });
}

/** Answers for a share of the pairs of what is emptied and any host; a tenth of them refuse. */
function withVerdicts(view: PlacementView, share: number): PlacementView {
  const chance = new Chance(7);
  const verdicts = new Map<string, Verdict>();
  const emptied = new Set(view.hosts.slice(0, 50).map(({ id }) => id));
  for (const { uuid, hostId } of view.domains) {
    if (!emptied.has(hostId)) continue;
    for (const { id } of view.hosts)
      if (chance.is(share))
        verdicts.set(
          `${uuid} ${id}`,
          chance.is(0.9)
            ? { allowed: true, atMs: view.atMs }
            : { allowed: false, atMs: view.atMs, blockers: [{ code: "destination.cpu", cause: "no", action: "no" }] },
        );
  }
  return { ...view, verdicts };
}

const { values } = parseArgs({
  options: {
    fleets: { type: "string", default: "20" },
    rounds: { type: "string", default: "10" },
    json: { type: "boolean", default: false },
  },
});
const compared = compare(Number(values.fleets));
const speeds = speed(Number(values.rounds));
if (values.json) console.log(JSON.stringify({ compared, speeds }, null, 2));
else {
  for (const { kind, fleets, asked, rows } of compared) {
    console.log(`\n${kind}; ${fleets} fleets, ${asked} domains to move`);
    const [planner] = rows;
    console.table(
      rows.map((row) => ({
        strategy: row.strategy,
        placed: row.placed,
        "emptied wholly": `${row.emptiedWholly}/${fleets}`,
        moves: row.moves,
        "makespan s": Math.round(row.makespanMs / 1000),
        "s per move": (row.makespanPerMoveMs / 1000).toFixed(1),
        "to the planner's": (row.makespanPerMoveMs / (planner?.makespanPerMoveMs ?? 1)).toFixed(2),
        "of a group together": `${row.together}/${row.grouped}`,
        "least memory left": `${Math.round(row.leastLeft * 100)} %`,
      })),
    );
  }
  console.log("\n50 hosts out of 1,000");
  console.table(
    speeds.map(({ name, domains, moves, blocked, ms, cpuMs }) => ({
      fleet: name,
      domains,
      moves,
      blocked,
      "median ms": Math.round(ms.median),
      "min ms": Math.round(ms.min),
      "max ms": Math.round(ms.max),
      "median CPU ms": Math.round(cpuMs.median),
    })),
  );
}
