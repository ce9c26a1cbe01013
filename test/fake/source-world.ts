/**
 * A source for tests of the ticket: a whole executor over a real journal, the real Perform and Confirm over a fake libvirtd,
 * and a destination whose every answer is the test's.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DomainState } from "#libvirt/constants";
import { procedures as p } from "#libvirt/procedures";
import type { CommandKind, CommandOf, Receipt, Report } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import { confirm } from "#shim/confirm";
import { HandOverWatch, type HandOverWatchParts } from "#shim/hand-over-watch";
import { perform } from "#shim/perform";
import type { Peers, Step, Work } from "#shim/ports";
import { id, make, Process, processes } from "./shim-process.ts";
import { StepHost } from "./step-host.ts";
import { sealOf, signedReceipt, ticketFor } from "./treaty.ts";

export const plainPerform = make("perform") as CommandOf<"perform">;
export const ticket = ticketFor(plainPerform);
export const performing: CommandOf<"perform"> = { ...plainPerform, ticket };
export const cookieC = Buffer.from("cookie C");
export const performId = `${id}:perform:1`;
export const ticketConfirmId = `${id}:ticketConfirm:1`;

export const bareReceipt = (outcome: Receipt["outcome"], evidence: Receipt["evidence"] = "finish") =>
  ({ outcome, evidence, at: "2026-11-22T10:00:01.000Z" }) as const;
export const finished = (outcome: Receipt["outcome"]): PeerReply => ({
  type: "finished",
  receipt: signedReceipt(bareReceipt(outcome), plainPerform),
  cookie: null,
  fault: null,
});
export const refused = (code: "destination.lost" | "epoch.stale" | "shim.restarted"): PeerReply => ({
  type: "refused",
  fault: { code, cause: "No.", action: "Wait.", retry: "safe" },
});
export const unreachable = () => new Fault({ code: "peer.unreachable", cause: "Cut.", action: "Wait.", retry: "safe" });

/** The functions' relay of a receipt. */
export const confirming = (receipt: Receipt, fields: Partial<CommandOf<"confirm">> = {}): CommandOf<"confirm"> => ({
  ...(make("confirm") as CommandOf<"confirm">),
  ticket,
  receipt,
  ...fields,
});

export const tick = () => new Promise<void>((done) => setImmediate(done));
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await tick();
}

/** One round of the watch, to the end of what it began. */
export async function lookOnce(process: Process, watch: HandOverWatch): Promise<void> {
  await watch.round();
  await process.executor.idle();
}

export const milestones = async (process: Process) =>
  (await process.entries()).flatMap((entry) =>
    entry.type === "milestone" && entry.name !== "connected" ? [entry.name] : [],
  );
export function lastReport(process: Process, commandId: string): Report {
  const report = process.reports(commandId).at(-1);
  assert.ok(report, `no report of ${commandId}`);
  return report;
}
export const failureOf = (report: Report) =>
  report.result.ok ? null : [report.result.fault.code, report.result.sourceState];
export function endedOf({ result }: Report) {
  assert.ok(result.ok && result.body.kind === "perform", JSON.stringify(result));
  return result.body.ended;
}

/** The destination as the source sees it; at first it arms and cannot be reached after. */
class ScriptedPeers implements Peers {
  readonly asked: PeerRequest[] = [];
  arm: () => PeerReply | Promise<PeerReply> = () => ({ type: "armed" });
  handOver: () => PeerReply | Promise<PeerReply> = () => {
    throw unreachable();
  };
  async ask(_: unknown, request: PeerRequest): Promise<PeerReply> {
    this.asked.push(request);
    return request.type === "arm" ? this.arm() : this.handOver();
  }
  hold(): () => void {
    return () => {};
  }
  get handOvers() {
    return this.asked.flatMap((request) => (request.type === "handOver" ? [request] : []));
  }
}

export class SourceWorld {
  readonly host: StepHost;
  readonly peers = new ScriptedPeers();
  readonly #state: string;
  nowMs = Date.parse("2026-11-22T10:00:00.000Z");
  /** What Perform3 does. */
  perform3: () => void | Promise<void>;

  private constructor(host: StepHost, state: string) {
    this.host = host;
    this.#state = state;
    this.perform3 = () => host.pauseByMigration();
    host.fake.answer(p.domainMigratePerform3Params, async () => {
      host.calls.push("perform");
      await this.perform3();
      return { cookieOut: cookieC };
    });
    host.fake.answer(p.domainMigrateConfirm3Params, ({ cancelled }) => {
      host.calls.push(`confirm${cancelled ? " cancelled" : ""}`);
      if (cancelled) host.state = DomainState.RUNNING;
      else host.present = false;
      host.reason = 0;
      return {};
    });
    host.fake.answer(p.domainDestroyFlags, () => {
      host.calls.push("destroy");
      host.state = DomainState.SHUTOFF;
      return {};
    });
  }

  static async start(): Promise<SourceWorld> {
    return new SourceWorld(await StepHost.start(), await mkdtemp(join(tmpdir(), "vmferry-source-")));
  }

  async stop(): Promise<void> {
    for (const process of processes.splice(0)) await process.crash();
    await this.host.stop();
    await rm(this.#state, { recursive: true, force: true });
  }

  /** A shim with the real steps; after a milestone of that name it dies. */
  async shim(dieAfter: string | null = null): Promise<[Process, HandOverWatch]> {
    const { host, peers } = this;
    const real =
      <K extends CommandKind>(step: Step<K>): Step<K> =>
      (work: Work<K>) =>
        step({
          ...work,
          peers,
          connection: async () => ({ libvirt: host.libvirt, continuous: (await work.connection()).continuous }),
          inventory: async () => host.libvirt,
          payloads: { ...work.payloads, read: async () => new Uint8Array(0), write: async (bytes) => inline(bytes) },
          sleep: async (ms) => {
            this.nowMs += ms;
            await tick();
          },
          now: () => new Date(this.nowMs).toISOString(),
          milestone: async (name, data) => {
            await work.milestone(name, data);
            if (name !== dieAfter) return;
            await process.crash();
            await new Promise(() => {});
          },
        });
    const process: Process = await Process.start(this.#state, { perform: real(perform), confirm: real(confirm) });
    return [process, this.watch(process.executor)];
  }

  watch(executor: HandOverWatchParts["executor"]): HandOverWatch {
    return new HandOverWatch({
      executor,
      peers: this.peers,
      seal: sealOf("source"),
      clock: { now: () => "", monotonicMs: () => this.nowMs, sleep: async () => {}, random: () => 0 },
      log: { write() {} },
      signal: new AbortController().signal,
    });
  }

  /** Performed, and the destination gave no statement. */
  async parted(): Promise<[Process, HandOverWatch]> {
    const [process, watch] = await this.shim();
    await process.run(performing);
    assert.equal(endedOf(lastReport(process, performId)), null);
    assert.equal(this.host.state, DomainState.PAUSED);
    return [process, watch];
  }
}

function inline(bytes: Uint8Array) {
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  return { in: "inline", base64: Buffer.from(bytes).toString("base64"), sha256, bytes: bytes.byteLength } as const;
}
