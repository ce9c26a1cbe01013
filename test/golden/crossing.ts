/**
 * The calls of the `crossing` vectors: a running domain with a branching snapshot tree moves between two daemons by the
 * steps of the design (export, stage, strip, begin, redefine, prepare, perform, finish, confirm, settle).
 */
import assert from "node:assert/strict";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { DomainState, DomainXmlFlag, MigrateFlag, SnapshotCreateFlag, SnapshotListFlag } from "#libvirt/constants";
import { isNoDomain } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures as p } from "#libvirt/procedures";
import { stringParam, ullongParam } from "#libvirt/typed-param";

const secure = 1;
const metadataOnly = 2;

async function snapshotsOf(connection: LibvirtConnection, dom: RemoteDomain) {
  const flags = SnapshotListFlag.TOPOLOGICAL;
  const { snapshots } = await connection.call(p.domainListAllSnapshots, { dom, needResults: true, flags });
  const entries = [];
  for (const snap of snapshots) {
    const { xml } = await connection.call(p.domainSnapshotGetXmlDesc, { snap, flags: secure });
    const { current } = await connection.call(p.domainSnapshotIsCurrent, { snap, flags: 0 });
    entries.push({ name: snap.name, xml, current });
  }
  return entries;
}

type Entries = Awaited<ReturnType<typeof snapshotsOf>>;

function byName(entries: Entries): Entries {
  return entries.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

async function redefine(connection: LibvirtConnection, dom: RemoteDomain, entries: Entries): Promise<void> {
  for (const { xml, current } of entries) {
    const flags = SnapshotCreateFlag.REDEFINE | (current ? SnapshotCreateFlag.CURRENT : 0);
    await connection.call(p.domainSnapshotCreateXml, { dom, xmlDesc: xml, flags });
  }
}

export async function recordCrossing(
  sockets: { readonly source: string; readonly destination: string },
  dom: RemoteDomain,
): Promise<void> {
  const source = await connectLibvirt({ socketPath: sockets.source });
  const destination = await connectLibvirt({ socketPath: sockets.destination });
  await source.onLifecycle(() => {});
  await source.onJobCompleted(() => {});
  await source.onMigrationIteration(() => {});
  await destination.onLifecycle(() => {});
  const create = (xmlDesc: string) => source.call(p.domainSnapshotCreateXml, { dom, xmlDesc, flags: 0 });
  await create("<domainsnapshot><name>s1</name></domainsnapshot>");
  await create("<domainsnapshot><name>s2</name></domainsnapshot>");
  await source.call(p.domainRevertToSnapshot, { snap: { name: "s1", dom }, flags: 0 });
  await create("<domainsnapshot><name>s3</name></domainsnapshot>");
  const before = await snapshotsOf(source, dom);
  assert.equal(before.length, 3);

  const xmlFlags = DomainXmlFlag.SECURE | DomainXmlFlag.INACTIVE | DomainXmlFlag.MIGRATABLE;
  const { xml: inactive } = await source.call(p.domainGetXmlDesc, { dom, flags: xmlFlags });
  const staged = (await destination.call(p.domainDefineXmlFlags, { xml: inactive, flags: 0 })).dom;
  await redefine(destination, staged, before);

  for (const { name } of before.toReversed()) {
    await source.call(p.domainSnapshotDelete, { snap: { name, dom }, flags: metadataOnly });
  }
  const { LIVE, PERSIST_DEST, UNDEFINE_SOURCE, UNSAFE } = MigrateFlag;
  const flags = LIVE | PERSIST_DEST | UNDEFINE_SOURCE | UNSAFE;
  const params = [stringParam("migrate_uri", "tcp://127.0.0.1"), ullongParam("bandwidth", 64)];
  const begun = await source.call(p.domainMigrateBegin3Params, { dom, params, flags });
  await redefine(source, dom, before);
  await source.call(p.domainMigrateSetMaxDowntime, { dom, downtime: 500, flags: 0 });
  await source.call(p.domainMigrateGetMaxDowntime, { dom, flags: 0 });

  const withXml = [...params, stringParam("destination_xml", begun.xml)];
  const prepare = { params: withXml, cookieIn: begun.cookieOut, flags };
  const prepared = await destination.call(p.domainMigratePrepare3Params, prepare);
  const performParams = prepared.uriOut === null ? params : [stringParam("migrate_uri", prepared.uriOut)];
  const perform = { dom, dconnuri: null, params: performParams, cookieIn: prepared.cookieOut, flags };
  const performing = source.call(p.domainMigratePerform3Params, perform);
  await source.call(p.domainGetJobStats, { dom, flags: 0 });
  await source.call(p.domainGetJobInfo, { dom });
  await source.call(p.domainGetControlInfo, { dom, flags: 0 });
  const performed = await performing;

  const finish = { params: [stringParam("destination_name", dom.name)], cookieIn: performed.cookieOut, flags };
  const finished = await destination.call(p.domainMigrateFinish3Params, { ...finish, cancelled: false });
  const confirm = { dom, params: [], cookieIn: finished.cookieOut, flags, cancelled: false };
  await source.call(p.domainMigrateConfirm3Params, confirm);

  const { state } = await destination.call(p.domainGetState, { dom: finished.dom, flags: 0 });
  assert.equal(state, DomainState.RUNNING);
  // libvirt lists siblings in any order: the tree is compared by name.
  assert.deepEqual(byName(await snapshotsOf(destination, finished.dom)), byName(before));
  await assert.rejects(source.call(p.domainLookupByUuid, { uuid: dom.uuid }), isNoDomain);
  const disk = { dom: finished.dom, path: "vda", flags: 0 };
  await destination.call(p.domainGetBlockInfo, disk);
  await destination.call(p.domainGetBlockJobInfo, disk);
  await destination.call(p.domainSuspend, { dom: finished.dom });
  await destination.call(p.domainResume, { dom: finished.dom });
  await destination.call(p.domainDestroyFlags, { dom: finished.dom, flags: 0 });
  await destination.call(p.domainUndefineFlags, { dom: finished.dom, flags: 2 });
  await source.close();
  await destination.close();
  const cookies = [begun.cookieOut, prepared.cookieOut, performed.cookieOut, finished.cookieOut];
  console.log(`crossed; cookies ${cookies.map((cookie) => cookie.byteLength).join(", ")} bytes`);
}
