/**
 * What the protocol rests on in libvirt, as one list of cases for two hosts: run on the simulated libvirt and on two real
 * daemons with real QEMU. What the simulation proves is worth as much as these.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import type { LibvirtConnection } from "#libvirt/client";
import {
  DomainState,
  ErrorCode,
  MigrateFlag,
  PausedReason,
  RunningReason,
  SnapshotCreateFlag,
  SnapshotDeleteFlag,
  SnapshotListFlag,
  UndefineFlag,
} from "#libvirt/constants";
import { LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures as p } from "#libvirt/procedures";
import { stringParam } from "#libvirt/typed-param";
import { jobOf } from "./libvirt-pair-job.ts";

export type PairSide = "source" | "destination";

export interface LibvirtPair {
  connect(side: PairSide): Promise<LibvirtConnection>;
  /** Defines a small domain on the source and lets it run. */
  boot(domain: { name: string; uuid: string }): Promise<RemoteDomain>;
  /** Only defines it. */
  define(side: PairSide, domain: { name: string; uuid: string }): Promise<RemoteDomain>;
  snapshotXml(domain: { name: string; uuid: string }, name: string, parent: string | null): Promise<string>;
  sleep(ms: number): Promise<void>;
}

const live = MigrateFlag.LIVE | MigrateFlag.PERSIST_DEST | MigrateFlag.UNDEFINE_SOURCE | MigrateFlag.UNSAFE;
const offline = MigrateFlag.OFFLINE | MigrateFlag.PERSIST_DEST | MigrateFlag.UNDEFINE_SOURCE;
const uri = "tcp://127.0.0.1";

async function refusal(work: Promise<unknown>): Promise<number> {
  try {
    await work;
  } catch (error) {
    assert.ok(error instanceof LibvirtError, String(error));
    return error.code;
  }
  return assert.fail("libvirt did not refuse");
}

let count = 0;
const fresh = () => {
  count += 1;
  return { name: `pair${count}`, uuid: randomUUID() };
};

const stateOf = async (libvirt: LibvirtConnection, dom: RemoteDomain) =>
  libvirt.call(p.domainGetState, { dom, flags: 0 });
const isAbsent = async (libvirt: LibvirtConnection, uuid: string) =>
  (await refusal(libvirt.call(p.domainLookupByUuid, { uuid }))) === ErrorCode.NO_DOMAIN;
const names = async (libvirt: LibvirtConnection, dom: RemoteDomain) => {
  const flags = SnapshotListFlag.METADATA | SnapshotListFlag.TOPOLOGICAL;
  const { snapshots } = await libvirt.call(p.domainListAllSnapshots, { dom, needResults: true, flags });
  return snapshots.map(({ name }) => name);
};

export function pairCases(start: () => LibvirtPair): void {
  const redefine = async (libvirt: LibvirtConnection, dom: RemoteDomain, name: string, parent: string | null) => {
    const flags = SnapshotCreateFlag.REDEFINE | SnapshotCreateFlag.CURRENT;
    const xmlDesc = await start().snapshotXml(dom, name, parent);
    return libvirt.call(p.domainSnapshotCreateXml, { dom, xmlDesc, flags });
  };
  const begin = (libvirt: LibvirtConnection, dom: RemoteDomain, flags: number = live) =>
    libvirt.call(p.domainMigrateBegin3Params, { dom, params: [], flags });
  const prepare = (libvirt: LibvirtConnection, begun: { xml: string; cookieOut: Uint8Array }, flags: number = live) =>
    libvirt.call(p.domainMigratePrepare3Params, {
      params: [
        stringParam("destination_xml", begun.xml),
        ...((flags & MigrateFlag.OFFLINE) === 0 ? [stringParam("migrate_uri", uri)] : []),
      ],
      cookieIn: begun.cookieOut,
      flags,
    });
  const perform = (
    libvirt: LibvirtConnection,
    dom: RemoteDomain,
    prepared: { cookieOut: Uint8Array; uriOut: string | null },
    flags: number = live,
  ) =>
    libvirt.call(p.domainMigratePerform3Params, {
      dom,
      dconnuri: null,
      params: prepared.uriOut === null ? [] : [stringParam("migrate_uri", prepared.uriOut)],
      cookieIn: prepared.cookieOut,
      flags,
    });
  const finish = (
    libvirt: LibvirtConnection,
    name: string,
    cookieIn: Uint8Array,
    cancelled: boolean,
    flags: number = live,
  ) =>
    libvirt.call(p.domainMigrateFinish3Params, {
      params: [stringParam("destination_name", name)],
      cookieIn,
      flags,
      cancelled,
    });
  const confirm = (
    libvirt: LibvirtConnection,
    dom: RemoteDomain,
    cookieIn: Uint8Array,
    cancelled: boolean,
    flags: number = live,
  ) => libvirt.call(p.domainMigrateConfirm3Params, { dom, params: [], cookieIn, flags, cancelled });
  const undefine = (libvirt: LibvirtConnection, dom: RemoteDomain) =>
    libvirt.call(p.domainUndefineFlags, { dom, flags: UndefineFlag.SNAPSHOTS_METADATA });

  /** Both ends of a migration whose Perform has ended. */
  const performed = async (flags: number = live) => {
    const pair = start();
    const [source, destination] = [await pair.connect("source"), await pair.connect("destination")];
    const domain = fresh();
    const dom = await pair.boot(domain);
    if ((flags & MigrateFlag.PAUSED) !== 0) await source.call(p.domainSuspend, { dom });
    const prepared = await prepare(destination, await begin(source, dom, flags), flags);
    const { cookieOut } = await perform(source, dom, prepared, flags);
    return { pair, source, destination, domain, dom, cookieC: cookieOut };
  };
  const end = async (libvirt: LibvirtConnection, dom: RemoteDomain) => {
    await libvirt.call(p.domainDestroyFlags, { dom, flags: 0 }).catch(() => {});
    await undefine(libvirt, dom).catch(() => {});
  };

  test("records: parents first, of this very domain, replaced by name; a deleted parent hands its children on", async () => {
    const pair = start();
    const libvirt = await pair.connect("source");
    const dom = await pair.define("source", fresh());
    assert.equal(await refusal(redefine(libvirt, dom, "child", "nobody")), ErrorCode.INVALID_ARG);
    const foreign = await pair.snapshotXml(fresh(), "foreign", null);
    const flags = SnapshotCreateFlag.REDEFINE;
    assert.equal(
      await refusal(libvirt.call(p.domainSnapshotCreateXml, { dom, xmlDesc: foreign, flags })),
      ErrorCode.INVALID_ARG,
    );
    await redefine(libvirt, dom, "one", null);
    await redefine(libvirt, dom, "two", "one");
    await redefine(libvirt, dom, "three", "two");
    await redefine(libvirt, dom, "three", "two");
    assert.deepEqual(await names(libvirt, dom), ["one", "two", "three"]);
    const snap = (name: string) => ({ name, dom });
    await libvirt.call(p.domainSnapshotDelete, { snap: snap("two"), flags: SnapshotDeleteFlag.METADATA_ONLY });
    const { xml } = await libvirt.call(p.domainSnapshotGetXmlDesc, { snap: snap("three"), flags: 0 });
    assert.match(xml, /<parent>\s*<name>one<\/name>\s*<\/parent>/);
    await libvirt.call(p.domainSnapshotDelete, { snap: snap("three"), flags: SnapshotDeleteFlag.METADATA_ONLY });
    assert.equal((await libvirt.call(p.domainSnapshotCurrent, { dom, flags: 0 })).snap.name, "one");
    assert.equal(
      await refusal(libvirt.call(p.domainSnapshotGetXmlDesc, { snap: snap("two"), flags: 0 })),
      ErrorCode.NO_DOMAIN_SNAPSHOT,
    );
    assert.equal(await refusal(libvirt.call(p.domainUndefineFlags, { dom, flags: 0 })), ErrorCode.OPERATION_INVALID);
    await undefine(libvirt, dom);
    assert.equal(await isAbsent(libvirt, dom.uuid), true);
  });

  test("Begin is refused with snapshots and only by them; without protection it leaves no job", async () => {
    const pair = start();
    const libvirt = await pair.connect("source");
    const dom = await pair.boot(fresh());
    await redefine(libvirt, dom, "one", null);
    assert.equal(await refusal(begin(libvirt, dom)), ErrorCode.OPERATION_INVALID);
    const snap = { name: "one", dom };
    await libvirt.call(p.domainSnapshotDelete, { snap, flags: SnapshotDeleteFlag.METADATA_ONLY });
    await begin(libvirt, dom);
    await redefine(libvirt, dom, "one", null);
    assert.equal(await jobOf(libvirt, dom), "none");
    assert.equal(await refusal(libvirt.call(p.domainAbortJob, { dom })), ErrorCode.OPERATION_INVALID);
    await end(libvirt, dom);
  });

  test("an incoming domain takes a staged definition over and goes with its connection, not the definition", async () => {
    const pair = start();
    const [source, watch] = [await pair.connect("source"), await pair.connect("destination")];
    const domain = fresh();
    const dom = await pair.boot(domain);
    const staged = await pair.define("destination", domain);
    await redefine(watch, staged, "one", null);
    const holder = await pair.connect("destination");
    await prepare(holder, await begin(source, dom));
    const { state, reason } = await stateOf(watch, staged);
    assert.equal(state, DomainState.PAUSED);
    assert.ok(reason === PausedReason.MIGRATION || reason === PausedReason.STARTING_UP, String(reason));
    assert.equal(await jobOf(watch, staged), "incoming");
    assert.deepEqual(await names(watch, staged), ["one"]);
    await holder.close();
    await pair.sleep(500);
    assert.equal((await stateOf(watch, staged)).state, DomainState.SHUTOFF);
    assert.deepEqual(await names(watch, staged), ["one"]);
    assert.equal(await jobOf(watch, staged), "none");
    await undefine(watch, staged);
    assert.equal((await stateOf(source, dom)).state, DomainState.RUNNING);
    await end(source, dom);
  });

  test("without a staged definition nothing of the incoming domain stays; Perform then fails and the source runs on", async () => {
    const pair = start();
    const [source, holder, watch] = [
      await pair.connect("source"),
      await pair.connect("destination"),
      await pair.connect("destination"),
    ];
    const dom = await pair.boot(fresh());
    const prepared = await prepare(holder, await begin(source, dom));
    await holder.close();
    await pair.sleep(500);
    assert.equal(await isAbsent(watch, dom.uuid), true);
    await refusal(perform(source, dom, prepared));
    assert.equal((await stateOf(source, dom)).state, DomainState.RUNNING);
    assert.equal(await refusal(confirm(source, dom, new Uint8Array(0), true)), ErrorCode.OPERATION_INVALID);
    await end(source, dom);
  });

  test("the whole way: the source stands still after Perform, and Confirm takes it away with its records", async () => {
    const { pair, source, destination, domain, dom, cookieC } = await performed();
    const there = (await destination.call(p.domainLookupByUuid, { uuid: domain.uuid })).dom;
    const before = await stateOf(source, dom);
    assert.deepEqual([before.state, before.reason], [DomainState.PAUSED, PausedReason.MIGRATION]);
    assert.equal((await stateOf(destination, there)).state, DomainState.PAUSED);
    assert.equal(await jobOf(source, dom), "outgoing");
    // An abort that comes too late is taken and does nothing.
    await source.call(p.domainAbortJob, { dom });
    await pair.sleep(300);
    assert.equal((await stateOf(source, dom)).state, DomainState.PAUSED);
    assert.equal((await stateOf(destination, there)).state, DomainState.PAUSED);
    assert.equal(await jobOf(source, dom), "outgoing");
    const { cookieOut } = await finish(destination, domain.name, cookieC, false);
    const after = await stateOf(destination, there);
    assert.deepEqual([after.state, after.reason], [DomainState.RUNNING, RunningReason.MIGRATED]);
    assert.equal((await destination.call(p.domainIsPersistent, { dom: there })).persistent, true);
    assert.equal(await refusal(finish(destination, domain.name, cookieC, false)), ErrorCode.OPERATION_INVALID);
    await confirm(source, dom, cookieOut, false);
    assert.equal(await isAbsent(source, domain.uuid), true);
    await end(destination, there);
  });

  test("Finish with cancelled ends the copy, is told by error 93, and Confirm gives the source back", async () => {
    const { source, destination, domain, dom, cookieC } = await performed();
    assert.equal(await refusal(finish(destination, domain.name, cookieC, true)), ErrorCode.MIGRATE_FINISH_OK);
    assert.equal(await isAbsent(destination, domain.uuid), true);
    assert.equal(await refusal(finish(destination, domain.name, cookieC, true)), ErrorCode.NO_DOMAIN);
    await confirm(source, dom, new Uint8Array(0), true);
    assert.equal((await stateOf(source, dom)).state, DomainState.RUNNING);
    assert.equal(await jobOf(source, dom), "none");
    await end(source, dom);
  });

  test("the source's connection lost after Perform: it stays paused without a job, and Confirm comes too late", async () => {
    const { pair, source, destination, domain, dom, cookieC } = await performed();
    await source.close();
    const again = await pair.connect("source");
    await pair.sleep(500);
    const { state, reason } = await stateOf(again, dom);
    assert.deepEqual([state, reason], [DomainState.PAUSED, PausedReason.MIGRATION]);
    assert.equal(await jobOf(again, dom), "none");
    assert.equal(await refusal(confirm(again, dom, new Uint8Array(0), true)), ErrorCode.OPERATION_INVALID);
    assert.equal(await refusal(finish(destination, domain.name, cookieC, true)), ErrorCode.MIGRATE_FINISH_OK);
    await again.call(p.domainResume, { dom });
    assert.equal((await stateOf(again, dom)).state, DomainState.RUNNING);
    await end(again, dom);
  });

  test("a guest that its owner paused: still theirs after Perform, with the job held, and after Confirm", async () => {
    const flags = live | MigrateFlag.PAUSED;
    const { source, destination, domain, dom, cookieC } = await performed(flags);
    const { state, reason } = await stateOf(source, dom);
    assert.deepEqual([state, reason], [DomainState.PAUSED, PausedReason.USER]);
    assert.equal(await jobOf(source, dom), "outgoing");
    assert.equal(await refusal(finish(destination, domain.name, cookieC, true, flags)), ErrorCode.MIGRATE_FINISH_OK);
    await confirm(source, dom, new Uint8Array(0), true, flags);
    assert.equal((await stateOf(source, dom)).state, DomainState.PAUSED);
    assert.equal(await jobOf(source, dom), "none");
    await end(source, dom);
  });

  test("offline: Prepare holds the definition until Finish, whatever becomes of its connection", async () => {
    const pair = start();
    const [source, holder, watch] = [
      await pair.connect("source"),
      await pair.connect("destination"),
      await pair.connect("destination"),
    ];
    const domain = fresh();
    const dom = await pair.define("source", domain);
    const staged = await pair.define("destination", domain);
    await prepare(holder, await begin(source, dom, offline), offline);
    assert.equal((await stateOf(watch, staged)).state, DomainState.SHUTOFF);
    assert.equal(await refusal(undefine(watch, staged)), ErrorCode.OPERATION_TIMEOUT);
    const cancelled = finish(holder, domain.name, new Uint8Array(0), true, offline);
    assert.equal(await refusal(cancelled), ErrorCode.MIGRATE_FINISH_OK);
    await undefine(watch, staged);
    assert.equal(await isAbsent(watch, domain.uuid), true);
    await undefine(source, dom);
  });
}
