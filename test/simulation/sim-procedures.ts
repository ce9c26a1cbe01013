/**
 * What a simulated libvirtd answers to each procedure that the steps use. Codes and refusals as in reference/libvirt.md
 * and as test/contract proves them against a real daemon.
 */
import {
  ErrorCode,
  ErrorDomain,
  JobOperation,
  JobStatsFlag,
  JobType,
  MigrateFlag,
  PausedReason,
  RunningReason,
  ShutoffReason,
  SnapshotCreateFlag,
  UndefineFlag,
} from "#libvirt/constants";
import type { RemoteDomain } from "#libvirt/handle";
import { type Procedure, procedures as p } from "#libvirt/procedures";
import type { SimConnection } from "./sim-connection.ts";
import { domainXml, refusal, SimDomain } from "./sim-domain.ts";
import type { Reply, SimLibvirtd } from "./sim-libvirtd.ts";

interface Call {
  daemon: SimLibvirtd;
  connection: SimConnection;
  name: string;
  /** Fails although nothing is wrong with it. */
  refused: boolean;
  reply: Reply;
}

export const handlers = new Map<string, (call: Call, args: unknown) => void>();

/** The procedure ties the arguments' type to the handler; the table cannot say so. */
function on<A, R>(procedure: Procedure<A, R>, handle: (call: Call, args: A) => R): void {
  handlers.set(procedure.name, (call, args) => call.reply.answer(handle(call, args as A)));
}

/** As `on`, for what waits for the domain's job. */
function onChange<A extends object, R>(
  procedure: Procedure<A, R>,
  of: (args: A) => RemoteDomain,
  handle: (call: Call, domain: SimDomain, args: A) => R,
): void {
  handlers.set(procedure.name, (call, args) => {
    const given = args as A;
    const domain = call.daemon.domain(call.name, of(given).uuid);
    call.daemon.changing(call.name, domain, call.reply, () => handle(call, domain, given));
  });
}

const known = ({ daemon, name }: Call, dom: RemoteDomain): SimDomain => daemon.domain(name, dom.uuid);
const invalid = ({ name }: Call, text: string, domain: number = ErrorDomain.QEMU) =>
  refusal(name, ErrorCode.OPERATION_INVALID, `Requested operation is not valid: ${text}`, domain);
const failed = ({ name }: Call, text: string) => refusal(name, ErrorCode.OPERATION_FAILED, `operation failed: ${text}`);

const element = (xml: string, name: string) => new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1] ?? "";

on(p.domainLookupByUuid, (call, { uuid }) => ({ dom: call.daemon.domain(call.name, uuid).handle }));
on(p.domainLookupByName, ({ daemon, name: procedure }, { name }) => {
  for (const domain of daemon.domains.values()) if (domain.name === name) return { dom: domain.handle };
  throw refusal(procedure, ErrorCode.NO_DOMAIN, `Domain not found: no domain with matching name '${name}'`);
});
on(p.domainGetState, (call, { dom }) => known(call, dom).state);
on(p.domainIsActive, (call, { dom }) => ({ active: known(call, dom).qemu !== null }));
on(p.domainIsPersistent, (call, { dom }) => ({ persistent: known(call, dom).persistent }));
on(p.domainGetXmlDesc, (call, { dom }) => ({ xml: domainXml(known(call, dom)) }));
on(p.domainGetAutostart, (call, { dom }) => ({ autostart: known(call, dom).autostart }));
onChange(
  p.domainSetAutostart,
  ({ dom }) => dom,
  (call, domain, { autostart }) => {
    if (!domain.persistent) throw invalid(call, "cannot set autostart for transient domain");
    domain.autostart = autostart;
    return {};
  },
);

/** Statistics of a running job; of an incoming one and of an inactive domain there are none (error 55). */
on(p.domainGetJobStats, (call, { dom, flags }) => {
  const domain = known(call, dom);
  if (domain.qemu === null) throw invalid(call, "domain is not running");
  const { job } = domain;
  if ((flags & JobStatsFlag.COMPLETED) !== 0) return { type: JobType.NONE, params: [] };
  if (job === null) return { type: JobType.NONE, params: [] };
  if (job.kind === "incoming") throw invalid(call, "migration statistics are available only on the source host");
  const operation = { field: "operation", type: "int" as const, value: JobOperation.MIGRATION_OUT };
  return { type: JobType.UNBOUNDED, params: [operation] };
});
on(p.domainAbortJob, (call, { dom }) => {
  const { job } = known(call, dom);
  if (job?.kind !== "outgoing") throw invalid(call, "no job is active on the domain");
  // After Perform it is taken and does nothing (seen with 9.0.0).
  if (job.phase === "done") return {};
  call.daemon.streams.cut(job.token, "migration job: canceled by client", ErrorCode.OPERATION_ABORTED);
  return {};
});

on(p.domainDefineXmlFlags, (call, { xml }) => {
  const { daemon } = call;
  if (call.refused) throw refusal(call.name, ErrorCode.XML_ERROR, "XML error: it does not like it");
  const [name, uuid] = [element(xml, "name"), element(xml, "uuid")];
  for (const other of daemon.domains.values())
    if (other.name === name && other.uuid !== uuid) throw failed(call, `domain '${name}' already exists`);
  const domain = daemon.domains.get(uuid) ?? new SimDomain(name, uuid, true);
  domain.persistent = true;
  daemon.domains.set(uuid, domain);
  return { dom: domain.handle };
});
onChange(
  p.domainUndefineFlags,
  ({ dom }) => dom,
  (call, domain, { flags }) => {
    if (call.refused) throw failed(call, "it does not want to");
    if (!domain.persistent) throw invalid(call, "cannot undefine transient domain");
    const { records } = domain.snapshots;
    if (domain.qemu === null && records.size > 0 && (flags & UndefineFlag.SNAPSHOTS_METADATA) === 0)
      throw invalid(call, `cannot delete inactive domain with ${records.size} snapshots`);
    call.daemon.witness.undefining(call.daemon, domain);
    domain.persistent = false;
    domain.autostart = false;
    if (domain.qemu === null) call.daemon.remove(domain);
    return {};
  },
);
on(p.domainDestroyFlags, (call, { dom }) => {
  const domain = known(call, dom);
  if (domain.qemu === null) throw invalid(call, "domain is not running");
  const { job } = domain;
  if (job?.kind === "incoming") call.daemon.endIncoming(domain, ShutoffReason.DESTROYED, "client destroys");
  else {
    if (job !== null) call.daemon.streams.cut(job.token, "the domain was destroyed");
    call.daemon.kill(domain, ShutoffReason.DESTROYED, "client destroys");
  }
  return {};
});
onChange(
  p.domainSuspend,
  ({ dom }) => dom,
  (call, domain) => {
    if (domain.qemu === null) throw invalid(call, "domain is not running");
    call.daemon.pause(domain, PausedReason.USER);
    return {};
  },
);
onChange(
  p.domainResume,
  ({ dom }) => dom,
  (call, domain) => {
    if (domain.qemu === null) throw invalid(call, "domain is not running");
    call.daemon.witness.resuming(call.daemon, domain, "call");
    call.daemon.run(domain, RunningReason.UNPAUSED, "client resumes");
    return {};
  },
);

on(p.domainListAllCheckpoints, (call, { dom }) => {
  known(call, dom);
  return { checkpoints: [], ret: 0 };
});
on(p.domainListAllSnapshots, (call, { dom }) => {
  const snapshots = known(call, dom)
    .snapshots.topological()
    .map((name) => ({ name, dom }));
  return { snapshots, ret: snapshots.length };
});
on(p.domainSnapshotCurrent, (call, { dom }) => {
  const { current } = known(call, dom).snapshots;
  if (current !== null) return { snap: { name: current, dom } };
  const text = "domain snapshot not found: the domain does not have a current snapshot";
  throw refusal(call.name, ErrorCode.NO_DOMAIN_SNAPSHOT, text, ErrorDomain.DOMAIN_SNAPSHOT);
});
on(p.domainSnapshotGetXmlDesc, (call, { snap }) => ({
  xml: known(call, snap.dom).snapshots.xml(call.name, snap.name, snap.dom.uuid),
}));
onChange(
  p.domainSnapshotDelete,
  ({ snap }) => snap.dom,
  (call, domain, { snap }) => {
    call.daemon.witness.stripping(call.daemon, domain, snap.name);
    domain.snapshots.delete(call.name, snap.name);
    return {};
  },
);
onChange(
  p.domainSnapshotCreateXml,
  ({ dom }) => dom,
  (call, domain, { dom, xmlDesc, flags }) => {
    if ((flags & SnapshotCreateFlag.REDEFINE) === 0) throw invalid(call, "only redefining is simulated");
    if (call.refused) throw refusal(call.name, ErrorCode.INVALID_ARG, "invalid argument: it does not like the record");
    const makesCurrent = (flags & SnapshotCreateFlag.CURRENT) !== 0;
    return { snap: { name: domain.snapshots.redefine(call.name, xmlDesc, domain.uuid, makesCurrent), dom } };
  },
);

const cookie = (fields: object) => Buffer.from(JSON.stringify(fields));
const tokenOf = (bytes: Uint8Array): string => {
  const match = /"token":"([^"]*)"/.exec(Buffer.from(bytes).toString("utf8"));
  return match?.[1] ?? "";
};

on(p.domainMigrateBegin3Params, (call, { dom, flags }) => {
  const domain = known(call, dom);
  const { size } = domain.snapshots.records;
  if (size > 0) throw invalid(call, `cannot migrate domain with ${size} snapshots`);
  const isOffline = (flags & MigrateFlag.OFFLINE) !== 0;
  if (!isOffline && domain.qemu === null) throw invalid(call, "domain is not running");
  if (isOffline && domain.qemu !== null) throw invalid(call, "cannot migrate a running domain offline");
  if (domain.job !== null) throw refusal(call.name, ErrorCode.OPERATION_TIMEOUT, "cannot acquire state change lock");
  if (call.refused) throw failed(call, "Begin does not work today");
  return { cookieOut: cookie({ cookie: "A" }), xml: domainXml(domain) };
});

on(p.domainMigratePrepare3Params, (call, { params, flags }) => {
  const { daemon, connection } = call;
  const xml = String(params.find(({ field }) => field === "destination_xml")?.value ?? "");
  const [name, uuid] = [element(xml, "name"), element(xml, "uuid")];
  const standing = daemon.domains.get(uuid);
  if (standing !== undefined && (standing.qemu !== null || standing.job !== null))
    throw invalid(call, `domain '${name}' is already active`);
  if (call.refused) throw refusal(call.name, ErrorCode.INTERNAL_ERROR, "internal error: no port is free");
  const domain = standing ?? new SimDomain(name, uuid, false);
  daemon.domains.set(uuid, domain);
  const token = daemon.streams.token();
  domain.job = { kind: "incoming", token, connection, paused: (flags & MigrateFlag.PAUSED) !== 0 };
  // Offline there is no QEMU and nothing to destroy; Finish alone makes it a definition.
  if ((flags & MigrateFlag.OFFLINE) === 0) daemon.start(domain, null, "paused", PausedReason.MIGRATION);
  return { cookieOut: cookie({ cookie: "B", token }), uriOut: "tcp:destination:49152" };
});

handlers.set(p.domainMigratePerform3Params.name, (call, args) => {
  const { dom, cookieIn } = args as { dom: RemoteDomain; cookieIn: Uint8Array };
  const domain = known(call, dom);
  if (domain.qemu === null) throw invalid(call, "domain is not running");
  if (domain.job !== null) throw refusal(call.name, ErrorCode.OPERATION_TIMEOUT, "cannot acquire state change lock");
  call.daemon.witness.performing(call.daemon, domain);
  const wasRunning = domain.qemu.cpu === "running";
  domain.job = { kind: "outgoing", phase: "performing", token: "", connection: call.connection, wasRunning };
  call.daemon.streams.begin(call.daemon, domain, tokenOf(cookieIn), call.refused, call.reply);
});

on(p.domainMigrateFinish3Params, (call, { params, cancelled, flags }) => {
  const { daemon, name: procedure } = call;
  const name = String(params.find(({ field }) => field === "destination_name")?.value ?? "");
  const domain = [...daemon.domains.values()].find((each) => each.name === name);
  if (domain === undefined) throw refusal(procedure, ErrorCode.NO_DOMAIN, `no domain with matching name '${name}'`);
  const { job } = domain;
  if (job?.kind !== "incoming") throw invalid(call, `domain '${name}' is not processing incoming migration`);
  daemon.witness.finishing(cancelled);
  if (cancelled) {
    daemon.endIncoming(domain, ShutoffReason.FAILED, "Finish cancelled");
    const text = "migration successfully aborted";
    throw refusal(procedure, ErrorCode.MIGRATE_FINISH_OK, text);
  }
  const isOffline = (flags & MigrateFlag.OFFLINE) !== 0;
  const isWhole = isOffline || (domain.qemu !== null && domain.qemu.life !== null);
  if (!isWhole || call.refused) {
    daemon.endIncoming(domain, ShutoffReason.FAILED, "Finish fails");
    throw failed(call, isWhole ? "could not resume the CPUs" : "migration is not complete");
  }
  domain.persistent = true;
  domain.job = null;
  if (!isOffline && job.paused) daemon.pause(domain, PausedReason.USER);
  else if (!isOffline) daemon.run(domain, RunningReason.MIGRATED, "Finish");
  return { dom: domain.handle, cookieOut: cookie({ cookie: "D" }) };
});

on(p.domainMigrateConfirm3Params, (call, { dom, cancelled, flags }) => {
  const { daemon } = call;
  const domain = known(call, dom);
  if ((flags & MigrateFlag.OFFLINE) !== 0) return {};
  const { job } = domain;
  if (job?.kind !== "outgoing" || job.phase !== "done")
    throw invalid(call, `domain '${dom.name}' is not being migrated`);
  if (call.refused) throw failed(call, "Confirm does not work today");
  domain.job = null;
  if (cancelled) {
    daemon.witness.resuming(daemon, domain, "confirm");
    // A guest that its owner had paused before is not let run by a way back.
    if (job.wasRunning) daemon.run(domain, RunningReason.MIGRATION_CANCELED, "Confirm");
    return {};
  }
  const undefines = (flags & MigrateFlag.UNDEFINE_SOURCE) !== 0;
  if (undefines) daemon.witness.undefining(daemon, domain);
  domain.persistent = !undefines && domain.persistent;
  daemon.kill(domain, ShutoffReason.MIGRATED, "Confirm");
  return {};
});
