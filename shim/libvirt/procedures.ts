/**
 * The procedures of libvirt's remote protocol that vmferry uses, as data: name, number, argument shape, result shape.
 * `connection.call(procedures.domainGetState, { dom, flags: 0 })` is typed by the shapes.
 *
 * Numbers and structs are those of src/remote/remote_protocol.x, the same from 9.0.0 to 11.3.0 unless marked. Field
 * names follow libvirt's, in camel case. Limits are the protocol's own (REMOTE_*_MAX): what libvirt would refuse, we
 * refuse before sending; what it could not have sent, we do not accept.
 */
import {
  remoteCheckpoint,
  remoteDomain,
  remotePool,
  remoteSecret,
  remoteSnapshot,
  remoteVolume,
  uuid,
} from "./handle.ts";
import {
  array,
  chars,
  count,
  flag,
  int,
  nothing,
  opaque,
  optional,
  type Shape,
  smallUint,
  string,
  struct,
  uhyper,
  uint,
} from "./shape.ts";
import { typedParam } from "./typed-param.ts";

export type Procedure<A, R> = {
  /** libvirt's own name, for messages and vectors. */
  readonly name: string;
  readonly number: number;
  readonly args: Shape<A>;
  readonly result: Shape<R>;
};

function procedure<A, R>(name: string, number: number, args: Shape<A>, result: Shape<R>): Procedure<A, R> {
  return { name, number, args, result };
}

/** REMOTE_MIGRATE_COOKIE_MAX, bytes. */
export const cookieBytesMax = 4_194_304;
/** REMOTE_DOMAIN_SNAPSHOT_LIST_MAX and REMOTE_DOMAIN_CHECKPOINT_LIST_MAX. */
export const momentListMax = 16_384;
/** REMOTE_DOMAIN_LIST_MAX, REMOTE_STORAGE_POOL_LIST_MAX, REMOTE_SECRET_LIST_MAX. */
const listMax = 16_384;
/** REMOTE_DOMAIN_MIGRATE_PARAM_LIST_MAX: also bounds the number of `migrate_disks`. */
export const migrateParamsMax = 64;
/** REMOTE_DOMAIN_JOB_STATS_MAX. */
export const jobStatsMax = 64;
/** VIR_SECURITY_MODEL_BUFLEN and VIR_SECURITY_DOI_BUFLEN: 256 chars and a NUL. */
const securityModelCharsMax = 257;

const text = optional(string);
const cookie = opaque(cookieBytesMax);
const migrateParams = array(typedParam, migrateParamsMax);
const jobStats = array(typedParam, jobStatsMax);

const domainArgs = struct({ dom: remoteDomain });
const domainFlags = struct({ dom: remoteDomain, flags: uint });
const snapshotFlags = struct({ snap: remoteSnapshot, flags: uint });
const domainResult = struct({ dom: remoteDomain });
const snapshotResult = struct({ snap: remoteSnapshot });
const checkpointResult = struct({ checkpoint: remoteCheckpoint });
const xmlResult = struct({ xml: string });
const listArgs = struct({ needResults: flag, flags: uint });
const momentListArgs = struct({ dom: remoteDomain, needResults: flag, flags: uint });
const cpuContext = { emulator: text, arch: text, machine: text, virttype: text };

export const procedures = {
  authList: procedure("auth_list", 66, nothing, struct({ types: array(int, 20) })),
  authSaslInit: procedure("auth_sasl_init", 67, nothing, struct({ mechlist: string })),
  authPolkit: procedure("auth_polkit", 70, nothing, struct({ complete: flag })),

  connectOpen: procedure("connect_open", 1, struct({ name: text, flags: uint }), nothing),
  connectClose: procedure("connect_close", 2, nothing, nothing),
  connectGetType: procedure("connect_get_type", 3, nothing, struct({ type: string })),
  connectGetVersion: procedure("connect_get_version", 4, nothing, struct({ hvVer: count })),
  connectGetLibVersion: procedure("connect_get_lib_version", 157, nothing, struct({ libVer: count })),
  connectGetHostname: procedure("connect_get_hostname", 59, nothing, struct({ hostname: string })),
  connectGetUri: procedure("connect_get_uri", 110, nothing, struct({ uri: string })),
  connectSupportsFeature: procedure(
    "connect_supports_feature",
    60,
    struct({ feature: int }),
    struct({ supported: flag }),
  ),
  connectSetIdentity: procedure(
    "connect_set_identity",
    419,
    struct({ params: array(typedParam, 20), flags: uint }),
    nothing,
  ),
  connectGetCapabilities: procedure("connect_get_capabilities", 7, nothing, struct({ capabilities: string })),
  connectGetDomainCapabilities: procedure(
    "connect_get_domain_capabilities",
    342,
    struct({ emulatorbin: text, arch: text, machine: text, virttype: text, flags: uint }),
    struct({ capabilities: string }),
  ),
  /** Result: virCPUCompareResult (-1 error, 0 incompatible, 1 identical, 2 superset). */
  connectCompareHypervisorCpu: procedure(
    "connect_compare_hypervisor_cpu",
    393,
    struct({ ...cpuContext, xmlCpu: string, flags: uint }),
    struct({ result: int }),
  ),
  connectBaselineHypervisorCpu: procedure(
    "connect_baseline_hypervisor_cpu",
    394,
    struct({ ...cpuContext, xmlCpus: array(string, 256), flags: uint }),
    struct({ cpu: string }),
  ),
  connectListAllDomains: procedure(
    "connect_list_all_domains",
    273,
    listArgs,
    struct({ domains: array(remoteDomain, listMax), ret: uint }),
  ),
  connectListAllStoragePools: procedure(
    "connect_list_all_storage_pools",
    281,
    listArgs,
    struct({ pools: array(remotePool, listMax), ret: uint }),
  ),
  connectListAllSecrets: procedure(
    "connect_list_all_secrets",
    287,
    listArgs,
    struct({ secrets: array(remoteSecret, listMax), ret: uint }),
  ),
  connectDomainEventCallbackRegisterAny: procedure(
    "connect_domain_event_callback_register_any",
    316,
    struct({ eventId: int, dom: optional(remoteDomain) }),
    struct({ callbackId: int }),
  ),
  connectDomainEventCallbackDeregisterAny: procedure(
    "connect_domain_event_callback_deregister_any",
    317,
    struct({ callbackId: int }),
    nothing,
  ),
  connectRegisterCloseCallback: procedure("connect_register_close_callback", 360, nothing, nothing),
  connectUnregisterCloseCallback: procedure("connect_unregister_close_callback", 361, nothing, nothing),

  /** `memory` in KiB, `mhz` 0 when unknown. */
  nodeGetInfo: procedure(
    "node_get_info",
    6,
    nothing,
    struct({
      model: chars(32, true),
      memory: count,
      cpus: int,
      mhz: int,
      nodes: int,
      sockets: int,
      cores: int,
      threads: int,
    }),
  ),
  /** Bytes. */
  nodeGetFreeMemory: procedure("node_get_free_memory", 102, nothing, struct({ freeMem: count })),
  /** With nparams 0 only the number of statistics is given; ask again with it. Values in KiB. cellNum -1 is all. */
  nodeGetMemoryStats: procedure(
    "node_get_memory_stats",
    228,
    struct({ nparams: int, cellNum: int, flags: uint }),
    struct({ params: array(struct({ field: string, value: uhyper }), 1024), nparams: int }),
  ),
  nodeGetCpuMap: procedure(
    "node_get_cpu_map",
    293,
    struct({ needMap: flag, needOnline: flag, flags: uint }),
    struct({ cpumap: opaque(2048), online: uint, ret: int }),
  ),
  nodeGetSecurityModel: procedure(
    "node_get_security_model",
    122,
    nothing,
    struct({ model: chars(securityModelCharsMax, false), doi: chars(securityModelCharsMax, false) }),
  ),

  domainLookupByUuid: procedure("domain_lookup_by_uuid", 24, struct({ uuid }), domainResult),
  domainLookupByName: procedure("domain_lookup_by_name", 23, struct({ name: string }), domainResult),
  domainLookupById: procedure("domain_lookup_by_id", 22, struct({ id: int }), domainResult),
  domainGetXmlDesc: procedure("domain_get_xml_desc", 14, domainFlags, xmlResult),
  domainGetState: procedure("domain_get_state", 212, domainFlags, struct({ state: int, reason: int })),
  domainGetControlInfo: procedure(
    "domain_get_control_info",
    229,
    domainFlags,
    struct({ state: uint, details: uint, stateTime: uhyper }),
  ),
  /** Memory in KiB, CPU time in ns (bigint: 104 days of one CPU are 2^53 ns). */
  domainGetInfo: procedure(
    "domain_get_info",
    16,
    domainArgs,
    struct({
      state: smallUint("unsigned char"),
      maxMem: count,
      memory: count,
      nrVirtCpu: smallUint("unsigned short"),
      cpuTime: uhyper,
    }),
  ),
  domainIsActive: procedure("domain_is_active", 150, domainArgs, struct({ active: flag })),
  domainIsPersistent: procedure("domain_is_persistent", 151, domainArgs, struct({ persistent: flag })),
  domainDefineXmlFlags: procedure("domain_define_xml_flags", 350, struct({ xml: string, flags: uint }), domainResult),
  domainUndefineFlags: procedure("domain_undefine_flags", 231, domainFlags, nothing),
  domainCreateWithFlags: procedure("domain_create_with_flags", 196, domainFlags, domainResult),
  domainDestroy: procedure("domain_destroy", 12, domainArgs, nothing),
  domainDestroyFlags: procedure("domain_destroy_flags", 234, domainFlags, nothing),
  domainResume: procedure("domain_resume", 28, domainArgs, nothing),
  domainSuspend: procedure("domain_suspend", 34, domainArgs, nothing),
  domainGetAutostart: procedure("domain_get_autostart", 15, domainArgs, struct({ autostart: flag })),
  domainSetAutostart: procedure("domain_set_autostart", 29, struct({ dom: remoteDomain, autostart: flag }), nothing),
  domainGetMetadata: procedure(
    "domain_get_metadata",
    265,
    struct({ dom: remoteDomain, type: int, uri: text, flags: uint }),
    struct({ metadata: string }),
  ),
  domainSetMetadata: procedure(
    "domain_set_metadata",
    264,
    struct({ dom: remoteDomain, type: int, metadata: text, key: text, uri: text, flags: uint }),
    nothing,
  ),
  domainHasManagedSaveImage: procedure("domain_has_managed_save_image", 183, domainFlags, struct({ result: flag })),
  domainManagedSaveRemove: procedure("domain_managed_save_remove", 184, domainFlags, nothing),
  domainManagedSaveGetXmlDesc: procedure("domain_managed_save_get_xml_desc", 388, domainFlags, xmlResult),
  /** Bytes. */
  domainGetBlockInfo: procedure(
    "domain_get_block_info",
    194,
    struct({ dom: remoteDomain, path: string, flags: uint }),
    struct({ allocation: uhyper, capacity: uhyper, physical: uhyper }),
  ),
  /** `found` false: no block job on that disk (the other fields are zero then). */
  domainGetBlockJobInfo: procedure(
    "domain_get_block_job_info",
    238,
    struct({ dom: remoteDomain, path: string, flags: uint }),
    struct({ found: flag, type: int, bandwidth: uhyper, cur: uhyper, end: uhyper }),
  ),

  domainMigrateBegin3Params: procedure(
    "domain_migrate_begin3_params",
    302,
    struct({ dom: remoteDomain, params: migrateParams, flags: uint }),
    struct({ cookieOut: cookie, xml: string }),
  ),
  domainMigratePrepare3Params: procedure(
    "domain_migrate_prepare3_params",
    303,
    struct({ params: migrateParams, cookieIn: cookie, flags: uint }),
    struct({ cookieOut: cookie, uriOut: text }),
  ),
  domainMigratePrepareTunnel3Params: procedure(
    "domain_migrate_prepare_tunnel3_params",
    304,
    struct({ params: migrateParams, cookieIn: cookie, flags: uint }),
    struct({ cookieOut: cookie }),
  ),
  /** Answers when the memory has been sent: holds one of the connection's request slots until then. */
  domainMigratePerform3Params: procedure(
    "domain_migrate_perform3_params",
    305,
    struct({ dom: remoteDomain, dconnuri: text, params: migrateParams, cookieIn: cookie, flags: uint }),
    struct({ cookieOut: cookie }),
  ),
  /** A successful Finish with `cancelled` is error 93 (MIGRATE_FINISH_OK). */
  domainMigrateFinish3Params: procedure(
    "domain_migrate_finish3_params",
    306,
    struct({ params: migrateParams, cookieIn: cookie, flags: uint, cancelled: flag }),
    struct({ dom: remoteDomain, cookieOut: cookie }),
  ),
  domainMigrateConfirm3Params: procedure(
    "domain_migrate_confirm3_params",
    307,
    struct({ dom: remoteDomain, params: migrateParams, cookieIn: cookie, flags: uint, cancelled: flag }),
    nothing,
  ),
  domainMigrateStartPostCopy: procedure("domain_migrate_start_post_copy", 364, domainFlags, nothing),
  /** Milliseconds. */
  domainMigrateSetMaxDowntime: procedure(
    "domain_migrate_set_max_downtime",
    166,
    struct({ dom: remoteDomain, downtime: count, flags: uint }),
    nothing,
  ),
  domainMigrateGetMaxDowntime: procedure(
    "domain_migrate_get_max_downtime",
    387,
    domainFlags,
    struct({ downtime: count }),
  ),
  /** MiB/s. */
  domainMigrateSetMaxSpeed: procedure(
    "domain_migrate_set_max_speed",
    207,
    struct({ dom: remoteDomain, bandwidth: count, flags: uint }),
    nothing,
  ),
  domainMigrateGetMaxSpeed: procedure("domain_migrate_get_max_speed", 242, domainFlags, struct({ bandwidth: count })),
  domainGetJobStats: procedure("domain_get_job_stats", 298, domainFlags, struct({ type: int, params: jobStats })),
  domainGetJobInfo: procedure(
    "domain_get_job_info",
    163,
    domainArgs,
    struct({
      type: int,
      timeElapsed: uhyper,
      timeRemaining: uhyper,
      dataTotal: uhyper,
      dataProcessed: uhyper,
      dataRemaining: uhyper,
      memTotal: uhyper,
      memProcessed: uhyper,
      memRemaining: uhyper,
      fileTotal: uhyper,
      fileProcessed: uhyper,
      fileRemaining: uhyper,
    }),
  ),
  domainAbortJob: procedure("domain_abort_job", 164, domainArgs, nothing),
  /** Not before libvirt 8.5.0. */
  domainAbortJobFlags: procedure("domain_abort_job_flags", 442, domainFlags, nothing),

  domainListAllSnapshots: procedure(
    "domain_list_all_snapshots",
    274,
    momentListArgs,
    struct({ snapshots: array(remoteSnapshot, momentListMax), ret: int }),
  ),
  domainSnapshotNum: procedure("domain_snapshot_num", 187, domainFlags, struct({ num: int })),
  domainSnapshotLookupByName: procedure(
    "domain_snapshot_lookup_by_name",
    189,
    struct({ dom: remoteDomain, name: string, flags: uint }),
    snapshotResult,
  ),
  domainSnapshotGetXmlDesc: procedure("domain_snapshot_get_xml_desc", 186, snapshotFlags, xmlResult),
  domainSnapshotCreateXml: procedure(
    "domain_snapshot_create_xml",
    185,
    struct({ dom: remoteDomain, xmlDesc: string, flags: uint }),
    snapshotResult,
  ),
  /** METADATA_ONLY: leaves first, one call each. With CHILDREN it has crashed libvirtd 9.0.0 on a branching tree. */
  domainSnapshotDelete: procedure("domain_snapshot_delete", 193, snapshotFlags, nothing),
  domainRevertToSnapshot: procedure("domain_revert_to_snapshot", 192, snapshotFlags, nothing),
  domainSnapshotCurrent: procedure("domain_snapshot_current", 191, domainFlags, snapshotResult),
  domainHasCurrentSnapshot: procedure("domain_has_current_snapshot", 190, domainFlags, struct({ result: flag })),
  domainSnapshotIsCurrent: procedure("domain_snapshot_is_current", 271, snapshotFlags, struct({ current: flag })),
  domainSnapshotHasMetadata: procedure("domain_snapshot_has_metadata", 272, snapshotFlags, struct({ metadata: flag })),
  domainListAllCheckpoints: procedure(
    "domain_list_all_checkpoints",
    413,
    momentListArgs,
    struct({ checkpoints: array(remoteCheckpoint, momentListMax), ret: int }),
  ),
  domainCheckpointLookupByName: procedure(
    "domain_checkpoint_lookup_by_name",
    415,
    struct({ dom: remoteDomain, name: string, flags: uint }),
    checkpointResult,
  ),
  domainCheckpointGetXmlDesc: procedure(
    "domain_checkpoint_get_xml_desc",
    412,
    struct({ checkpoint: remoteCheckpoint, flags: uint }),
    xmlResult,
  ),
  domainCheckpointCreateXml: procedure(
    "domain_checkpoint_create_xml",
    411,
    struct({ dom: remoteDomain, xmlDesc: string, flags: uint }),
    checkpointResult,
  ),
  domainCheckpointDelete: procedure(
    "domain_checkpoint_delete",
    417,
    struct({ checkpoint: remoteCheckpoint, flags: uint }),
    nothing,
  ),

  storagePoolLookupByName: procedure(
    "storage_pool_lookup_by_name",
    84,
    struct({ name: string }),
    struct({ pool: remotePool }),
  ),
  storagePoolLookupByVolume: procedure(
    "storage_pool_lookup_by_volume",
    86,
    struct({ vol: remoteVolume }),
    struct({ pool: remotePool }),
  ),
  storagePoolLookupByTargetPath: procedure(
    "storage_pool_lookup_by_target_path",
    391,
    struct({ path: string }),
    struct({ pool: remotePool }),
  ),
  storagePoolGetXmlDesc: procedure(
    "storage_pool_get_xml_desc",
    88,
    struct({ pool: remotePool, flags: uint }),
    xmlResult,
  ),
  storageVolLookupByPath: procedure(
    "storage_vol_lookup_by_path",
    97,
    struct({ path: string }),
    struct({ vol: remoteVolume }),
  ),
  /** Bytes. */
  storageVolGetInfo: procedure(
    "storage_vol_get_info",
    98,
    struct({ vol: remoteVolume }),
    struct({ type: int, capacity: uhyper, allocation: uhyper }),
  ),
  storageVolGetXmlDesc: procedure(
    "storage_vol_get_xml_desc",
    99,
    struct({ vol: remoteVolume, flags: uint }),
    xmlResult,
  ),
  secretLookupByUuid: procedure("secret_lookup_by_uuid", 141, struct({ uuid }), struct({ secret: remoteSecret })),
};
