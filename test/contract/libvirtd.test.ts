/**
 * One list of cases for the libvirt port, run on the fake host and on a real libvirtd. What holds for one must hold for
 * the other, or tests on the fake prove nothing.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { type ConnectOptions, connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import {
  DomainState,
  ErrorCode,
  ErrorDomain,
  ErrorLevel,
  Feature,
  LifecycleEvent,
  SnapshotCreateFlag,
  SnapshotDeleteFlag,
  SnapshotListFlag,
  SnapshotXmlFlag,
  UndefineFlag,
} from "#libvirt/constants";
import { isNoDomain, isNoSnapshot, LibvirtClosedError, LibvirtError } from "#libvirt/error";
import { pingFrame, pongFrame } from "#libvirt/keepalive";
import { procedures as p } from "#libvirt/procedures";
import { FakeHost } from "#test/fake/libvirtd-host";
import { startRelay } from "#test/golden/relay";
import { libvirtdMissing, startLibvirtd } from "./libvirtd-daemon.ts";

type Host = { readonly socketPath: string; stop(): Promise<void> };

function domainXml(name: string, uuid: string, metadata = ""): string {
  return (
    `<domain type='qemu'><name>${name}</name><uuid>${uuid}</uuid>${metadata}<memory unit='MiB'>32</memory>` +
    "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
  );
}

function snapshotXml(name: string, parent: string | undefined, domain: string): string {
  const above = parent === undefined ? "" : `<parent><name>${parent}</name></parent>`;
  return (
    `<domainsnapshot><name>${name}</name>${above}<creationTime>1700000000</creationTime><state>shutoff</state>` +
    `<memory snapshot='no'/><disks/>${domain}</domainsnapshot>`
  );
}

/** libvirt's refusal of `work`. */
async function refusal(work: Promise<unknown>): Promise<LibvirtError> {
  try {
    await work;
  } catch (error) {
    assert.ok(error instanceof LibvirtError, String(error));
    return error;
  }
  return assert.fail("libvirt did not refuse");
}

function contract(start: () => Promise<Host>): void {
  let host: Host;
  const open: LibvirtConnection[] = [];
  before(async () => {
    host = await start();
  });
  after(async () => {
    for (const connection of open) await connection.close();
    await host.stop();
  });
  const connect = async (options: Partial<ConnectOptions> = {}): Promise<LibvirtConnection> => {
    const connection = await connectLibvirt({ socketPath: host.socketPath, ...options });
    open.push(connection);
    return connection;
  };

  test("facts about the host, read-only", async () => {
    const connection = await connect({ readOnly: true });
    const { libVer } = await connection.call(p.connectGetLibVersion, {});
    assert.ok(libVer >= 9_000_000);
    assert.ok((await connection.call(p.connectGetVersion, {})).hvVer >= 1_000_000);
    assert.equal((await connection.call(p.connectGetType, {})).type, "QEMU");
    assert.equal((await connection.call(p.connectGetHostname, {})).hostname, "contract");
    assert.match((await connection.call(p.connectGetCapabilities, {})).capabilities, /<capabilities>/);
  });

  for (const name of ["MIGRATION_V3", "TYPED_PARAM_STRING", "MIGRATION_OFFLINE", "MIGRATION_PARAMS"] as const) {
    test(`feature ${Feature[name]} ${name}`, async () => {
      const connection = await connect();
      const { supported } = await connection.call(p.connectSupportsFeature, { feature: Feature[name] });
      assert.equal(supported, true);
    });
  }

  test("read-only refuses to change anything, by code", async () => {
    const connection = await connect({ readOnly: true });
    const xml = domainXml("forbidden", randomUUID());
    const error = await refusal(connection.call(p.domainDefineXmlFlags, { xml, flags: 0 }));
    assert.equal(error.code, ErrorCode.OPERATION_DENIED);
    assert.match(error.message, /read only access prevents virDomainDefineXMLFlags/);
  });

  test("an unknown domain: code, domain, level and message as libvirt said them", async () => {
    const connection = await connect();
    const uuid = randomUUID();
    const byName = await refusal(connection.call(p.domainLookupByName, { name: "absent" }));
    const byUuid = await refusal(connection.call(p.domainLookupByUuid, { uuid }));
    for (const error of [byName, byUuid]) {
      assert.ok(isNoDomain(error));
      assert.equal(error.domain, ErrorDomain.QEMU);
      assert.equal(error.level, ErrorLevel.ERROR);
    }
    assert.equal(byName.message, "Domain not found: no domain with matching name 'absent'");
    assert.match(byUuid.message, new RegExp(`^Domain not found: no domain with matching uuid '${uuid}'`));
    assert.equal(byName.procedure, "domain_lookup_by_name");
  });

  test("an inactive domain is defined, found, read and undefined, with its lifecycle events", async () => {
    const connection = await connect();
    const other = await connect();
    const seen: { event: number; uuid: string }[] = [];
    const undefinedSeen = Promise.withResolvers<void>();
    const subscription = await other.onLifecycle(({ msg }) => {
      seen.push({ event: msg.event, uuid: msg.dom.uuid });
      if (msg.event === LifecycleEvent.UNDEFINED) undefinedSeen.resolve();
    });
    const uuid = randomUUID();
    const { dom } = await connection.call(p.domainDefineXmlFlags, { xml: domainXml("plain", uuid), flags: 0 });
    assert.deepEqual(dom, { name: "plain", uuid, id: -1 });
    assert.deepEqual((await connection.call(p.domainLookupByUuid, { uuid })).dom, dom);
    assert.deepEqual((await connection.call(p.domainLookupByName, { name: "plain" })).dom, dom);
    const { domains } = await connection.call(p.connectListAllDomains, { needResults: true, flags: 0 });
    assert.deepEqual(domains, [dom]);
    const { state } = await connection.call(p.domainGetState, { dom, flags: 0 });
    assert.equal(state, DomainState.SHUTOFF);
    assert.equal((await connection.call(p.domainIsActive, { dom })).active, false);
    assert.equal((await connection.call(p.domainIsPersistent, { dom })).persistent, true);
    assert.match(
      (await connection.call(p.domainGetXmlDesc, { dom, flags: 0 })).xml,
      new RegExp(`<uuid>${uuid}</uuid>`),
    );
    const stats = await refusal(connection.call(p.domainGetJobStats, { dom, flags: 0 }));
    assert.equal(stats.code, ErrorCode.OPERATION_INVALID);
    await connection.call(p.domainSetAutostart, { dom, autostart: true });
    assert.equal((await connection.call(p.domainGetAutostart, { dom })).autostart, true);
    await connection.call(p.domainSetAutostart, { dom, autostart: false });
    await connection.call(p.domainUndefineFlags, { dom, flags: 0 });
    assert.ok(isNoDomain(await refusal(connection.call(p.domainGetState, { dom, flags: 0 }))));
    await undefinedSeen.promise;
    assert.deepEqual(seen, [
      { event: LifecycleEvent.DEFINED, uuid },
      { event: LifecycleEvent.UNDEFINED, uuid },
    ]);
    await subscription.cancel();
  });

  test("a snapshot tree is redefined parents first, listed so, read back, and stripped leaves first", async () => {
    const connection = await connect();
    const xml = domainXml("tree", randomUUID());
    const { dom } = await connection.call(p.domainDefineXmlFlags, { xml, flags: 0 });
    const parents = new Map([
      ["root1", undefined],
      ["root2", undefined],
      ["a", "root1"],
      ["b", "root1"],
      ["c", "root2"],
    ]);
    const withUuid = domainXml("tree", dom.uuid);
    const orphan = { dom, xmlDesc: snapshotXml("orphan", "nowhere", withUuid), flags: SnapshotCreateFlag.REDEFINE };
    const refused = await refusal(connection.call(p.domainSnapshotCreateXml, orphan));
    assert.equal(refused.code, ErrorCode.INVALID_ARG);
    assert.match(refused.message, /parent nowhere for moment orphan not found/);

    for (const [name, parent] of parents) {
      const flags = SnapshotCreateFlag.REDEFINE | (name === "a" ? SnapshotCreateFlag.CURRENT : 0);
      const xmlDesc = snapshotXml(name, parent, withUuid);
      const { snap } = await connection.call(p.domainSnapshotCreateXml, { dom, xmlDesc, flags });
      assert.deepEqual(snap, { name, dom });
    }
    const listArgs = { dom, needResults: true, flags: SnapshotListFlag.TOPOLOGICAL };
    const { snapshots, ret } = await connection.call(p.domainListAllSnapshots, listArgs);
    assert.equal(ret, parents.size);
    const names = snapshots.map((snap) => snap.name);
    assert.deepEqual(names.toSorted(), [...parents.keys()].toSorted());
    for (const [name, parent] of parents) {
      if (parent !== undefined) assert.ok(names.indexOf(parent) < names.indexOf(name), names.join());
    }
    assert.equal((await connection.call(p.domainHasCurrentSnapshot, { dom, flags: 0 })).result, true);
    for (const snap of snapshots) {
      const { current } = await connection.call(p.domainSnapshotIsCurrent, { snap, flags: 0 });
      assert.equal(current, snap.name === "a", snap.name);
      const read = await connection.call(p.domainSnapshotGetXmlDesc, { snap, flags: SnapshotXmlFlag.SECURE });
      assert.match(read.xml, new RegExp(`<name>${snap.name}</name>`));
      assert.equal(/<parent>\s*<name>(.*?)<\/name>/.exec(read.xml)?.[1], parents.get(snap.name));
    }
    for (const snap of snapshots.toReversed()) {
      await connection.call(p.domainSnapshotDelete, { snap, flags: SnapshotDeleteFlag.METADATA_ONLY });
    }
    assert.equal((await connection.call(p.domainSnapshotNum, { dom, flags: 0 })).num, 0);
    const gone = { snap: { name: "a", dom }, flags: SnapshotXmlFlag.SECURE };
    assert.ok(isNoSnapshot(await refusal(connection.call(p.domainSnapshotGetXmlDesc, gone))));
    await connection.call(p.domainUndefineFlags, { dom, flags: UndefineFlag.SNAPSHOTS_METADATA });
  });

  test("passwords of a snapshot are for read-write connections only", async () => {
    const connection = await connect();
    const readOnly = await connect({ readOnly: true });
    const xml = domainXml("secret", randomUUID());
    const { dom } = await connection.call(p.domainDefineXmlFlags, { xml, flags: 0 });
    const xmlDesc = snapshotXml("s", undefined, domainXml("secret", dom.uuid));
    const flags = SnapshotCreateFlag.REDEFINE;
    const { snap } = await connection.call(p.domainSnapshotCreateXml, { dom, xmlDesc, flags });
    const error = await refusal(readOnly.call(p.domainSnapshotGetXmlDesc, { snap, flags: SnapshotXmlFlag.SECURE }));
    assert.equal(error.code, ErrorCode.OPERATION_DENIED);
    await connection.call(p.domainUndefineFlags, { dom, flags: UndefineFlag.SNAPSHOTS_METADATA });
  });

  test("a megabyte and more of XML goes there and back, not ASCII alone", async () => {
    const connection = await connect();
    const ballast = "Überfahrt ".repeat(130_000);
    const label = `<v:label xmlns:v='https://vmferry.invalid/'>${ballast}</v:label>`;
    const xml = domainXml("large", randomUUID(), `<metadata>${label}</metadata>`);
    const { dom } = await connection.call(p.domainDefineXmlFlags, { xml, flags: 0 });
    const read = await connection.call(p.domainGetXmlDesc, { dom, flags: 0 });
    assert.ok(read.xml.includes(ballast));
    await connection.call(p.domainUndefineFlags, { dom, flags: 0 });
  });

  test("a hundred calls at once, each gets its own answer", async () => {
    const connection = await connect();
    const uuids = Array.from({ length: 100 }, () => randomUUID());
    const errors = await Promise.all(uuids.map((uuid) => refusal(connection.call(p.domainLookupByUuid, { uuid }))));
    for (const [index, error] of errors.entries()) assert.ok(error.message.includes(uuids[index] ?? "?"));
  });

  test("a connection that is cut ends every call on it, and the daemon lets us in again", async () => {
    const relay = await startRelay(`${host.socketPath}-relay-${randomUUID()}`, host.socketPath);
    const connection = await connect({ socketPath: relay.socketPath });
    const calls = Array.from({ length: 20 }, () => connection.call(p.connectGetCapabilities, {}));
    const settled = Promise.allSettled(calls);
    await relay.stop();
    for (const each of await settled) {
      if (each.status === "rejected") assert.ok(each.reason instanceof LibvirtClosedError);
    }
    assert.notEqual((await connection.closed).reason, "local");
    await assert.rejects(connection.call(p.connectGetHostname, {}), LibvirtClosedError);
    assert.equal((await (await connect()).call(p.connectGetHostname, {})).hostname, "contract");
  });

  test("closing says goodbye and is heard", async () => {
    const relay = await startRelay(`${host.socketPath}-relay-${randomUUID()}`, host.socketPath);
    const connection = await connectLibvirt({ socketPath: relay.socketPath });
    await connection.close();
    const goodbye = relay.frames.filter((frame) => frame.readInt32BE(12) === p.connectClose.number);
    assert.equal(goodbye.length, 2);
    await relay.stop();
  });
}

describe("fake libvirtd", () => {
  contract(async () => {
    const fake = await FakeHost.start();
    return { socketPath: fake.daemon.socketPath, stop: () => fake.daemon.stop() };
  });

  test("replies out of order reach their callers", async () => {
    const { daemon } = await FakeHost.start();
    const first = Promise.withResolvers<void>();
    daemon.answer(p.domainLookupById, async ({ id }) => {
      if (id === 1) await first.promise;
      return { dom: { name: `d${id}`, uuid: randomUUID(), id } };
    });
    const connection = await connectLibvirt({ socketPath: daemon.socketPath });
    const slow = connection.call(p.domainLookupById, { id: 1 });
    assert.equal((await connection.call(p.domainLookupById, { id: 2 })).dom.name, "d2");
    first.resolve();
    assert.equal((await slow).dom.name, "d1");
    await connection.close();
    await daemon.stop();
  });

  test("a PING is answered while every slot waits", async () => {
    const { daemon } = await FakeHost.start();
    daemon.answer(p.connectGetHostname, () => new Promise(() => {}));
    const connection = await connectLibvirt({ socketPath: daemon.socketPath });
    const calls = Promise.allSettled(Array.from({ length: 9 }, () => connection.call(p.connectGetHostname, {})));
    const [client] = daemon.clients;
    client?.ping();
    const pong = await client?.received((frame) => frame.program === 0x6b65_6570);
    assert.equal(pong?.procedure, 2);
    client?.drop();
    assert.ok((await calls).every((each) => each.status === "rejected"));
    await daemon.stop();
  });
});

const missing = await libvirtdMissing();
describe("real libvirtd", { skip: missing === undefined ? false : `no real libvirtd: ${missing}` }, () => {
  contract(() => startLibvirtd("contract"));

  test("the daemon dies while calls wait: every one of them ends", async () => {
    const daemon = await startLibvirtd("dying");
    const connection = await connectLibvirt({ socketPath: daemon.socketPath });
    const calls = Array.from({ length: 50 }, () => connection.call(p.connectGetCapabilities, {}));
    const settled = Promise.allSettled(calls);
    process.kill(daemon.pid, "SIGKILL");
    const outcomes = await settled;
    assert.ok(outcomes.some((each) => each.status === "rejected"));
    for (const each of outcomes) {
      if (each.status === "rejected") assert.ok(each.reason instanceof LibvirtClosedError);
    }
    assert.ok(["peer", "socket"].includes((await connection.closed).reason));
    await daemon.stop();
  });

  test("the daemon's PINGs are answered: a client that asked for them stays connected", async () => {
    const daemon = await startLibvirtd("pinging", { keepaliveIntervalS: 1, keepaliveCount: 1 });
    const relay = await startRelay(`${daemon.socketPath}-relay`, daemon.socketPath);
    const pinged = Promise.withResolvers<void>();
    const equals = (frame: Buffer, bytes: Uint8Array) => frame.equals(bytes);
    // Three PINGs mean that two were answered in time: one unanswered would have ended the connection.
    relay.onFrame(() => {
      if (relay.frames.filter((frame) => equals(frame, pingFrame)).length === 3) pinged.resolve();
    });
    const connection = await connectLibvirt({ socketPath: relay.socketPath, keepalive: true });
    await Promise.race([pinged.promise, connection.closed]);
    assert.ok(connection.isOpen);
    assert.ok(relay.frames.filter((frame) => equals(frame, pongFrame)).length >= 2);
    await connection.close();
    await relay.stop();
    await daemon.stop();
  });
});
