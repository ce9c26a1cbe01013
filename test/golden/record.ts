/**
 * Records the wire vectors from real libvirtd: `node test/golden/record.ts`, as root, on a machine with libvirt, QEMU
 * and virsh. Writes test/golden/libvirt-VERSION-*.jsonl, named after the version of the daemon that spoke.
 *
 * Two daemons and one guest (a BIOS that finds nothing to boot: its memory migrates like any other).
 * - inventory: our client's calls to one host, answers, errors and events.
 * - virsh: `virsh migrate` through two relays, so that the arguments are libvirt's own client's.
 * - crossing: our client moves the guest back with its snapshot tree, by the steps of the design.
 */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { connectLibvirt } from "#libvirt/client";
import { FrameParser } from "#libvirt/frame";
import { procedures } from "#libvirt/procedures";
import { formatVersion } from "#libvirt/version";
import { startLibvirtd } from "#test/contract/libvirtd-daemon";
import { recordCrossing } from "./crossing.ts";
import { recordInventory } from "./inventory.ts";
import { annotate, describeFrame, formatVectors, type Vector } from "./libvirt-vector.ts";
import { type Relay, startRelay } from "./relay.ts";

const run = promisify(execFile);

const guestXml = `<domain type='qemu'><name>m</name><uuid>7b1f6ac2-0f35-4c4f-9d0e-4f7f2f0c9a11</uuid>
<memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><controller type='usb' model='none'/><memballoon model='none'/>
<disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='/var/lib/libvirt/images/m.qcow2'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>`;

function vectorsOf(host: string, relay: Relay): Vector[] {
  const vectors: Vector[] = [];
  for (const bytes of relay.frames.splice(0)) {
    new FrameParser().push(bytes, (frame) => {
      const described = describeFrame(frame);
      if (described === undefined) return;
      const { direction, procedure, shape } = described;
      vectors.push({ host, direction, procedure, hex: bytes.toString("hex"), fields: annotate(bytes, shape) });
    });
  }
  return vectors;
}

/** The same call again teaches nothing: one vector for each (direction, procedure), `keep` of them where they differ. */
function distinct(vectors: readonly Vector[], keep: number): Vector[] {
  const seen = new Map<string, number>();
  return vectors.filter(({ host, direction, procedure }) => {
    const key = `${host} ${direction} ${procedure}`;
    const times = (seen.get(key) ?? 0) + 1;
    seen.set(key, times);
    return times <= keep;
  });
}

async function save(version: string, what: string, client: string, vectors: Vector[]): Promise<void> {
  const text = formatVectors({ libvirt: version, client, vectors });
  const path = join(import.meta.dirname, `libvirt-${version}-${what}.jsonl`);
  await writeFile(path, text);
  console.log(`${path}: ${vectors.length} vectors, ${text.length} bytes`);
}

const base = await mkdtemp(join(tmpdir(), "vmferry-record-"));
await run("qemu-img", ["create", "-q", "-f", "qcow2", join(base, "m.qcow2"), "8M"]);
const north = await startLibvirtd("north", { imagesDir: base });
const south = await startLibvirtd("south", { imagesDir: base });
const northRelay = await startRelay(join(base, "north-sock"), north.socketPath);
const southRelay = await startRelay(join(base, "south-sock"), south.socketPath);
try {
  const probe = await connectLibvirt({ socketPath: north.socketPath });
  const version = formatVersion((await probe.call(procedures.connectGetLibVersion, {})).libVer);
  await probe.close();

  await recordInventory(northRelay.socketPath);
  await save(version, "inventory", "vmferry", distinct(vectorsOf("north", northRelay), 2));

  const setup = await connectLibvirt({ socketPath: north.socketPath });
  const { dom } = await setup.call(procedures.domainDefineXmlFlags, { xml: guestXml, flags: 0 });
  await setup.call(procedures.domainCreateWithFlags, { dom, flags: 0 });
  await setup.close();
  await run("virsh", [
    ...["-c", `qemu:///system?socket=${northRelay.socketPath}`, "migrate", "--live", "--persistent"],
    ...["--undefinesource", "--unsafe", "m", `qemu:///system?socket=${southRelay.socketPath}`],
    ...["--migrateuri", "tcp://127.0.0.1"],
  ]);
  const virsh = [...vectorsOf("north", northRelay), ...vectorsOf("south", southRelay)];
  await save(version, "virsh-migrate", "virsh", distinct(virsh, 2));

  await recordCrossing({ source: southRelay.socketPath, destination: northRelay.socketPath }, dom);
  const crossing = [...vectorsOf("south", southRelay), ...vectorsOf("north", northRelay)];
  await save(version, "crossing", "vmferry", distinct(crossing, 1));
} finally {
  await northRelay.stop();
  await southRelay.stop();
  await north.stop();
  await south.stop();
  await rm(base, { recursive: true, force: true });
}
