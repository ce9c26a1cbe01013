/**
 * One host for unit tests of the steps: a fake libvirtd with one domain that a test changes at will, a journal and payloads
 * in memory. Snapshot records behave as libvirt's do where the steps depend on it: a parent must be there, and who deletes
 * the record of a parent hands its children to the one above.
 */
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import {
  DomainState,
  ErrorCode,
  ErrorDomain,
  JobOperation,
  JobType,
  PausedReason,
  SnapshotCreateFlag,
} from "#libvirt/constants";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures as p } from "#libvirt/procedures";
import type { Blob, BundleRef, HandedBlob } from "#protocol/blob";
import type { BundleEntry } from "#protocol/bundle";
import { writeBundle } from "#protocol/bundle-writer";
import type { Command, CommandKind, CommandOf, ReportBodyOf } from "#protocol/command";
import { bundleAccess } from "#shim/bundle-files";
import type { JournalEntry, Payloads, Peers, Step, Work } from "#shim/ports";
import { readMomentHead } from "#shim/snapshot-xml";
import { FakeLibvirtd, Refusal } from "./libvirtd.ts";
import { SilentPeers, sealOf } from "./treaty.ts";

export const domainOfHost: RemoteDomain = { name: "web", uuid: "11111111-2222-3333-4444-555555555555", id: 1 };

const xmlOf = (name: string, parent: string | null) =>
  `<domainsnapshot>\n  <name>${name}</name>\n${parent === null ? "" : `  <parent>\n    <name>${parent}</name>\n  </parent>\n`}` +
  "  <state>running</state>\n  <domain/>\n</domainsnapshot>\n";

export function snapshotEntry(name: string, parent: string | null, current = false): BundleEntry {
  return { kind: "snapshot", name, parent, current, xml: xmlOf(name, parent) };
}

export const domainXml = `<domain><name>${domainOfHost.name}</name><uuid>${domainOfHost.uuid}</uuid></domain>`;
const domainEntry: BundleEntry = { kind: "domain", name: "web", parent: null, current: false, xml: domainXml };

/** A bundle file with its reference. */
export async function bundleFile(path: string, entries: readonly BundleEntry[]): Promise<BundleRef> {
  const hasCurrent = entries.some(({ current }) => current);
  const counts = { snapshots: entries.length, checkpoints: 0, hasCurrent };
  const facts = await writeBundle({ path, counts, entries: [domainEntry, ...entries] });
  return { ...facts, key: `bundles/${facts.sha256}` };
}

export class StepHost {
  readonly fake: FakeLibvirtd;
  #libvirt: LibvirtConnection;
  peers: Peers = new SilentPeers();
  side: "source" | "destination" = "source";
  /** False: the domain is not known here. */
  present = true;
  state: number = DomainState.RUNNING;
  reason = 0;
  persistent = true;
  autostart = false;
  outgoing = false;
  incoming = false;
  /** False: the migration's connection has been lost before. */
  continuous = true;
  readonly records = new Map<string, { parent: string | null; xml: string }>();
  current: string | null = null;
  /** Calls that change something, in order. */
  readonly calls: string[] = [];
  readonly journal: JournalEntry[] = [];
  /** The bucket: a bundle's digest to its file; what is not there cannot be fetched. */
  readonly bundles = new Map<string, string>();
  /** Called before a change is made: where a test lets somebody else act. */
  onCall: (call: string) => void = () => {};
  /** What a payload is read as; throws what a broken bucket throws. */
  readBlob: (blob: Blob | HandedBlob) => Promise<Uint8Array> = async () => new Uint8Array(0);
  onSleep: () => void = () => {};
  /** Called before a bundle is fetched; throws what a bucket or a control plane that is away throws. */
  onDownload: () => void = () => {};
  #nowMs = Date.parse("2026-11-22T10:00:00.000Z");

  private constructor(fake: FakeLibvirtd, libvirt: LibvirtConnection) {
    this.fake = fake;
    this.#libvirt = libvirt;
    this.#answerDomain();
    this.#answerSnapshots();
  }

  static async start(): Promise<StepHost> {
    const fake = await FakeLibvirtd.start();
    return new StepHost(fake, await connectLibvirt({ socketPath: fake.socketPath }));
  }

  get libvirt(): LibvirtConnection {
    return this.#libvirt;
  }

  /** The migration's connection, made anew when it is gone: then it is not continuous any more. */
  async #connection() {
    if (!this.#libvirt.isOpen) {
      this.#libvirt = await connectLibvirt({ socketPath: this.fake.socketPath });
      this.continuous = false;
    }
    return { libvirt: this.#libvirt, continuous: this.continuous };
  }

  async stop(): Promise<void> {
    await this.#libvirt.close();
    await this.fake.stop();
  }

  load(entries: readonly BundleEntry[]): void {
    this.records.clear();
    this.current = entries.find(({ current }) => current)?.name ?? null;
    for (const { name, parent, xml } of entries) this.records.set(name, { parent, xml });
  }

  /** What `virsh snapshot-create` does: a child of the current one, and current. */
  take(name: string): void {
    const parent = this.current;
    this.records.set(name, { parent, xml: xmlOf(name, parent) });
    this.current = name;
  }

  milestones(): string[] {
    return this.journal.flatMap((entry) => (entry.type === "milestone" ? [entry.name] : []));
  }

  run<K extends CommandKind>(step: Step<K>, command: CommandOf<K>, resumed = false): Promise<ReportBodyOf<K>> {
    const history = [...this.journal];
    const at = () => new Date(this.#nowMs).toISOString();
    this.journal.push({ type: "intent", at: at(), command: command as Command });
    const work: Work<K> = {
      command,
      resumed,
      history,
      milestone: async (name, data = {}) => {
        this.journal.push({ type: "milestone", at: at(), commandId: command.id, name, data });
      },
      happened: (name) => this.milestones().includes(name),
      connection: () => this.#connection(),
      inventory: async () => (await this.#connection()).libvirt,
      payloads: this.#payloads(),
      bundles: bundleAccess,
      peers: this.peers,
      seal: sealOf(this.side),
      bundlePath: "/nowhere",
      migrationAddress: null,
      allowPaths: [],
      progress: () => {},
      sleep: async (ms) => {
        this.#nowMs += ms;
        this.onSleep();
        await new Promise((done) => setImmediate(done));
      },
      now: at,
    };
    return step(work);
  }

  #payloads(): Payloads {
    const blob: Blob = { in: "inline", base64: "", sha256: "a".repeat(64), bytes: 0 };
    return {
      read: (wanted) => this.readBlob(wanted),
      write: async () => blob,
      uploadBundle: async () => ({ key: "bundles/x" }),
      downloadBundle: async ({ sha256 }) => {
        this.onDownload();
        const path = this.bundles.get(sha256);
        if (path === undefined) throw new Error("the bucket was asked for a bundle that it does not have");
        return path;
      },
    };
  }

  #known(): RemoteDomain {
    if (this.present) return domainOfHost;
    throw new Refusal(ErrorCode.NO_DOMAIN, ErrorDomain.QEMU, "Domain not found");
  }

  /** Announces a change to the test, then makes it. */
  #change<T>(call: string, act: () => T): T {
    this.onCall(call);
    this.calls.push(call);
    this.#known();
    return act();
  }

  #answerDomain(): void {
    const { fake } = this;
    const refused = (text: string) => new Refusal(ErrorCode.OPERATION_INVALID, ErrorDomain.DOMAIN, text);
    const active = () => this.state !== DomainState.SHUTOFF;
    fake.answer(p.domainLookupByUuid, () => ({ dom: this.#known() }));
    fake.answer(p.domainLookupByName, () => ({ dom: this.#known() }));
    fake.answer(p.domainGetState, () => {
      this.#known();
      return { state: this.state, reason: this.reason };
    });
    fake.answer(p.domainIsActive, () => ({ active: active() }));
    fake.answer(p.domainIsPersistent, () => ({ persistent: this.persistent }));
    fake.answer(p.domainGetAutostart, () => ({ autostart: this.autostart }));
    fake.answer(p.domainSetAutostart, ({ autostart }) =>
      this.#change(`autostart ${autostart}`, () => {
        if (!this.persistent) throw refused("cannot set autostart for transient domain");
        this.autostart = autostart;
        return {};
      }),
    );
    fake.answer(p.domainGetJobStats, () => {
      if (this.incoming || !active()) throw refused("migration statistics are available only on the source host");
      if (!this.outgoing) return { type: JobType.NONE, params: [] };
      return {
        type: JobType.UNBOUNDED,
        params: [{ field: "operation", type: "int" as const, value: JobOperation.MIGRATION_OUT }],
      };
    });
    fake.answer(p.domainAbortJob, () =>
      this.#change("abort", () => {
        this.outgoing = false;
        return {};
      }),
    );
    fake.answer(p.domainResume, () =>
      this.#change("resume", () => {
        this.state = DomainState.RUNNING;
        return {};
      }),
    );
    fake.answer(p.domainDefineXmlFlags, () => {
      this.onCall("define");
      this.calls.push("define");
      this.present = true;
      this.state = DomainState.SHUTOFF;
      return { dom: domainOfHost };
    });
    fake.answer(p.domainUndefineFlags, () =>
      this.#change("undefine", () => {
        this.present = false;
        this.records.clear();
        return {};
      }),
    );
    fake.answer(p.domainMigratePrepare3Params, () =>
      this.#change("prepare", () => {
        this.incoming = true;
        this.pauseByMigration();
        return { cookieOut: new Uint8Array(0), uriOut: null };
      }),
    );
    fake.answer(p.domainMigrateFinish3Params, ({ cancelled }) =>
      this.#change(`finish${cancelled ? " cancelled" : ""}`, () => {
        this.incoming = false;
        this.state = cancelled ? DomainState.SHUTOFF : DomainState.RUNNING;
        this.reason = 0;
        if (!cancelled) return { dom: domainOfHost, cookieOut: new Uint8Array(0) };
        throw new Refusal(ErrorCode.MIGRATE_FINISH_OK, ErrorDomain.QEMU, "finished ok");
      }),
    );
    fake.answer(p.domainMigrateBegin3Params, () =>
      this.#change("begin", () => {
        if (this.records.size > 0) throw refused(`cannot migrate domain with ${this.records.size} snapshots`);
        return { cookieOut: new Uint8Array(0), xml: domainXml };
      }),
    );
  }

  /** As a domain shows that waits for a receipt. */
  pauseByMigration(): void {
    this.state = DomainState.PAUSED;
    this.reason = PausedReason.MIGRATION;
  }

  #answerSnapshots(): void {
    const { fake } = this;
    const dom = domainOfHost;
    const absent = () => new Refusal(ErrorCode.NO_DOMAIN_SNAPSHOT, ErrorDomain.DOMAIN_SNAPSHOT, "no such snapshot");
    fake.answer(p.domainListAllCheckpoints, () => ({ checkpoints: [], ret: 0 }));
    fake.answer(p.domainListAllSnapshots, () => {
      const snapshots = this.#topological().map((name) => ({ name, dom }));
      return { snapshots, ret: snapshots.length };
    });
    fake.answer(p.domainSnapshotCurrent, () => {
      if (this.current === null) throw absent();
      return { snap: { name: this.current, dom } };
    });
    fake.answer(p.domainSnapshotGetXmlDesc, ({ snap }) => {
      const record = this.records.get(snap.name);
      if (record === undefined) throw absent();
      return { xml: record.xml };
    });
    fake.answer(p.domainSnapshotDelete, ({ snap }) =>
      this.#change(`delete ${snap.name}`, () => {
        const gone = this.records.get(snap.name);
        if (gone === undefined) throw absent();
        for (const [name, record] of this.records)
          if (record.parent === snap.name)
            this.records.set(name, { parent: gone.parent, xml: xmlOf(name, gone.parent) });
        if (this.current === snap.name) this.current = gone.parent;
        this.records.delete(snap.name);
        return {};
      }),
    );
    fake.answer(p.domainSnapshotCreateXml, ({ xmlDesc, flags }) => {
      const { name, parent } = readMomentHead(xmlDesc);
      const makesCurrent = (flags & SnapshotCreateFlag.CURRENT) !== 0;
      return this.#change(`redefine ${name}${makesCurrent ? " current" : ""}`, () => {
        if (parent !== null && !this.records.has(parent))
          throw new Refusal(ErrorCode.INVALID_ARG, ErrorDomain.DOMAIN_SNAPSHOT, `parent ${parent} not found`);
        // libvirt writes what it has read in its own layout.
        this.records.set(name, { parent, xml: xmlOf(name, parent) });
        if (makesCurrent) this.current = name;
        return { snap: { name, dom } };
      });
    });
  }

  /** Parents first. */
  #topological(): string[] {
    const names: string[] = [];
    const add = (name: string) => {
      if (names.includes(name)) return;
      const parent = this.records.get(name)?.parent ?? null;
      if (parent !== null && this.records.has(parent)) add(parent);
      names.push(name);
    };
    for (const name of this.records.keys()) add(name);
    return names;
  }
}
