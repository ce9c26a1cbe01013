/**
 * What the end-to-end tests of the command line share: a lab, a fleet on top of it, and witnesses that are not vmferry's own.
 *
 * What the hosts hold is read by virsh and from libvirt's own folders; what the bucket holds is read by an S3 client of its own.
 * Asking the control plane is only done to wait until it has heard of something, and for what it alone can tell.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { GetObjectCommand, S3Client } from "@aws-sdk/client-s3";
import { type Finished, type Fleet, type FleetOptions, startFleet } from "#lab/fleet";
import { createDisk, domainXml } from "#lab/guest";
import { guestImage } from "#lab/guest-image";
import type { Host } from "#lab/host";
import { type Lab, type LabOptions, startLab } from "#lab/lab";
import type { SnapshotRecord } from "#lab/virsh";
import { type Migration, migrationSchema } from "../../functions/http/migration-resource.ts";

/** Beside other work on two cores everything takes longer; what is still not so after this will not become so. */
const patienceMs = 90_000;
const pollMs = 100;

/** Everything that virsh tells about one domain of a host. */
export interface SeenDomain {
  state: string | undefined;
  autostart: boolean;
  inactiveXml: string;
  liveXml: string;
  managedSave: boolean;
  tree: SnapshotRecord[];
}

/** A refusal as it stands on stderr. */
export interface Refusal {
  code: string;
  cause: string;
  action: string;
}

export class World {
  readonly lab: Lab;
  readonly fleet: Fleet;

  constructor(lab: Lab, fleet: Fleet) {
    this.lab = lab;
    this.fleet = fleet;
  }

  static async start(options: LabOptions, fleetOptions: Omit<FleetOptions, "hosts"> = {}): Promise<World> {
    const lab = await startLab(options);
    try {
      return new World(lab, await startFleet({ ...fleetOptions, hosts: lab.hosts }));
    } catch (error) {
      await lab.stop();
      throw error;
    }
  }

  /** Ends every process of both, whatever state they are in. */
  async stop(): Promise<void> {
    // The shims first: one inside a host's namespace keeps that namespace.
    await this.fleet.stop();
    await this.lab.stop();
  }

  /** Runs the command line with `--json` and returns what it printed. */
  async json(words: readonly string[]): Promise<{ finished: Finished; value: unknown }> {
    const finished = await this.fleet.run([...words, "--json"]);
    return { finished, value: finished.stdout === "" ? undefined : JSON.parse(finished.stdout) };
  }

  /** Migrates by the command line, which must complete; returns what `migration show --json` tells of it. */
  async migrate(words: readonly string[]): Promise<Migration> {
    const { finished, value } = await this.json(["migrate", ...words]);
    assert.equal(finished.code, 0, `migrate ${words.join(" ")} exited ${finished.code}\n${finished.stderr}`);
    return this.migration(migrationSchema.parse(value).id);
  }

  async migration(id: string): Promise<Migration> {
    return migrationSchema.parse(JSON.parse((await this.fleet.mustRun(["migration", "show", id, "--json"])).stdout));
  }

  /** One request of the API with the admin's token; `token: null` sends none. */
  async ask(path: string, init: RequestInit & { token?: string | null } = {}): Promise<Response> {
    const { token = await this.fleet.token(), ...rest } = init;
    const headers = new Headers(rest.headers);
    if (token !== null) headers.set("authorization", `Bearer ${token}`);
    return fetch(`${this.fleet.url}${path}`, { redirect: "manual", ...rest, headers });
  }

  async get(path: string): Promise<unknown> {
    const response = await this.ask(path);
    assert.equal(response.status, 200, `GET ${path} answered ${response.status}`);
    return response.json();
  }

  /** Waits until the control plane's inventory has the domain on exactly these hosts. */
  async heardOf(domain: string, hosts: readonly Host[]): Promise<void> {
    const wanted = hosts.map(({ name }) => name).sort();
    await eventually(`${domain} is known on ${wanted.join(", ") || "no host"}`, async () => {
      const found = rows(await this.get("/v1/domains?limit=200")).filter(
        ({ name, uuid }) => name === domain || uuid === domain,
      );
      return JSON.stringify(found.map(({ host }) => host).sort()) === JSON.stringify(wanted);
    });
  }

  /** Everything that libvirt holds on a host, by virsh. */
  async seen(host: Host): Promise<Record<string, SeenDomain>> {
    const domains = (await host.virsh.domains()).sort();
    const entries = await Promise.all(
      domains.map(async (name): Promise<[string, SeenDomain]> => {
        const [state, inactiveXml, liveXml, info, tree] = await Promise.all([
          host.virsh.domstate(name),
          host.virsh.domainXml(name, { inactive: true }),
          host.virsh.domainXml(name),
          host.virsh.run(["dominfo", name]),
          treeOf(host, name),
        ]);
        const says = (field: string) => new RegExp(`^${field}:\\s+(enable|yes)`, "m").test(info);
        return [
          name,
          { state, autostart: says("Autostart"), inactiveXml, liveXml, managedSave: says("Managed save"), tree },
        ];
      }),
    );
    return Object.fromEntries(entries);
  }

  /** Nothing of the domain is on the host: no definition, no process, no snapshot file, no journal entry of the shim. */
  async assertNothingOn(host: Host, domain: string): Promise<void> {
    assert.equal(await host.virsh.domstate(domain), undefined, `${host.name} knows ${domain}`);
    assert.deepEqual(await host.qemus(domain), [], `${host.name} runs ${domain}`);
    assert.deepEqual(await listing(join(host.snapshotDir, domain)), [], `${host.name} keeps snapshot files`);
    await this.assertJournalsEmpty(host);
  }

  /** The shim has forgotten its migrations once their ends are acknowledged; that comes just after the end was told. */
  async assertJournalsEmpty(host: Host): Promise<void> {
    const dir = join(this.fleet.dir, `shim-${host.name}`);
    let left: string[] = [];
    await eventually(
      () => `the shim of ${host.name} has forgotten its migrations, but it keeps ${left.join(", ")}`,
      async () => {
        left = (await listing(dir)).filter((path) => /m_[0-9A-Z]{26}/.test(path));
        return left.length === 0;
      },
    );
  }

  /** The bytes of an object, read from the bucket by an S3 client of the test's own. */
  async object(key: string): Promise<Uint8Array> {
    const secretAccessKey = (await readFile(join(this.fleet.dir, "data", "s3-key"), "utf8")).trim();
    // Beside the control plane with `vmferry up`, elsewhere where its folder says so.
    const elsewhere = await readFile(join(this.fleet.dir, "data", "s3-endpoint"), "utf8").catch(() => null);
    const client = new S3Client({
      endpoint: elsewhere ?? `${this.fleet.url}/s3`,
      region: "us-east-1",
      forcePathStyle: true,
      credentials: { accessKeyId: "vmferry", secretAccessKey },
    });
    try {
      const answer = await client.send(new GetObjectCommand({ Bucket: "vmferry", Key: key }));
      return (await answer.Body?.transformToByteArray()) ?? new Uint8Array();
    } finally {
      client.destroy();
    }
  }

  /**
   * A domain that boots nothing: defined with a small disk, shut off or started paused. For what must be proven about a
   * domain and not about a guest; it costs a second instead of ten.
   */
  async define(host: Host, name: string, options: StillOptions = {}): Promise<{ uuid: string; disk: string }> {
    const uuid = options.uuid ?? crypto.randomUUID();
    const disk = join(this.lab.storageDir, `${options.diskName ?? name}.qcow2`);
    await createDisk(disk, 8);
    const serialLog = join(this.lab.storageDir, `${options.diskName ?? name}.serial`);
    const image = await guestImage();
    await host.virsh.define(domainXml({ memoryMiB: 64, ...options, ...image, name, uuid, disk, serialLog }));
    if (options.paused === true) await host.virsh.run(["start", name, "--paused"]);
    return { uuid, disk };
  }

  /** Ends and undefines a domain wherever it is. */
  async forget(domain: string, hosts: readonly Host[] = this.lab.hosts): Promise<void> {
    for (const host of hosts) {
      if ((await host.virsh.domstate(domain)) === undefined) continue;
      await host.virsh.destroy(domain);
      await host.virsh.undefine(domain);
    }
  }
}

export interface StillOptions {
  readonly uuid?: string;
  /** Default: the domain's name. */
  readonly diskName?: string;
  readonly paused?: boolean;
  readonly metadata?: string;
  readonly cpuXml?: string;
  readonly memoryMiB?: number;
}

/** A snapshot tree as virsh tells it, siblings in the order of their names. */
export async function treeOf(host: Host, domain: string): Promise<SnapshotRecord[]> {
  return (await host.virsh.snapshotTree(domain)).toSorted((one, other) => (one.name < other.name ? -1 : 1));
}

/** Waits until it is so; fails with what was waited for. */
export async function eventually(
  what: string | (() => string),
  isSo: () => Promise<boolean>,
  msMax = patienceMs,
): Promise<void> {
  for (let waitedMs = 0; waitedMs < msMax; waitedMs += pollMs) {
    if (await isSo()) return;
    await sleep(pollMs);
  }
  assert.fail(`waited ${msMax} ms in vain until ${typeof what === "string" ? what : what()}`);
}

/** The refusal on stderr: `vmferry: CODE: CAUSE` and `  next: ACTION`. */
export function refusalOf(finished: Finished): Refusal {
  const [, code = "", cause = ""] = /^vmferry: ([a-zA-Z]+(?:\.[a-zA-Z]+)?): (.+)$/m.exec(finished.stderr) ?? [];
  const [, action = ""] = /^ {2}next: (.+)$/m.exec(finished.stderr) ?? [];
  assert.notEqual(code, "", `no code on stderr:\n${finished.stderr}\n${finished.stdout}`);
  assert.notEqual(cause, "", `no cause on stderr:\n${finished.stderr}`);
  assert.notEqual(action, "", `no next action on stderr:\n${finished.stderr}`);
  return { code, cause, action };
}

/** The items of a page of the API, as far as a test looks at them. */
export function rows(page: unknown): Record<string, unknown>[] {
  assert.ok(typeof page === "object" && page !== null && "items" in page && Array.isArray(page.items), "no page");
  return page.items;
}

/** The lines of counter.log on a guest's disk, read from the image without the guest. The domain must be shut off. */
export async function diskLines(image: string): Promise<number[]> {
  const run = promisify(execFile);
  const raw = `${image}.raw`;
  await run("qemu-img", ["convert", "-O", "raw", image, raw]);
  const { stdout } = await run("debugfs", ["-R", "cat /counter.log", raw]);
  return stdout.split("\n").filter(Boolean).map(Number);
}

async function listing(dir: string): Promise<string[]> {
  return (await readdir(dir, { recursive: true }).catch(() => [])).sort();
}
