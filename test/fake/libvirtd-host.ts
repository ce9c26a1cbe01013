/**
 * The fake libvirtd as a host: domains that are defined, snapshots that are redefined, listed and deleted, lifecycle
 * events. Only as much of libvirt as the contract tests prove it shares with the real one (libvirtd.test.ts).
 */
import { randomUUID } from "node:crypto";
import { DomainState, ErrorCode, ErrorDomain, LifecycleEvent, SnapshotCreateFlag } from "#libvirt/constants";
import { events } from "#libvirt/event";
import type { RemoteDomain } from "#libvirt/handle";
import { type Procedure, procedures as p } from "#libvirt/procedures";
import { type FakeClient, FakeLibvirtd, Refusal } from "./libvirtd.ts";

type Snapshot = { readonly name: string; readonly parent: string | undefined; readonly xml: string };
type Domain = {
  readonly dom: RemoteDomain;
  readonly xml: string;
  readonly snapshots: Map<string, Snapshot>;
  current: string | undefined;
  autostart: boolean;
};

const { QEMU, XML, DOMAIN_SNAPSHOT } = ErrorDomain;

/** The text of the first such element; enough for the XML that tests write. */
function element(xml: string, name: string): string | undefined {
  return new RegExp(`<${name}[^>]*>([^<]*)</${name}>`).exec(xml)?.[1];
}

export class FakeHost {
  readonly daemon: FakeLibvirtd;
  readonly #domains = new Map<string, Domain>();
  readonly #subscribers: { readonly client: FakeClient; readonly callbackId: number }[] = [];

  private constructor(daemon: FakeLibvirtd) {
    this.daemon = daemon;
    this.#answerHost();
    this.#answerDomains();
    this.#answerSnapshots();
  }

  static async start(): Promise<FakeHost> {
    return new FakeHost(await FakeLibvirtd.start());
  }

  #domain({ name, uuid }: { readonly name?: string; readonly uuid?: string }): Domain {
    for (const domain of this.#domains.values()) {
      if (uuid === undefined ? domain.dom.name === name : domain.dom.uuid === uuid) return domain;
    }
    const which = uuid === undefined ? `name '${name}'` : `uuid '${uuid}'`;
    throw new Refusal(ErrorCode.NO_DOMAIN, QEMU, `Domain not found: no domain with matching ${which}`);
  }

  #snapshot(domain: Domain, name: string): Snapshot {
    const snapshot = domain.snapshots.get(name);
    if (snapshot === undefined) {
      const text = `Domain snapshot not found: no domain snapshot with matching name '${name}'`;
      throw new Refusal(ErrorCode.NO_DOMAIN_SNAPSHOT, QEMU, text);
    }
    return snapshot;
  }

  /** A call that changes something: refused on a read-only connection, as libvirt's public API does. */
  #change<A, R>(procedure: Procedure<A, R>, api: string, handler: (args: A) => R): void {
    this.daemon.answer(procedure, (args, client) => {
      if (client.readOnly) {
        const text = `operation forbidden: read only access prevents ${api}`;
        throw new Refusal(ErrorCode.OPERATION_DENIED, ErrorDomain.DOMAIN, text);
      }
      return handler(args);
    });
  }

  #announce(dom: RemoteDomain, event: number): void {
    for (const { client, callbackId } of this.#subscribers) {
      client.emit(events.lifecycle, { callbackId, msg: { dom, event, detail: 0 } });
    }
  }

  #answerHost(): void {
    const { daemon } = this;
    daemon.answer(p.connectGetLibVersion, () => ({ libVer: 9_000_000 }));
    daemon.answer(p.connectGetVersion, () => ({ hvVer: 7_002_000 }));
    daemon.answer(p.connectGetType, () => ({ type: "QEMU" }));
    daemon.answer(p.connectGetHostname, () => ({ hostname: "contract" }));
    daemon.answer(p.connectGetCapabilities, () => ({ capabilities: "<capabilities><host/></capabilities>" }));
    daemon.answer(p.connectSupportsFeature, ({ feature }) => ({ supported: feature >= 6 && feature <= 14 }));
    daemon.answer(p.connectDomainEventCallbackRegisterAny, (_, client) => {
      const callbackId = this.#subscribers.length;
      this.#subscribers.push({ client, callbackId });
      return { callbackId };
    });
    daemon.answer(p.connectDomainEventCallbackDeregisterAny, ({ callbackId }, client) => {
      const at = this.#subscribers.findIndex((each) => each.client === client && each.callbackId === callbackId);
      this.#subscribers.splice(at, 1);
      return {};
    });
  }

  #answerDomains(): void {
    const { daemon } = this;
    daemon.answer(p.domainLookupByUuid, ({ uuid }) => ({ dom: this.#domain({ uuid }).dom }));
    daemon.answer(p.domainLookupByName, ({ name }) => ({ dom: this.#domain({ name }).dom }));
    daemon.answer(p.connectListAllDomains, () => {
      const domains = [...this.#domains.values()].map((domain) => domain.dom);
      return { domains, ret: domains.length };
    });
    daemon.answer(p.domainGetState, ({ dom }) => {
      this.#domain(dom);
      return { state: DomainState.SHUTOFF, reason: 0 };
    });
    daemon.answer(p.domainGetXmlDesc, ({ dom }) => ({ xml: this.#domain(dom).xml }));
    daemon.answer(p.domainIsActive, ({ dom }) => ({ active: this.#domain(dom).dom.id >= 0 }));
    daemon.answer(p.domainIsPersistent, ({ dom }) => ({ persistent: this.#domain(dom) !== undefined }));
    daemon.answer(p.domainGetAutostart, ({ dom }) => ({ autostart: this.#domain(dom).autostart }));
    daemon.answer(p.domainGetJobStats, ({ dom }) => {
      this.#domain(dom);
      const text = "Requested operation is not valid: domain is not running";
      throw new Refusal(ErrorCode.OPERATION_INVALID, ErrorDomain.DOMAIN, text);
    });
    this.#change(p.domainSetAutostart, "virDomainSetAutostart", ({ dom, autostart }) => {
      this.#domain(dom).autostart = autostart;
      return {};
    });
    this.#change(p.domainDefineXmlFlags, "virDomainDefineXMLFlags", ({ xml }) => {
      const name = element(xml, "name");
      if (name === undefined) throw new Refusal(ErrorCode.XML_ERROR, XML, "missing name");
      const dom = { name, uuid: element(xml, "uuid") ?? randomUUID(), id: -1 };
      this.#domains.set(dom.uuid, { dom, xml, snapshots: new Map(), current: undefined, autostart: false });
      this.#announce(dom, LifecycleEvent.DEFINED);
      return { dom };
    });
    this.#change(p.domainUndefineFlags, "virDomainUndefineFlags", ({ dom }) => {
      this.#domains.delete(this.#domain(dom).dom.uuid);
      this.#announce(dom, LifecycleEvent.UNDEFINED);
      return {};
    });
  }

  #answerSnapshots(): void {
    const { daemon } = this;
    this.#change(p.domainSnapshotCreateXml, "virDomainSnapshotCreateXML", ({ dom, xmlDesc, flags }) => {
      const domain = this.#domain(dom);
      const name = element(xmlDesc, "name") ?? "";
      const parent = element(/<parent>.*?<\/parent>/s.exec(xmlDesc)?.[0] ?? "", "name");
      if (parent !== undefined && !domain.snapshots.has(parent)) {
        const text = `invalid argument: parent ${parent} for moment ${name} not found`;
        throw new Refusal(ErrorCode.INVALID_ARG, DOMAIN_SNAPSHOT, text);
      }
      domain.snapshots.set(name, { name, parent, xml: xmlDesc });
      if ((flags & SnapshotCreateFlag.CURRENT) !== 0) domain.current = name;
      return { snap: { name, dom } };
    });
    // Insertion order is topological: a parent that is missing was refused.
    daemon.answer(p.domainListAllSnapshots, ({ dom }) => {
      const snapshots = [...this.#domain(dom).snapshots.keys()].map((name) => ({ name, dom }));
      return { snapshots, ret: snapshots.length };
    });
    daemon.answer(p.domainSnapshotNum, ({ dom }) => ({ num: this.#domain(dom).snapshots.size }));
    daemon.answer(p.domainHasCurrentSnapshot, ({ dom }) => ({ result: this.#domain(dom).current !== undefined }));
    daemon.answer(p.domainSnapshotIsCurrent, ({ snap }) => ({
      current: this.#domain(snap.dom).current === snap.name,
    }));
    daemon.answer(p.domainSnapshotGetXmlDesc, ({ snap }, client) => {
      if (client.readOnly) {
        const text = "operation forbidden: virDomainSnapshotGetXMLDesc with secure flag";
        throw new Refusal(ErrorCode.OPERATION_DENIED, DOMAIN_SNAPSHOT, text);
      }
      return { xml: this.#snapshot(this.#domain(snap.dom), snap.name).xml };
    });
    this.#change(p.domainSnapshotDelete, "virDomainSnapshotDelete", ({ snap }) => {
      const domain = this.#domain(snap.dom);
      const { name, parent } = this.#snapshot(domain, snap.name);
      domain.snapshots.delete(name);
      if (domain.current === name) domain.current = parent;
      return {};
    });
  }
}
