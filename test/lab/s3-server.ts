/**
 * An S3 server that is none of ours: Ceph's RADOS gateway with the smallest cluster that carries it (one monitor, one OSD
 * that keeps everything in memory), from Debian. About 130 MB and two seconds; no manager, no cephx, nothing on the disk
 * but a folder that is removed at the end. It checks Signature Version 4, expiry, If-None-Match and lengths as a production
 * server does; what it does not know is listed in test/contract/bundles.test.ts.
 */
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { answering, type BoundProcess, freePort, startBound } from "./bound-process.ts";
import { toolsSkipReason } from "./prerequisites.ts";

const tools = [
  { name: "radosgw", debianPackage: "radosgw" },
  { name: "radosgw-admin", debianPackage: "radosgw" },
  { name: "ceph-mon", debianPackage: "ceph-mon" },
  { name: "ceph-osd", debianPackage: "ceph-osd" },
  { name: "ceph", debianPackage: "ceph-common" },
];
/** It is up within two seconds; a busy machine may need many times that. */
const startMsMax = 60_000;
const memoryBytes = 1024 * 1024 * 1024;

export interface S3Server {
  url: string;
  region: string;
  keys: { accessKeyId: string; secretAccessKey: string };
  end(): Promise<void>;
}

/** False when it can be started here, else why not, for the `skip` of a test. Installs Debian's packages where it may. */
export const s3ServerSkipReason = (): Promise<string | false> => toolsSkipReason("S3 SERVER (CEPH)", tools);

const run = promisify(execFile);

export async function startS3Server(keys: { accessKeyId: string; secretAccessKey: string }): Promise<S3Server> {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-ceph-"));
  const running: BoundProcess[] = [];
  const end = async () => {
    for (const server of running.reverse()) await server.end();
    await rm(folder, { recursive: true });
  };
  try {
    const url = await startCluster(folder, keys, running);
    return { url, region: "us-east-1", keys, end };
  } catch (error) {
    await end();
    throw error;
  }
}

async function startCluster(
  folder: string,
  keys: { accessKeyId: string; secretAccessKey: string },
  running: BoundProcess[],
): Promise<string> {
  const [fsid, osdUuid] = [randomUUID(), randomUUID()];
  const [monitorPort, port] = [await freePort(), await freePort()];
  const conf = join(folder, "ceph.conf");
  const monitorMap = join(folder, "monitors");
  await writeFile(conf, configuration({ folder, fsid, monitorPort, port }));
  for (const name of ["monitor", "osd", "run"]) await mkdir(join(folder, name));
  const address = `[v2:127.0.0.1:${monitorPort}]`;
  await run("monmaptool", ["--create", "--fsid", fsid, "--addv", "a", address, monitorMap]);
  await run("ceph-mon", ["--mkfs", "-i", "a", "--monmap", monitorMap, "-c", conf]);
  running.push(await startBound(["ceph-mon", "-i", "a", "-c", conf, "-f"]));
  await run("ceph", ["-c", conf, "--connect-timeout", `${startMsMax / 1000}`, "osd", "new", osdUuid]);
  await run("ceph-osd", ["-i", "0", "--mkfs", "--osd-uuid", osdUuid, "-c", conf]);
  running.push(await startBound(["ceph-osd", "-i", "0", "-c", conf, "-f"]));
  const gateway = await startBound(["radosgw", "-n", "client.admin", "-c", conf, "-f"]);
  running.push(gateway);
  const url = `http://127.0.0.1:${port}`;
  await answering(gateway, startMsMax, () => fetch(url));
  await run("radosgw-admin", [
    ...["-c", conf, "user", "create", "--uid", "vmferry", "--display-name", "vmferry"],
    ...["--access-key", keys.accessKeyId, "--secret-key", keys.secretAccessKey],
  ]);
  return url;
}

/** One copy of everything, one placement group per pool, no keys between the three; the gateway alone faces the test. */
const configuration = (want: { folder: string; fsid: string; monitorPort: number; port: number }) => `[global]
fsid = ${want.fsid}
mon_host = v2:127.0.0.1:${want.monitorPort}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
mon_data = ${want.folder}/monitor
osd_data = ${want.folder}/osd
run_dir = ${want.folder}/run
crash_dir = ${want.folder}
log_file = ${want.folder}/$name.log
pid_file =
admin_socket =
osd_objectstore = memstore
memstore_device_bytes = ${memoryBytes}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# Without cephx there is no key to encrypt with, and the gateway would insist.
ms_mon_client_mode = crc
# One monitor has nobody to wait for; the default of a second for each change makes the start a minute.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_class_load_list = *
osd_class_default_list = *
rgw_frontends = beast endpoint=127.0.0.1:${want.port}
rgw_thread_pool_size = 32
rgw_run_sync_thread = false
rgw_enable_quota_threads = false
rgw_enable_lc_threads = false
`;
