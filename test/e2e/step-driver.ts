/**
 * Calls the steps of a migration in order, with the smallest possible world around them: a journal in memory, payloads in
 * local files, one libvirt connection for each side. What the executor and the functions do in earnest is left out, so a
 * failing test here speaks of the steps alone.
 */
import { createHash } from "node:crypto";
import { copyFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Host } from "#lab/host";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import type { Blob, BundleRef, HandedBlob } from "#protocol/blob";
import type { Command, CommandKind, CommandOf, MigrateOptions, Receipt, ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { Progress } from "#protocol/message";
import { bundleAccess } from "#shim/bundle-files";
import type { JournalEntry, Payloads, Peers, Seal, Work } from "#shim/ports";
import type { StepFault } from "#shim/step-fault";
import { steps } from "#shim/steps";
import { SilentPeers, sealOf, signedReceipt, ticketFor } from "#test/fake/treaty";

export const live: MigrateOptions = { offline: false, unsafe: true, autoConverge: false, bandwidthMiBps: null };
export const offline: MigrateOptions = { offline: true, unsafe: false, autoConverge: false, bandwidthMiBps: null };

/** Bytes of a command, digested and kept in memory: the bucket of these tests. */
class MemoryPayloads implements Payloads {
  readonly #blobs = new Map<string, Uint8Array>();
  readonly #dir: string;
  readonly #own: string;
  constructor(dir: string, own: string, blobs: Map<string, Uint8Array>) {
    this.#dir = dir;
    this.#own = own;
    this.#blobs = blobs;
  }

  read(blob: Blob | HandedBlob): Promise<Uint8Array> {
    const bytes = this.#blobs.get(blob.sha256);
    return bytes === undefined ? Promise.reject(new Error(`no payload ${blob.sha256}`)) : Promise.resolve(bytes);
  }

  write(bytes: Uint8Array): Promise<Blob> {
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    this.#blobs.set(sha256, bytes);
    return Promise.resolve({ in: "bucket", key: `payloads/${sha256}`, sha256, bytes: bytes.byteLength });
  }

  async uploadBundle(file: { path: string; sha256: string }): Promise<{ key: string }> {
    await copyFile(file.path, join(this.#dir, file.sha256));
    return { key: `bundles/${file.sha256}` };
  }

  async downloadBundle(ref: BundleRef): Promise<string> {
    const stored = await readFile(join(this.#dir, ref.sha256));
    if (createHash("sha256").update(stored).digest("hex") !== ref.sha256) throw new Error("altered");
    await copyFile(join(this.#dir, ref.sha256), this.#own);
    return this.#own;
  }
}

/** One side of a migration: a host's shim as far as the steps can see. */
export class Side {
  readonly host: Host;
  readonly journal: JournalEntry[] = [];
  readonly progress: Progress[] = [];
  migrationAddress: string | null;
  /** Called when a milestone is on disk: where a test lets the world break. */
  onMilestone: (name: string) => Promise<void> = () => Promise.resolve();
  peers: Peers = new SilentPeers();
  readonly seal: Seal;
  #connection: LibvirtConnection | undefined;
  #inventory: LibvirtConnection | undefined;
  #continuous = true;
  readonly #payloads: Payloads;
  readonly #bundlePath: string;

  constructor(host: Host, side: "source" | "destination", dir: string, blobs: Map<string, Uint8Array>) {
    this.host = host;
    this.seal = sealOf(side);
    this.migrationAddress = host.migrationAddress;
    this.#bundlePath = join(dir, `${host.name}.bundle`);
    this.#payloads = new MemoryPayloads(dir, this.#bundlePath, blobs);
  }

  /** The migration's own connection, made anew when it is gone: then it is not continuous any more. */
  async connection(): Promise<LibvirtConnection> {
    if (this.#connection?.isOpen === true) return this.#connection;
    if (this.#connection !== undefined) this.#continuous = false;
    this.#connection = await connectLibvirt({ socketPath: this.host.socket, keepalive: true });
    return this.#connection;
  }

  async inventory(): Promise<LibvirtConnection> {
    if (this.#inventory?.isOpen !== true)
      this.#inventory = await connectLibvirt({ socketPath: this.host.socket, keepalive: true });
    return this.#inventory;
  }

  /** Cuts the migration's connection, as a crash of the shim does. */
  drop(): void {
    this.#connection?.destroy();
  }

  async close(): Promise<void> {
    await this.#connection?.close();
    await this.#inventory?.close();
  }

  /** The bytes behind a payload. */
  payload(blob: Blob | HandedBlob): Promise<Uint8Array> {
    return this.#payloads.read(blob);
  }

  /** Puts a bundle of the test's own making into the bucket. */
  putBundle(path: string, sha256: string): Promise<{ key: string }> {
    return this.#payloads.uploadBundle({ path, sha256, bytes: 0 });
  }

  milestones(): string[] {
    return this.journal.flatMap((entry) => (entry.type === "milestone" ? [entry.name] : []));
  }

  async run<K extends CommandKind>(command: CommandOf<K>, resumed = false): Promise<ReportBodyOf<K>> {
    const at = () => new Date().toISOString();
    const history = [...this.journal];
    this.journal.push({ type: "intent", at: at(), command: command as Command });
    const work: Work<K> = {
      command,
      resumed,
      history,
      milestone: (name, data = {}) => {
        this.journal.push({ type: "milestone", at: at(), commandId: command.id, name, data });
        return this.onMilestone(name);
      },
      happened: (name) => this.milestones().includes(name),
      connection: async () => {
        const libvirt = await this.connection();
        return { libvirt, continuous: this.#continuous };
      },
      inventory: () => this.inventory(),
      payloads: this.#payloads,
      bundles: bundleAccess,
      peers: this.peers,
      seal: this.seal,
      bundlePath: this.#bundlePath,
      migrationAddress: this.migrationAddress,
      allowPaths: [],
      progress: (progress) => this.progress.push(progress),
      sleep: (ms) => sleep(ms),
      now: at,
    };
    const step = steps[command.kind] as (work: Work<K>) => Promise<ReportBodyOf<K>>;
    return step(work);
  }
}

/** A migration driven by hand: every method is one command, and remembers what the next one needs. */
export class Crossing {
  readonly source: Side;
  readonly destination: Side;
  readonly domain: { uuid: string; name: string };
  readonly options: MigrateOptions;
  /** Holds the bundles of both sides and of the bucket. */
  readonly dir: string;
  bundle: BundleRef | null = null;
  began: ReportBodyOf<"begin"> | undefined;
  prepared: ReportBodyOf<"prepare"> | undefined;
  performed: ReportBodyOf<"perform"> | undefined;
  finished: ReportBodyOf<"finish"> | undefined;
  #attempt = 0;

  private constructor(
    source: Side,
    destination: Side,
    domain: { uuid: string; name: string },
    options: MigrateOptions,
    dir: string,
  ) {
    this.source = source;
    this.destination = destination;
    this.domain = domain;
    this.options = options;
    this.dir = dir;
  }

  static async start(
    hosts: { source: Host; destination: Host },
    domain: { uuid: string; name: string },
    dir: string,
    options: MigrateOptions = live,
  ): Promise<Crossing> {
    await mkdir(dir, { recursive: true });
    const blobs = new Map<string, Uint8Array>();
    const { uuid, name } = domain;
    const sides = [
      new Side(hosts.source, "source", dir, blobs),
      new Side(hosts.destination, "destination", dir, blobs),
    ] as const;
    return new Crossing(sides[0], sides[1], { uuid, name }, options, dir);
  }

  head<K extends CommandKind>(kind: K) {
    this.#attempt += 1;
    const migrationId = "m_01HZZZZZZZZZZZZZZZZZZZZZZZ";
    return { id: `${migrationId}:${kind}:${this.#attempt}`, migrationId, epoch: 1, domain: this.domain, kind };
  }

  async inspect() {
    const source = await this.source.run<"inspectSource">(this.head("inspectSource"));
    const command = { ...this.head("inspectDestination"), facts: source.facts };
    return { source, destination: await this.destination.run<"inspectDestination">(command) };
  }

  async export() {
    this.bundle = (await this.source.run<"export">(this.head("export"))).bundle;
    return this.bundle;
  }

  stage() {
    return this.destination.run<"stage">({ ...this.head("stage"), bundle: required(this.bundle) });
  }

  async begin(resumed = false) {
    const { bundle, options } = this;
    this.began = await this.source.run<"begin">({ ...this.head("begin"), bundle, options }, resumed);
    return this.began;
  }

  async prepare() {
    const { cookie, xml, flags } = required(this.began);
    const command = { ...this.head("prepare"), cookie, xml, flags, options: this.options };
    this.prepared = await this.destination.run<"prepare">(command);
    return this.prepared;
  }

  async perform(resumed = false) {
    const { cookie, uri } = required(this.prepared);
    const { bundle, options } = this;
    const { flags } = required(this.began);
    const untold = { ...this.head("perform"), bundle, cookie, uri, options, flags };
    const command = { ...untold, ticket: ticketFor(untold) };
    this.performed = await this.source.run<"perform">(command, resumed);
    return this.performed;
  }

  abort() {
    return this.source.run<"abort">(this.head("abort"));
  }

  async finish(cancelled: boolean, resumed = false) {
    const { flags } = required(this.began);
    const cookie = this.performed?.cookie ?? null;
    const command = { ...this.head("finish"), cookie, cancelled, options: this.options, flags };
    this.finished = await this.destination.run<"finish">(command, resumed);
    return this.finished;
  }

  confirm(receipt: Receipt = required(this.finished).receipt) {
    const { flags } = required(this.began);
    const cookie = this.finished?.cookie ?? null;
    const head = this.head("confirm");
    const signed = receipt.signature === undefined ? signedReceipt(receipt, head) : receipt;
    const told = { ...head, cookie, receipt: signed, options: this.options, flags };
    const ticket = ticketFor({ ...told, cookie: (this.prepared ?? required(this.began)).cookie });
    return this.source.run<"confirm">({ ...told, ticket });
  }

  settle(autostart = false) {
    const command = { ...this.head("settle"), bundle: this.bundle, autostart, offline: this.options.offline };
    return this.destination.run<"settle">(command);
  }

  restore(autostart = false) {
    return this.source.run<"restore">({ ...this.head("restore"), bundle: this.bundle, autostart });
  }

  unstage() {
    return this.destination.run<"unstage">({ ...this.head("unstage"), bundle: this.bundle });
  }

  /** All steps in order, as a migration that meets no fault. */
  async all(autostart = false) {
    await this.export();
    await this.stage();
    await this.begin();
    await this.prepare();
    if (!this.options.offline) await this.perform();
    await this.finish(false);
    await this.confirm();
    return this.settle(autostart);
  }

  async close(): Promise<void> {
    await this.source.close();
    await this.destination.close();
  }
}

export function required<T>(value: T | null | undefined): T {
  if (value === null || value === undefined) throw new Error("a step before this one is missing");
  return value;
}

/** The fault that `act` ends with; anything else fails the test. */
export async function faultFrom(act: () => Promise<unknown>): Promise<Fault | StepFault> {
  try {
    await act();
  } catch (error) {
    if (error instanceof Fault) return error;
    throw error;
  }
  throw new Error("no fault came");
}
