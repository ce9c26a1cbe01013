/**
 * Rules taken away, one at a time, by wrapping what upholds them: the simulation has to find each. What survives would be a
 * rule that nothing here looks at.
 */
import { transition } from "#core/transition";
import type { Ports } from "#functions/ports";
import { receive } from "#functions/session";
import { procedures } from "#libvirt/procedures";
import type { Journal, Steps } from "#shim/ports";
import type { FaultSource } from "./fault-plan.ts";
import type { Mutation } from "./scene.ts";

/** A journal that does not write certain points and says that it did. */
const withoutMilestone =
  (name: string) =>
  (journal: Journal): Journal =>
    changed(journal, {
      append: async (id, entry) => {
        if (entry.type !== "milestone" || entry.name !== name) await journal.append(id, entry);
      },
    });

function changed(journal: Journal, fields: Partial<Journal>): Journal {
  return {
    append: (id, entry) => journal.append(id, entry),
    read: (id) => journal.read(id),
    list: () => journal.list(),
    forget: (id, epoch) => journal.forget(id, epoch),
    forgottenEpoch: (id) => journal.forgottenEpoch(id),
    ...fields,
  };
}

/** After it was forgotten, a migration is as new: it is kept under another id, since the journal itself refuses the old one. */
function withoutTombstones(journal: Journal): Journal {
  const forgotten = new Map<string, number>();
  const of = (id: string) => `${id.slice(0, -1)}${forgotten.get(id) ?? 0}`;
  return {
    append: (id, entry) => journal.append(of(id), entry),
    read: (id) => journal.read(of(id)),
    list: () => journal.list(),
    forget: async (id, epoch) => {
      const standing = of(id);
      forgotten.set(id, (forgotten.get(id) ?? 0) + 1);
      await journal.forget(standing, epoch);
    },
    forgottenEpoch: () => null,
  };
}

const withStep =
  (change: Partial<Steps> | ((steps: Steps) => Partial<Steps>)) =>
  (steps: Steps): Steps => ({ ...steps, ...(typeof change === "function" ? change(steps) : change) });

const both = (mutation: NonNullable<Mutation["source"]>): Mutation => ({ source: mutation, destination: mutation });

type Decide = typeof transition;

/** The destination's silence is taken for "it was cancelled"; the functions may sign that, as for a fenced host. */
const silenceIsCancelled: Decide = (state, event) => {
  const next = transition(state, event);
  if (event.type !== "ticked" || state.step !== "finishing" || next.state.status !== "stranded") return next;
  const pending = state.pending.find(({ kind }) => kind === "finish");
  if (pending === undefined) return next;
  const receipt = { outcome: "destroyed", evidence: "fenced", at: event.at } as const;
  const body = { kind: "finish" as const, receipt, cookie: null, fault: null };
  const report = { commandId: pending.id, migrationId: state.id, epoch: state.epoch, ms: 0 };
  return transition(state, {
    type: "reported",
    at: event.at,
    report: { ...report, result: { ok: true, body, blobs: {} } },
  });
};

/** That a host has finished with the migration is not believed. */
const deafToForgotten: Decide = (state, event) => {
  if (event.type !== "reported" || event.report.result.ok) return transition(state, event);
  const { forgotten: _, ...result } = event.report.result;
  return transition(state, { ...event, report: { ...event.report, result } });
};

/** The bundle is believed to be staged as soon as it is exported. */
const stripBeforeStage: Decide = (state, event) => {
  const next = transition(state, event);
  const pending = next.state.pending.find(({ kind }) => kind === "stage");
  const { bundle } = next.state;
  if (next.state.step !== "staging" || pending === undefined || bundle === null) return next;
  const { snapshots, checkpoints, treeSha256 } = bundle;
  const body = { kind: "stage" as const, tree: { snapshots, checkpoints, treeSha256 } };
  const report = { commandId: pending.id, migrationId: state.id, epoch: state.epoch, ms: 0 };
  const on = transition(next.state, {
    type: "reported",
    at: event.at,
    report: { ...report, result: { ok: true, body, blobs: {} } },
  });
  return { ...on, state: { ...on.state, version: next.state.version } };
};

/** Whoever writes last wins. */
function unconditional(ports: Ports): Ports {
  const { migrations } = ports;
  return {
    ...ports,
    migrations: {
      ...migrations,
      commit: async (state) => {
        if ((await migrations.commit(state)) === "committed") return "committed";
        const standing = await migrations.load(state.id);
        if (standing === null) return "conflict";
        const epoch = Math.max(standing.epoch, state.epoch);
        return migrations.commit({ ...state, epoch, version: standing.version + 1 });
      },
    },
  };
}

export interface Removed {
  mutation: Mutation;
  /** Where a run without that rule goes wrong more often than in any swarm; default a swarm. */
  source?: FaultSource;
}

const removed: Record<string, Mutation> = {
  "silence is cancelled": { functions: { decide: silenceIsCancelled } },
  "strip before stage": { functions: { decide: stripBeforeStage } },
  "no condition on the state's version": { functions: { ports: unconditional } },
  "no epoch check": both({
    executor: (executor) => {
      const command = executor.command.bind(executor);
      executor.command = (given) => command({ ...given, epoch: 1_000 });
    },
  }),
  "resume on timeout": {
    source: {
      steps: withStep((steps) => ({
        perform: async (work) => {
          const body = await steps.perform(work);
          if (body.ended !== null) return body;
          const libvirt = await work.inventory();
          const { dom } = await libvirt.call(procedures.domainLookupByUuid, { uuid: work.command.domain.uuid });
          await (await work.connection()).libvirt.close();
          await work.sleep(100);
          await libvirt.call(procedures.domainResume, { dom }).catch(() => {});
          return body;
        },
      })),
    },
  },
  "the source is given up when Perform has ended": {
    source: {
      steps: withStep((steps) => ({
        perform: async (work) => {
          const body = await steps.perform(work);
          const libvirt = await work.inventory();
          const dom = { ...work.command.domain, id: 1 };
          await libvirt.call(procedures.domainDestroyFlags, { dom, flags: 0 }).catch(() => {});
          return body;
        },
      })),
    },
  },
  "journal after instead of before": both({
    journal: (journal, clock) =>
      changed(journal, {
        append: async (id, entry) => {
          void clock.sleep(60).then(() => journal.append(id, entry));
        },
      }),
  }),
  "the receipt is not journalled": { destination: { journal: withoutMilestone("finished") } },
  "the decision of Finish is not journalled": { destination: { journal: withoutMilestone("finishing") } },
  "the strip is not journalled": { source: { journal: withoutMilestone("stripping") } },
  "no tombstone is kept": both({ journal: withoutTombstones }),
  // One of the two would do: what was acknowledged and not stored is told again as forgotten, and that is believed.
  "a report is acknowledged before it is stored, and what a host has forgotten is not believed": {
    functions: {
      decide: deafToForgotten,
      receive: async (ports, runner, session, message) => {
        if (message.type !== "report") return receive(ports, runner, session, message);
        void receive(ports, runner, session, message).catch(() => {});
        const acknowledged = { type: "acknowledged" as const, commandId: message.report.commandId };
        return { session, replies: [acknowledged], close: null };
      },
    },
  },
  "a command is not sent again": {
    functions: {
      ports: (ports) => ({ ...ports, migrations: { ...ports.migrations, migrationsOf: async () => [] } }),
    },
  },
  "autostart is left on at the source": {
    source: {
      steps: withStep((steps) => ({
        begin: async (work) => {
          const body = await steps.begin(work);
          if (!work.happened("autostartCleared")) return body;
          const libvirt = await work.inventory();
          const dom = { ...work.command.domain, id: 1 };
          await libvirt.call(procedures.domainSetAutostart, { dom, autostart: true });
          return body;
        },
      })),
    },
  },
  "Perform without an armed destination": {
    source: {
      peers: (peers) => ({
        ...peers,
        ask: async (to, request, patienceMs) =>
          request.type === "arm" ? { type: "armed" } : peers.ask(to, request, patienceMs),
      }),
    },
  },
  "the source's tree is not completed on the way back": {
    source: {
      steps: withStep({
        restore: async () => ({
          kind: "restore",
          tree: { snapshots: 0, checkpoints: 0, treeSha256: "0".repeat(64) },
          state: "running",
        }),
      }),
    },
  },
  "an end that could not be written down is let go all the same": {
    functions: {
      ports: (ports) => ({
        ...ports,
        chronicle: { ...ports.chronicle, append: (event) => ports.chronicle.append(event).catch(() => false) },
      }),
    },
  },
  "nothing is swept on the destination": {
    destination: { steps: withStep({ unstage: async () => ({ kind: "unstage", removed: true }) }) },
  },
};

const focus: Record<string, FaultSource> = {
  "no tombstone is kept": { type: "planned", faults: [{ at: "down destination command stage:1#1", kind: "stale" }] },
  // A late command must meet a newer decision before its host has forgotten the migration: a matter of milliseconds.
  "no epoch check": { type: "planned", faults: [{ at: "down source command export:1#1", kind: "cancel" }] },
};

export const mutations: Record<string, Removed> = Object.fromEntries(
  Object.entries(removed).map(([name, mutation]) => {
    const source = focus[name];
    return [name, source === undefined ? { mutation } : { mutation, source }];
  }),
);
