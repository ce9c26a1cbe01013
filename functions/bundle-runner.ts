/**
 * Runs the manual way: one export or restore of a bundle as one command under the domain's lock. The same rules as a
 * migration's: stored before it is pushed, redelivered until its report is stored, refused while the domain is busy.
 */
import type { BundleRef } from "#protocol/blob";
import type { Command, CommandKind, DomainRef, Report } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { stands } from "./bundle-presence.ts";
import type { BundleTask } from "./core/bundle-task.ts";
import { stepMsMax } from "./core/limits.ts";
import type { HostRef } from "./core/state.ts";
import type { Ports } from "./ports.ts";

export interface BundleRequest {
  id: string;
  kind: "export" | "restore";
  host: HostRef;
  domain: DomainRef;
  bundle: BundleRef | null;
}

export interface BundleRunner {
  /** Throws `Fault` `domain.busy`. */
  requestBundle(input: BundleRequest): Promise<BundleTask>;
  reported(hostId: string, report: Report): Promise<BundleTask | null>;
  pendingOf(hostId: string, id: string): Promise<Command[]>;
  /** Ends a task whose host stayed away; frees what an ended one held. */
  look(id: string, domainUuid: string): Promise<void>;
  /** True when the task's host may use this object now. */
  authorised(hostId: string, want: { migrationId: string; commandId: string; key: string | null }): Promise<boolean>;
}

/** Tasks and migrations share hosts' pointers and domains' locks; the id tells them apart. */
export const isBundleTask = (id: string): boolean => id.startsWith("b_");

export function createBundleRunner(ports: Ports): BundleRunner {
  const { clock, tasks, migrations, sockets, feed } = ports;

  const body = (task: BundleTask): Command | null => {
    if (task.pending === null) return null;
    const head = { id: task.pending.id, migrationId: task.id, epoch: 1, domain: task.domain };
    if (task.kind === "export") return { ...head, kind: "export" };
    return task.bundle === null ? null : { ...head, kind: "restoreBundle", bundle: task.bundle };
  };

  async function finish(task: BundleTask, fields: Partial<BundleTask>): Promise<BundleTask> {
    const ended: BundleTask = { ...task, ...fields, pending: null, endedAt: clock.now(), version: task.version + 1 };
    if ((await tasks.commit(ended)) === "conflict") return (await tasks.load(task.id)) ?? task;
    await release(ended);
    await feed.publish(task.id, { type: "changed", version: ended.version });
    return ended;
  }

  async function release(task: BundleTask): Promise<void> {
    await migrations.unpoint([task.host.id], task.id);
    await migrations.unlockDomain(task.domain.uuid, task.id);
  }

  return {
    async requestBundle(input) {
      const at = clock.now();
      const kind: CommandKind = input.kind === "export" ? "export" : "restoreBundle";
      const pending = {
        id: `${input.id}:${kind}:1`,
        kind,
        side: input.kind === "export" ? ("source" as const) : ("destination" as const),
        issuedAt: at,
        deadlineAt: new Date(Date.parse(at) + stepMsMax).toISOString(),
      };
      const task: BundleTask = {
        ...input,
        status: "running",
        pending,
        failure: null,
        version: 1,
        createdAt: at,
        endedAt: null,
      };
      const hosts = { source: input.host.id, destination: input.host.id };
      const lock = { domainUuid: input.domain.uuid, migrationId: input.id, ...hosts };
      // The lock first: by it the timer finds a task whose request died anywhere behind this line. Once more after the task
      // is there, because until then the timer takes the lock for nobody's and frees it.
      await migrations.lockDomain(lock);
      const known = (await tasks.create(task)) === "committed" ? task : ((await tasks.load(input.id)) ?? task);
      if (known.pending === null) {
        await release(known);
        return known;
      }
      if (!(await migrations.lockDomain(lock))) {
        const fault = new Fault({
          code: "domain.busy",
          cause: `Domain ${input.domain.name} is already being worked on.`,
          action: "Wait for it to end: vmferry migrations --active.",
          retry: "safe",
        });
        await finish(known, { status: "failed", failure: fault.toBody() });
        throw fault;
      }
      await migrations.point([input.host.id], input.id);
      const command = body(known);
      if (command !== null) await sockets.push(input.host.id, { type: "command", command });
      return known;
    },

    async reported(hostId, report) {
      const task = await tasks.load(report.migrationId);
      if (task === null || task.pending?.id !== report.commandId || task.host.id !== hostId) return task;
      const { result } = report;
      if (!result.ok) return finish(task, { status: "failed", failure: result.fault });
      if (result.body.kind === "export") {
        await stands(ports, "The bundle", result.body.bundle);
        return finish(task, { status: "completed", bundle: result.body.bundle });
      }
      return finish(task, { status: "completed" });
    },

    async pendingOf(hostId, id) {
      const task = await tasks.load(id);
      // Its end and the timer's look may have overtaken each other: what has ended is pointed at by nobody.
      if (task?.pending === null) await migrations.unpoint([hostId], id);
      const command = task !== null && task.host.id === hostId ? body(task) : null;
      return command === null ? [] : [command];
    },

    async look(id, domainUuid) {
      const task = await tasks.load(id);
      if (task === null) return migrations.unlockDomain(domainUuid, id);
      if (task.pending === null) return release(task);
      // Its request may have died before the host was told of it; from now on its heartbeats find it.
      if (Date.parse(task.pending.deadlineAt) > Date.parse(clock.now())) return migrations.point([task.host.id], id);
      await finish(task, {
        status: "failed",
        failure: {
          code: "step.overdue",
          cause: `Host ${task.host.name} did not report in time.`,
          action: `Look at the shim on ${task.host.name}, then try again.`,
          retry: "safe",
        },
      });
    },

    async authorised(hostId, want) {
      const task = await tasks.load(want.migrationId);
      if (task === null || task.host.id !== hostId || task.pending?.id !== want.commandId) return false;
      return want.key === null || want.key === task.bundle?.key;
    },
  };
}
