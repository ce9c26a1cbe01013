/** The simulated libvirt and two real daemons, by one list of cases (libvirt-pair-cases.ts). */
import { after, before, describe } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { RunningReason } from "#libvirt/constants";
import { procedures } from "#libvirt/procedures";
import { domainXml as simDomainXml, snapshotXml as simSnapshotXml } from "#test/simulation/sim-domain";
import { SimLibvirtd } from "#test/simulation/sim-libvirtd";
import { Streams } from "#test/simulation/sim-stream";
import { Witness } from "#test/simulation/witness";
import { Life, World } from "#test/simulation/world";
import { type LibvirtPair, pairCases } from "./libvirt-pair-cases.ts";
import { type LibvirtDaemon, libvirtdMissing, startLibvirtd } from "./libvirtd-daemon.ts";

describe("the simulated libvirt", () => {
  const world = new World({ seed: 1, source: { type: "none" }, tracing: false, onWorld() {} });
  const witness = new Witness(world);
  const streams = new Streams(world);
  const daemons = {
    source: new SimLibvirtd(world, "source", witness, streams),
    destination: new SimLibvirtd(world, "destination", witness, streams),
  };
  const life = new Life("test");
  /** Lets virtual time pass until something has settled. */
  const passing = async <T>(promise: Promise<T>): Promise<T> => {
    let isSettled = false;
    const settled = promise.finally(() => {
      isSettled = true;
    });
    settled.catch(() => {});
    await world.time.run(world.time.nowMs + 120_000, () => isSettled);
    return settled;
  };
  const passingCalls = (connection: LibvirtConnection): LibvirtConnection =>
    new Proxy(connection, {
      get: (target, name) => {
        if (name === "call") return (...args: Parameters<LibvirtConnection["call"]>) => passing(target.call(...args));
        if (name === "close") return () => passing(target.close());
        return Reflect.get(target, name, target);
      },
    });
  const pair: LibvirtPair = {
    connect: async (side) => passingCalls(await passing(daemons[side].connect(life))),
    define: async (side, domain) => {
      const libvirt = passingCalls(await passing(daemons[side].connect(life)));
      return (await libvirt.call(procedures.domainDefineXmlFlags, { xml: simDomainXml(domain), flags: 0 })).dom;
    },
    boot: async (domain) => {
      const dom = await pair.define("source", domain);
      const known = daemons.source.domain("boot", dom.uuid);
      daemons.source.start(known, witness.newLife(daemons.source), "running", RunningReason.BOOTED);
      return known.handle;
    },
    snapshotXml: async ({ uuid }, name, parent) => simSnapshotXml(name, { parent, createdAt: 1_700_000_000 }, uuid),
    sleep: (ms) =>
      passing(
        new Promise((resolve) => {
          world.time.after(ms, resolve);
        }),
      ),
  };
  pairCases(() => pair);
});

const missing = await libvirtdMissing();

describe("two real libvirtd", { skip: missing ?? false, timeout: 300_000 }, () => {
  const daemons: Partial<Record<"source" | "destination", LibvirtDaemon>> = {};
  const open: LibvirtConnection[] = [];
  before(async () => {
    daemons.source = await startLibvirtd("paira");
    daemons.destination = await startLibvirtd("pairb");
  });
  after(async () => {
    for (const connection of open) await connection.close();
    await daemons.source?.stop();
    await daemons.destination?.stop();
  });
  const xml = ({ name, uuid }: { name: string; uuid: string }) =>
    `<domain type='qemu'><name>${name}</name><uuid>${uuid}</uuid><memory unit='MiB'>32</memory>` +
    "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>";
  const pair: LibvirtPair = {
    connect: async (side) => {
      const connection = await connectLibvirt({ socketPath: daemons[side]?.socketPath ?? "", keepalive: true });
      open.push(connection);
      return connection;
    },
    define: async (side, domain) => {
      const libvirt = await pair.connect(side);
      return (await libvirt.call(procedures.domainDefineXmlFlags, { xml: xml(domain), flags: 0 })).dom;
    },
    boot: async (domain) => {
      const libvirt = await pair.connect("source");
      const dom = await pair.define("source", domain);
      return (await libvirt.call(procedures.domainCreateWithFlags, { dom, flags: 0 })).dom;
    },
    snapshotXml: async (domain, name, parent) =>
      `<domainsnapshot><name>${name}</name>${parent === null ? "" : `<parent><name>${parent}</name></parent>`}` +
      "<creationTime>1700000000</creationTime><state>shutoff</state><memory snapshot='no'/><disks/>" +
      `${xml(domain)}</domainsnapshot>`,
    sleep: (ms) => sleep(ms),
  };
  pairCases(() => pair);
});
