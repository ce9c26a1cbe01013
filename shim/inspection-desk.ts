/**
 * Inspections: commands that change nothing. They are answered like any other (repeated until acknowledged, a repeated id
 * from memory, two bodies refused) but leave no journal, because after a restart to look again is as good as to remember.
 * Queries are the same work without an id, and are answered once.
 */
import type { Command, CommandOf, DomainRef, Report } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { Answer, DomainDescription, Query } from "#protocol/message";
import type { Peer } from "#protocol/ticket";
import { runStep, sendable } from "./execution.ts";
import type { ExecutorParts } from "./executor.ts";
import type { Slots } from "./slots.ts";

/** Inspections remembered until acknowledged: each was asked by the functions, whose patience with one is a minute. */
const rememberedMax = 256;

type Inspection = CommandOf<"inspectSource" | "inspectDestination">;
type Parts = Pick<
  ExecutorParts,
  | "steps"
  | "inventory"
  | "payloadsFor"
  | "bundles"
  | "peers"
  | "seal"
  | "migrationAddress"
  | "allowPaths"
  | "send"
  | "clock"
  | "log"
>;

export class InspectionDesk {
  readonly #parts: Parts;
  readonly #slots: Slots;
  readonly #commands = new Map<string, Inspection>();
  readonly #reports = new Map<string, Report>();
  readonly #running = new Set<Promise<void>>();

  constructor(parts: Parts, slots: Slots) {
    this.#parts = parts;
    this.#slots = slots;
  }

  known(commandId: string): Command | undefined {
    return this.#commands.get(commandId);
  }

  report(commandId: string): Report | undefined {
    return this.#reports.get(commandId);
  }

  unacknowledged(): Report[] {
    return [...this.#reports.values()];
  }

  acknowledged(commandId: string): void {
    if (this.#reports.delete(commandId)) this.#commands.delete(commandId);
  }

  async idle(): Promise<void> {
    await Promise.all(this.#running);
  }

  /** A command that is not known yet. */
  take(command: Inspection): void {
    this.#commands.set(command.id, command);
    for (const oldest of this.#commands.keys()) {
      if (this.#commands.size <= rememberedMax) break;
      this.#commands.delete(oldest);
      this.#reports.delete(oldest);
    }
    const run = this.#report(command).finally(() => this.#running.delete(run));
    this.#running.add(run);
  }

  async #report(command: Inspection): Promise<void> {
    const { clock, send } = this.#parts;
    const fromMs = clock.monotonicMs();
    const result = await inspect(this.#parts, this.#slots, command);
    const { id, migrationId, epoch } = command;
    const ms = Math.max(0, Math.round(clock.monotonicMs() - fromMs));
    const report = sendable({ commandId: id, migrationId, epoch, ms, result });
    if (this.#commands.has(id)) this.#reports.set(id, report);
    send({ type: "report", report });
  }
}

async function inspect(parts: Parts, slots: Slots, command: Inspection): Promise<Report["result"]> {
  const release = await slots.take();
  try {
    return await runStep(
      parts.steps,
      command,
      {
        resumed: false,
        history: [],
        // Nothing is changed, so there is nothing to recover.
        milestone: async () => {},
        happened: () => false,
        connection: async () => ({ libvirt: await parts.inventory(), continuous: true }),
        inventory: parts.inventory,
        payloads: parts.payloadsFor(command),
        bundles: parts.bundles,
        peers: parts.peers,
        seal: parts.seal,
        bundlePath: parts.bundles.path(command.migrationId),
        migrationAddress: parts.migrationAddress,
        allowPaths: parts.allowPaths,
        progress: () => {},
        clock: parts.clock,
      },
      parts.log,
    );
  } finally {
    release();
  }
}

/** Steps take commands, so a query is given the id of one that the functions never issue. */
const queryMigrationId = `m_${"0".repeat(26)}`;

/** Answers a query. Never rejects. */
export async function answerQuery(
  parts: Parts,
  slots: Slots,
  query: Query,
  describe: (domain: DomainRef) => Promise<DomainDescription>,
): Promise<Answer> {
  if (query.kind === "reachPeer") return reachPeer(parts, query.peer);
  if (query.kind === "describeDomain") {
    try {
      return { ok: true, body: await describe(query.domain) };
    } catch (error) {
      if (error instanceof Fault) return { ok: false, fault: error.toBody() };
      parts.log.write("error", "a description failed", {
        error: error instanceof Error ? error.message : String(error),
      });
      return {
        ok: false,
        fault: {
          code: "internal",
          cause: "The shim could not describe the domain by an error of its own; its log on that host has the text.",
          action: "Look at the shim's log (journalctl -u vmferry-shim) and report it as a defect.",
          retry: "person",
        },
      };
    }
  }
  const head = { id: `${queryMigrationId}:${query.kind}:1`, migrationId: queryMigrationId, epoch: 1 };
  return inspect(parts, slots, { ...head, ...query });
}

/** A way to another shim takes a round trip or two; one that takes longer is not one to depend on. */
const reachMsMax = 4_000;

async function reachPeer({ peers }: Parts, peer: Peer): Promise<Answer> {
  try {
    const reply = await peers.ask(peer, { type: "greet" }, reachMsMax);
    return reply.type === "refused" ? { ok: false, fault: reply.fault } : { ok: true, body: { kind: "reachPeer" } };
  } catch (error) {
    if (error instanceof Fault) return { ok: false, fault: error.toBody() };
    throw error;
  }
}
