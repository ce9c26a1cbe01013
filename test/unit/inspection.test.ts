/** What an inspection finds: each blocker and risk with its code, from a libvirt whose answers the test decides. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { DomainState, ErrorCode, ErrorDomain, JobOperation, JobType, PausedReason } from "#libvirt/constants";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { Blob } from "#protocol/blob";
import type { CommandOf, ReportBodyOf } from "#protocol/command";
import { Fault, type Finding } from "#protocol/fault";
import { bundleAccess } from "#shim/bundle-files";
import { decodeFacts, encodeFacts, type FileFacts, type SourceFacts } from "#shim/facts";
import { Findings } from "#shim/finding";
import { noteLockManager } from "#shim/host-facts";
import type { Work } from "#shim/ports";
import { steps } from "#shim/steps";
import { compareFiles, type FileIdentity, identifyFile, isAllowedPath, readBootId } from "#shim/storage";
import { FakeLibvirtd, Refusal } from "#test/fake/libvirtd";
import { SilentPeers, sealOf } from "#test/fake/treaty";

const uuid = "11111111-2222-3333-4444-555555555555";
const otherUuid = "99999999-2222-3333-4444-555555555555";
const dom: RemoteDomain = { name: "web", uuid, id: 1 };
const head = {
  id: "m_01HZZZZZZZZZZZZZZZZZZZZZZZ:inspectSource:1",
  migrationId: "m_01HZZZZZZZZZZZZZZZZZZZZZZZ",
  epoch: 1,
};
const blob: Blob = { in: "inline", base64: "", sha256: "0".repeat(64), bytes: 0 };
const hostUuids = {
  source: "aaaaaaaa-0000-0000-0000-000000000001",
  destination: "aaaaaaaa-0000-0000-0000-000000000002",
};
const refuse = (code: number, text: string) => new Refusal(code, ErrorDomain.QEMU, text);

/** A libvirt that answers like a host without the domain; tests change what they are about. */
function serveHost(fake: FakeLibvirtd, hostUuid: string): void {
  const capabilities = `<capabilities><host><uuid>${hostUuid}</uuid></host></capabilities>`;
  fake.answer(procedures.connectGetCapabilities, () => ({ capabilities }));
  fake.answer(procedures.connectGetLibVersion, () => ({ libVer: 9_000_000 }));
  fake.answer(procedures.connectGetVersion, () => ({ hvVer: 7_002_000 }));
  fake.answer(procedures.domainLookupByUuid, () => {
    throw refuse(ErrorCode.NO_DOMAIN, "no domain");
  });
  fake.answer(procedures.domainLookupByName, () => {
    throw refuse(ErrorCode.NO_DOMAIN, "no domain");
  });
  fake.answer(procedures.connectGetDomainCapabilities, () => ({ capabilities: "<domainCapabilities/>" }));
  fake.answer(procedures.connectCompareHypervisorCpu, () => ({ result: 2 }));
  const memory = ["free", "buffers", "cached"].map((field) => ({ field, value: 1_000_000n }));
  fake.answer(procedures.nodeGetMemoryStats, ({ nparams }) => ({ params: nparams === 0 ? [] : memory, nparams: 3 }));
}

function serveDomain(fake: FakeLibvirtd, state: { state: number; reason: number }, xml: string): void {
  fake.answer(procedures.domainLookupByUuid, () => ({ dom }));
  fake.answer(procedures.domainLookupByName, () => ({ dom }));
  fake.answer(procedures.domainGetState, () => state);
  fake.answer(procedures.domainIsActive, () => ({ active: state.state !== DomainState.SHUTOFF }));
  fake.answer(procedures.domainIsPersistent, () => ({ persistent: true }));
  fake.answer(procedures.domainGetJobStats, () => ({ type: JobType.NONE, params: [] }));
  fake.answer(procedures.domainGetInfo, () => ({
    state: 1,
    maxMem: 2_000_000,
    memory: 2_000_000,
    nrVirtCpu: 2,
    cpuTime: 0n,
  }));
  fake.answer(procedures.domainGetAutostart, () => ({ autostart: true }));
  fake.answer(procedures.domainGetXmlDesc, () => ({ xml }));
  fake.answer(procedures.domainHasManagedSaveImage, () => ({ result: false }));
  fake.answer(procedures.domainListAllSnapshots, () => ({ snapshots: [], ret: 0 }));
  fake.answer(procedures.domainListAllCheckpoints, () => ({ checkpoints: [], ret: 0 }));
  fake.answer(procedures.domainSnapshotCurrent, () => {
    throw refuse(ErrorCode.NO_DOMAIN_SNAPSHOT, "none");
  });
  fake.answer(procedures.domainGetBlockJobInfo, () => ({ found: false, type: 0, bandwidth: 0n, cur: 0n, end: 0n }));
}

/** Codes of one severity, in order. */
const codes = (findings: readonly Finding[], severity: Finding["severity"]) =>
  findings.flatMap((finding) => (finding.severity === severity ? [finding.code] : []));

describe("inspections", () => {
  let fake: FakeLibvirtd;
  let libvirt: LibvirtConnection;
  let dir: string;
  let disk: FileIdentity;
  let bootId: string;
  let written: Uint8Array = new Uint8Array(0);

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), "vmferry-inspection-"));
    await writeFile(join(dir, "disk.raw"), "x".repeat(100));
    disk = await identifyFile(join(dir, "disk.raw"));
    bootId = await readBootId();
  });
  beforeEach(async () => {
    await libvirt?.close();
    await fake?.stop();
    fake = await FakeLibvirtd.start();
    libvirt = await connectLibvirt({ socketPath: fake.socketPath });
  });
  after(async () => {
    await libvirt.close();
    await fake.stop();
    await rm(dir, { recursive: true });
  });

  function work<K extends "inspectSource" | "inspectDestination">(
    command: CommandOf<K>,
    given: SourceFacts | null,
  ): Work<K> {
    const unused = () => Promise.reject(new Error("an inspection has no use for this"));
    return {
      command,
      resumed: false,
      history: [],
      happened: () => false,
      milestone: unused,
      connection: unused,
      inventory: () => Promise.resolve(libvirt),
      payloads: {
        read: () => (given === null ? unused() : encodeFacts(given)),
        write: (bytes) => {
          written = bytes;
          return Promise.resolve(blob);
        },
        uploadBundle: unused,
        downloadBundle: unused,
      },
      bundles: bundleAccess,
      peers: new SilentPeers(),
      seal: sealOf("source"),
      bundlePath: "",
      migrationAddress: null,
      allowPaths: [],
      progress: () => {},
      sleep: () => Promise.resolve(),
      now: () => new Date().toISOString(),
    };
  }

  function inspectSource(): Promise<ReportBodyOf<"inspectSource">> {
    const domain = { uuid, name: "web" };
    return steps.inspectSource(work<"inspectSource">({ ...head, kind: "inspectSource", domain }, null));
  }

  function inspectDestination(facts: SourceFacts, allowPaths: string[] = []) {
    const command = { ...head, kind: "inspectDestination", domain: facts.domain, facts: blob } as const;
    return steps.inspectDestination({ ...work<"inspectDestination">(command, facts), allowPaths });
  }

  const domainXml = (devices = "") =>
    `<domain type='kvm'><name>web</name><uuid>${uuid}</uuid><memory>2000000</memory><devices>
      <disk type='file'><driver type='raw'/><source file='${join(dir, "disk.raw")}'/><target dev='vda'/></disk>${devices}
    </devices></domain>`;

  function facts(change: Partial<SourceFacts> = {}): SourceFacts {
    const file: FileFacts = { identity: disk, role: "disk", usedBy: "disk vda", cache: "none", snapshots: [] };
    return {
      format: 1,
      hostUuid: hostUuids.source,
      bootId,
      libvirtVersion: 9_000_000,
      hypervisorVersion: 7_002_000,
      domain: { uuid, name: "web", active: true, memoryKiB: 2_000_000 },
      virtType: "kvm",
      arch: "x86_64",
      machine: "pc-q35-7.2",
      emulator: "/usr/bin/qemu-system-x86_64",
      cpu: { xml: "<cpu/>", mode: "custom" },
      secrets: [],
      files: [file],
      pathless: [],
      snapshots: 0,
      checkpoints: 0,
      ...change,
    };
  }

  describe("of the source", () => {
    const running = { state: DomainState.RUNNING, reason: 1 };

    test("a plain running domain has no blocker, and its facts reach the other side unchanged", async () => {
      serveHost(fake, hostUuids.source);
      serveDomain(fake, running, domainXml());
      const report = await inspectSource();
      assert.deepEqual(codes(report.findings, "blocker"), []);
      assert.deepEqual(report.domain, {
        name: "web",
        state: "running",
        memoryKiB: 2_000_000,
        vcpus: 2,
        autostart: true,
      });
      const seen = await decodeFacts(written);
      assert.deepEqual([seen.hostUuid, seen.bootId], [hostUuids.source, bootId]);
      assert.deepEqual(
        seen.files.map(({ identity, role }) => [identity, role]),
        [[disk, "disk"]],
      );
    });

    test("an absent domain is a fault", async () => {
      serveHost(fake, hostUuids.source);
      await assert.rejects(inspectSource(), (error) => error instanceof Fault && error.code === "domain.absent");
    });

    const blockers: [string, (fake: FakeLibvirtd) => void, string][] = [
      [
        "a crashed domain",
        (f) => f.answer(procedures.domainGetState, () => ({ state: DomainState.CRASHED, reason: 1 })),
        "domain.state",
      ],
      [
        "one that an earlier migration left paused",
        (f) =>
          f.answer(procedures.domainGetState, () => ({ state: DomainState.PAUSED, reason: PausedReason.MIGRATION })),
        "domain.state",
      ],
      [
        "a running job",
        (f) =>
          f.answer(procedures.domainGetJobStats, () => ({
            type: JobType.UNBOUNDED,
            params: [{ field: "operation", type: "int" as const, value: JobOperation.BACKUP }],
          })),
        "domain.busy",
      ],
      [
        "a transient domain",
        (f) => f.answer(procedures.domainIsPersistent, () => ({ persistent: false })),
        "domain.transient",
      ],
      [
        "a managed save",
        (f) => f.answer(procedures.domainHasManagedSaveImage, () => ({ result: true })),
        "domain.managedSave",
      ],
      [
        "a block job",
        (f) =>
          f.answer(procedures.domainGetBlockJobInfo, () => ({ found: true, type: 2, bandwidth: 0n, cur: 1n, end: 2n })),
        "domain.blockJob",
      ],
      [
        "a host device",
        (f) =>
          f.answer(procedures.domainGetXmlDesc, () => ({ xml: domainXml("<hostdev mode='subsystem' type='mdev'/>") })),
        "domain.hostdev",
      ],
      [
        "virtiofs",
        (f) =>
          f.answer(procedures.domainGetXmlDesc, () => ({
            xml: domainXml("<filesystem><driver type='virtiofs'/></filesystem>"),
          })),
        "domain.notMigratable",
      ],
      [
        "a transient disk",
        (f) =>
          f.answer(procedures.domainGetXmlDesc, () => ({
            xml: domainXml("<disk><target dev='vdb'/><transient/></disk>"),
          })),
        "domain.transientDisk",
      ],
      [
        "an unreadable snapshot",
        (f) => {
          f.answer(procedures.domainListAllSnapshots, () => ({ snapshots: [{ name: "s", dom }], ret: 1 }));
          f.answer(procedures.domainSnapshotGetXmlDesc, () => ({ xml: "<domainsnapshot><name>s</na" }));
        },
        "snapshot.incomplete",
      ],
      [
        "a snapshot whose file is gone",
        (f) => {
          f.answer(procedures.domainListAllSnapshots, () => ({ snapshots: [{ name: "s", dom }], ret: 1 }));
          const xml =
            "<domainsnapshot><name>s</name><memory snapshot='external' file='/nowhere/s.mem'/></domainsnapshot>";
          f.answer(procedures.domainSnapshotGetXmlDesc, () => ({ xml }));
        },
        "snapshot.incomplete",
      ],
    ];
    for (const [what, change, code] of blockers) {
      test(`${what} is the blocker ${code}`, async () => {
        serveHost(fake, hostUuids.source);
        serveDomain(fake, running, domainXml());
        change(fake);
        const { findings } = await inspectSource();
        assert.deepEqual(codes(findings, "blocker"), [code]);
        for (const finding of findings) assert.ok(finding.cause !== "" && finding.action !== "");
      });
    }
  });

  describe("of the destination", () => {
    test("proven storage and a free host: nothing but notes", async () => {
      serveHost(fake, hostUuids.destination);
      const report = await inspectDestination(facts());
      assert.deepEqual([codes(report.findings, "blocker"), codes(report.findings, "risk")], [[], []]);
      assert.equal(report.storageProven, true);
      assert.ok(codes(report.findings, "note").includes("transport.clear"));
    });

    const cases: [string, "blocker" | "risk", string, Partial<SourceFacts>, ((fake: FakeLibvirtd) => void)?][] = [
      ["the same host UUID", "blocker", "destination.duplicateUuid", { hostUuid: hostUuids.destination }],
      [
        "a running copy",
        "blocker",
        "destination.active",
        {},
        (f) => serveDomain(f, { state: DomainState.RUNNING, reason: 1 }, ""),
      ],
      [
        "a stale definition",
        "blocker",
        "destination.defined",
        {},
        (f) => serveDomain(f, { state: DomainState.SHUTOFF, reason: 0 }, ""),
      ],
      [
        "another domain of that name",
        "blocker",
        "destination.nameTaken",
        {},
        (f) => f.answer(procedures.domainLookupByName, () => ({ dom: { ...dom, uuid: otherUuid } })),
      ],
      [
        "an older libvirt, with snapshots",
        "blocker",
        "destination.version",
        { libvirtVersion: 10_000_000, snapshots: 3 },
      ],
      ["an older libvirt, without", "risk", "destination.version", { libvirtVersion: 10_000_000 }],
      [
        "an older QEMU, with snapshots",
        "risk",
        "snapshot.revertUncertain",
        { hypervisorVersion: 8_000_000, snapshots: 3 },
      ],
      [
        "an unknown machine type",
        "blocker",
        "destination.version",
        {},
        (f) =>
          f.answer(procedures.connectGetDomainCapabilities, () => {
            throw refuse(ErrorCode.INVALID_ARG, "the machine 'pc-q35-9.9' is not supported");
          }),
      ],
      [
        "an incompatible CPU",
        "blocker",
        "destination.cpu",
        {},
        (f) =>
          f.answer(procedures.connectCompareHypervisorCpu, () => {
            throw refuse(ErrorCode.CPU_INCOMPATIBLE, "missing features: avx512f");
          }),
      ],
      ["host-passthrough", "risk", "destination.cpu", { cpu: { xml: "<cpu/>", mode: "host-passthrough" } }],
      [
        "too little memory",
        "blocker",
        "destination.memory",
        { domain: { uuid, name: "web", active: true, memoryKiB: 3_000_001 } },
      ],
      [
        "a missing secret",
        "blocker",
        "destination.secretMissing",
        { secrets: [otherUuid] },
        (f) =>
          f.answer(procedures.secretLookupByUuid, () => {
            throw refuse(ErrorCode.NO_SECRET, "no secret");
          }),
      ],
      ["a pool volume", "risk", "storage.notShared", { pathless: [{ type: "volume", label: "pool:volume" }] }],
    ];
    for (const [what, severity, code, change, serve] of cases) {
      test(`${what} is the ${severity} ${code}`, async () => {
        serveHost(fake, hostUuids.destination);
        serve?.(fake);
        const { findings } = await inspectDestination(facts(change));
        const serious = findings.filter((finding) => finding.severity !== "note");
        assert.deepEqual(
          serious.map((finding) => [finding.severity, finding.code]),
          [[severity, code]],
        );
      });
    }

    test("memory and CPU of a domain that is off are not asked for", async () => {
      serveHost(fake, hostUuids.destination);
      const off = { uuid, name: "web", active: false, memoryKiB: 2 ** 40 };
      const { findings } = await inspectDestination(
        facts({ domain: off, cpu: { xml: "<cpu/>", mode: "host-passthrough" } }),
      );
      assert.deepEqual(
        findings.filter(({ severity }) => severity !== "note"),
        [],
      );
    });

    test("storage: absent, forbidden, another file, unproven, and too small a cache mode", async () => {
      serveHost(fake, hostUuids.destination);
      const file = (identity: FileIdentity, change: Partial<FileFacts> = {}): FileFacts => ({
        identity,
        role: "disk",
        usedBy: "disk vda",
        cache: "none",
        snapshots: [],
        ...change,
      });
      const find = async (change: Partial<SourceFacts>, allowPaths: string[] = []) => {
        const { findings, storageProven } = await inspectDestination(facts(change), allowPaths);
        const serious = findings.filter(({ severity }) => severity !== "note");
        return [serious.map(({ severity, code }) => `${severity} ${code}`), storageProven];
      };
      const gone = { ...disk, path: join(dir, "gone") };
      assert.deepEqual(await find({ files: [file(gone)] }), [["blocker storage.unreachable"], false]);
      assert.deepEqual(await find({}, ["/srv/images"]), [["blocker storage.unreachable"], false]);
      assert.deepEqual(await find({}, [dir]), [[], true]);
      const other = { ...disk, inode: "1" };
      assert.deepEqual(await find({ files: [file(other)] }), [["blocker storage.notShared"], false]);
      assert.deepEqual(await find({ bootId: "another" }), [["risk storage.notShared"], false]);
      const oldCache = { bootId: "another", hypervisorVersion: 3_000_000, files: [file(disk, { cache: null })] };
      assert.deepEqual(await find(oldCache), [["risk storage.notShared", "risk storage.cacheMode"], false]);
      // A file that is only read may be a copy of equal size.
      assert.deepEqual(await find({ bootId: "another", files: [file(disk, { role: "boot" })] }), [[], false]);
      const shorter = { ...disk, bytes: 99 };
      assert.deepEqual(await find({ bootId: "another", files: [file(shorter, { role: "boot" })] }), [
        ["risk storage.notShared"],
        false,
      ]);
      // No qcow2: whether the data is there cannot be seen.
      assert.deepEqual(await find({ files: [file(disk, { snapshots: ["base"] })] }), [
        ["risk snapshot.revertUncertain"],
        true,
      ]);
    });

    test("facts that are no facts are refused", async () => {
      await assert.rejects(decodeFacts(new Uint8Array([1, 2, 3])), /message.malformed/);
      const wrong = { ...facts(), format: 2 } as unknown as SourceFacts;
      await assert.rejects(decodeFacts(await encodeFacts(wrong)), /schema at format/);
    });
  });
});

describe("compareFiles", () => {
  const local: FileIdentity = { path: "/a", kind: "file", bytes: 1, inode: "5", device: "9", fsType: "ef53" };
  const nfs = { ...local, fsType: "6969" };
  const cases: [string, FileIdentity, FileIdentity, boolean, string][] = [
    ["one machine, one inode", local, local, true, "same"],
    ["one machine, two devices", local, { ...local, device: "8" }, true, "different"],
    ["two machines, local file systems that look alike", local, local, false, "unproven"],
    ["two machines, one NFS file", nfs, { ...nfs, device: "77" }, false, "shared"],
    ["two machines, two NFS files", nfs, { ...nfs, inode: "6" }, false, "different"],
    ["NFS here, local there", nfs, local, false, "unproven"],
    ["FUSE proves nothing", { ...local, fsType: "65735546" }, { ...local, fsType: "65735546" }, false, "unproven"],
    ["a file and a device", local, { ...local, kind: "block" }, false, "different"],
    ["block devices of two machines", { ...local, kind: "block" }, { ...local, kind: "block" }, false, "unproven"],
  ];
  for (const [what, one, other, sameMachine, expected] of cases)
    test(what, () => assert.equal(compareFiles(one, other, sameMachine), expected));
});

test("an allowed path lies below its folder, not beside it, and never climbs out", () => {
  const allowed = ["/srv/images", "/mnt/"];
  const verdicts = ["/srv/images/a", "/srv/images", "/mnt/b", "/srv/images2/a", "/srv/images/../x", "/etc/passwd"].map(
    (path) => isAllowedPath(path, allowed),
  );
  assert.deepEqual(verdicts, [true, true, true, false, false, false]);
  assert.equal(isAllowedPath("/anything", []), true);
});

test("a lock manager that is set is not missed, one in a comment is", async () => {
  const dir = await mkdtemp(join(tmpdir(), "vmferry-lock-"));
  try {
    const noted = async (text: string) => {
      const path = join(dir, "qemu.conf");
      await writeFile(path, text);
      const findings = new Findings();
      await noteLockManager(findings, "source", path);
      return findings.list().map(({ code }) => code);
    };
    assert.deepEqual(await noted('lock_manager = "lockd"\n'), []);
    assert.deepEqual(await noted('#lock_manager = "lockd"\n'), ["lock.none"]);
    assert.deepEqual(await noted('lock_manager = "nop"\n'), ["lock.none"]);
  } finally {
    await rm(dir, { recursive: true });
  }
});
