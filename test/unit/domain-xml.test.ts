/** The strict reader of libvirt's XML, and the facts it yields. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import * as fc from "fast-check";
import { xmlBytesMax } from "#protocol/limits";
import { readDomain } from "#shim/domain-xml";
import { readMoment, readMomentHead } from "#shim/snapshot-xml";
import {
  attributeOf,
  elementAt,
  readXml,
  XmlError,
  xmlAttributesMax,
  xmlDepthMax,
  xmlElementsMax,
} from "#shim/xml-reader";

describe("readXml", () => {
  const refused: [string, string][] = [
    ["a DOCTYPE", "<!DOCTYPE domain><domain/>"],
    ["a billion laughs", `<!DOCTYPE a [<!ENTITY b "${"x".repeat(100)}">]><a>&b;</a>`],
    ["an external entity", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'],
    ["an undeclared entity", "<a>&b;</a>"],
    ["a processing instruction", "<a><?php exit ?></a>"],
    ["two attributes of one name", "<a b='1' b='2'/>"],
    ["two roots", "<a/><b/>"],
    ["a missing end", "<a><b></a>"],
    ["nothing", ""],
    ["a byte order mark", "\ufeff<a/>"],
    ["another encoding", "<?xml version='1.0' encoding='UTF-16'?><a/>"],
    ["too deep", `${"<a>".repeat(xmlDepthMax + 1)}${"</a>".repeat(xmlDepthMax + 1)}`],
    ["too many attributes", `<a ${Array.from({ length: xmlAttributesMax + 1 }, (_, i) => `b${i}=''`).join(" ")}/>`],
    ["too many elements", `<a>${"<b/>".repeat(xmlElementsMax)}</a>`],
    ["too many bytes", `<a>${"x".repeat(xmlBytesMax)}</a>`],
    ["a character XML does not have", "<a>\u0001</a>"],
  ];
  for (const [what, xml] of refused) {
    test(`refuses ${what}, without quoting it`, () => {
      assert.throws(
        () => readXml(xml),
        (error) => error instanceof XmlError && !error.message.includes("passwd"),
      );
    });
  }

  test("accepts what lies just within the bounds", () => {
    readXml(`${"<a>".repeat(xmlDepthMax)}${"</a>".repeat(xmlDepthMax)}`);
    readXml(`<a ${Array.from({ length: xmlAttributesMax }, (_, i) => `b${i}=''`).join(" ")}/>`);
  });

  test("gives an element as it stands in the document", () => {
    const cpu = `<cpu mode="custom"\n match='exact'>\n<model fallback='forbid'>q&amp;64</model><!-- > < --></cpu>`;
    const root = readXml(`<?xml version='1.0'?>\n<domain>\u{1F600}<a b="&lt;cpu&gt;"/>${cpu}</domain>`);
    assert.equal(elementAt(root, "cpu")?.raw, cpu);
    assert.equal(elementAt(root, "cpu", "model")?.text, "q&64");
    assert.equal(attributeOf(elementAt(root, "a"), "b"), "<cpu>");
  });

  test("names of every kind stay data: no prototype is touched", () => {
    const root = readXml("<a __proto__='x' constructor='y'><__proto__>z</__proto__></a>");
    assert.equal(attributeOf(root, "__proto__"), "x");
    assert.equal(elementAt(root, "__proto__")?.text, "z");
    assert.equal("x" in {}, false);
  });

  test("reads any text and attribute back, and cuts any prefix off as an error", () => {
    const escaped = (text: string) => text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
    // Characters that XML 1.0 has, without those that parsers normalise.
    const text = fc.string({ unit: "grapheme" }).map((value) => value.replace(/[^\u0020-\ud7ff\ue000-\ufffd]/g, "_"));
    fc.assert(
      fc.property(text, text, fc.nat(), (one, other, cut) => {
        const xml = `<a b="${escaped(one)}"><c>${escaped(other)}</c></a>`;
        const root = readXml(xml);
        assert.equal(attributeOf(root, "b"), one);
        assert.equal(elementAt(root, "c")?.text, other);
        assert.equal(root.raw, xml);
        assert.throws(() => readXml(xml.slice(0, cut % xml.length)), XmlError);
      }),
    );
  });

  test("what is skipped is checked for form and not kept", () => {
    const skip = new Set(["metadata"]);
    const root = readXml("<a><metadata>t<b><c/></b></metadata><d/></a>", { skip });
    assert.deepEqual(elementAt(root, "metadata")?.children, []);
    assert.equal(elementAt(root, "metadata")?.text, "");
    assert.notEqual(elementAt(root, "d"), undefined);
    assert.throws(() => readXml("<a><metadata><b></metadata></a>", { skip }), XmlError);
  });
});

const domain = `<domain type='kvm' id='3'>
  <name>web &amp; db</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata><x:y xmlns:x="urn:x"><devices><disk/></devices></x:y></metadata>
  <memory unit='GiB'>2</memory>
  <vcpu placement='static'>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>
  </os>
  <cpu mode='custom' match='exact'><model>Skylake-Server</model><feature policy='require' name='invtsc'/></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/images/top.qcow2' index='1'/>
      <backingStore type='file' index='2'>
        <format type='qcow2'/>
        <source file='/images/middle.qcow2'/>
        <backingStore type='block'><format type='raw'/><source dev='/dev/vg/base'/><backingStore/></backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <encryption format='luks'><secret type='passphrase' uuid='AAAAAAAA-2222-3333-4444-555555555555'/></encryption>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <auth username='libvirt'><secret type='ceph' uuid='bbbbbbbb-2222-3333-4444-555555555555'/></auth>
      <source protocol='rbd' name='pool/image'><host name='mon1' port='6789'/></source>
      <mirror type='file' job='copy'><source file='/images/copy'/></mirror>
      <target dev='vdb' bus='virtio'/>
      <shareable/>
    </disk>
    <disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='file' device='disk'><source file='/images/tmp'/><target dev='vdc'/><transient/></disk>
    <hostdev mode='subsystem' type='pci'><source/></hostdev>
    <hostdev mode='subsystem' type='usb'><source/></hostdev>
    <interface type='hostdev'><teaming type='transient' persistent='ua-1'/></interface>
    <filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/><target dir='srv'/></filesystem>
    <shmem name='s' role='peer'/>
    <tpm model='tpm-crb'><backend type='emulator'><encryption secret='cccccccc-2222-3333-4444-555555555555'/></backend></tpm>
  </devices>
</domain>`;

describe("readDomain", () => {
  const facts = readDomain(domain);

  test("reads what it is and what it needs", () => {
    assert.equal(facts.name, "web & db");
    assert.equal(facts.uuid, "11111111-2222-3333-4444-555555555555");
    assert.equal(facts.memoryKiB, 2 * 1024 * 1024);
    assert.deepEqual([facts.virtType, facts.arch, facts.machine, facts.vcpus], ["kvm", "x86_64", "pc-q35-7.2", 4]);
    assert.match(facts.cpuXml ?? "", /^<cpu mode='custom'.*<\/cpu>$/);
    assert.equal(facts.nvram, "/var/lib/libvirt/qemu/nvram/web_VARS.fd");
    assert.deepEqual(facts.bootFiles, ["/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"]);
    assert.equal(facts.tpm, true);
    assert.deepEqual(facts.secrets, [
      "aaaaaaaa-2222-3333-4444-555555555555",
      "bbbbbbbb-2222-3333-4444-555555555555",
      "cccccccc-2222-3333-4444-555555555555",
    ]);
  });

  test("reads disks with their whole chain; metadata is no device", () => {
    assert.deepEqual(
      facts.disks.map(({ target }) => target),
      ["vda", "vdb", "sda", "vdc"],
    );
    const [vda, vdb, sda, vdc] = facts.disks;
    assert.equal(vda?.image?.path, "/images/top.qcow2");
    assert.deepEqual(
      vda?.backing.map(({ type, path, format }) => [type, path, format]),
      [
        ["file", "/images/middle.qcow2", "qcow2"],
        ["block", "/dev/vg/base", "raw"],
      ],
    );
    assert.equal(vda?.cache, "none");
    assert.deepEqual([vdb?.image?.path, vdb?.image?.label, vdb?.mirror], [null, "network rbd:pool/image", true]);
    assert.equal(vdb?.shareable, true);
    assert.deepEqual([sda?.image, sda?.readonly], [null, true]);
    assert.equal(vdc?.transient, true);
  });

  test("names what QEMU cannot migrate, and passes what it can", () => {
    assert.deepEqual(facts.hostDevices, ["a pci host device"]);
    assert.deepEqual(facts.notMigratable, [
      "a shared folder (virtiofs)",
      "shared memory whose role is not master",
      "the CPU feature invtsc without a fixed TSC frequency",
    ]);
  });

  test("a bare domain has nothing of it", () => {
    const bare = readDomain("<domain type='qemu'><name>a</name><memory>1024</memory></domain>");
    assert.deepEqual([bare.disks, bare.secrets, bare.cpuXml, bare.nvram, bare.tpm], [[], [], null, null, false]);
    assert.equal(bare.memoryKiB, 1024);
  });
});

describe("readMoment", () => {
  const xml = `<domainsnapshot>
  <name>after &lt;upgrade&gt;</name><description>x</description>
  <state>running</state><parent><name> base </name></parent><creationTime>1700000000</creationTime>
  <memory snapshot='external' file='/images/web.mem'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/images/web.over'/></disk>
    <disk name='vdb' snapshot='internal'/>
  </disks>
  ${domain}
</domainsnapshot>`;

  test("the head is read without the domain behind it", () => {
    const broken = xml.replace("</domain>", "<not well-formed");
    const head = readMomentHead(broken);
    assert.equal(head.name, "after <upgrade>");
    // Blanks at the ends of a name are part of it.
    assert.equal(head.parent, " base ");
    assert.deepEqual([head.state, head.createdAtSeconds], ["running", 1_700_000_000]);
    assert.deepEqual(head.memory, { mode: "external", file: "/images/web.mem" });
    assert.deepEqual(
      head.disks.map(({ target, mode, image }) => [target, mode, image?.path]),
      [
        ["vda", "external", "/images/web.over"],
        ["vdb", "internal", undefined],
      ],
    );
    assert.throws(() => readMoment(broken), XmlError);
  });

  test("the whole is read with the domain as it was", () => {
    assert.equal(readMoment(xml).domain?.disks[0]?.image?.path, "/images/top.qcow2");
  });

  test("a record without a name is refused", () => {
    assert.throws(() => readMomentHead("<domainsnapshot><state>running</state></domainsnapshot>"), XmlError);
  });
});
