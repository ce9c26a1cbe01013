/**
 * What a host pays for the shim: its bundle, the time from its start until it is connected, and its memory when idle, each
 * with the Node options and the environment that the systemd unit starts it with. The
 * time is given against `node -e 0` of the same Node, right after each other, so the machine's speed falls out.
 */
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import type { Fleet } from "#lab/fleet";
import type { Host } from "#lab/host";
import { type Figure, figure, type Ratio, ratio } from "./statistics.ts";

/** Heartbeats and a garbage collection have passed by then. */
const settleMs = 15_000;
const connectTimeoutMs = 60_000;

export interface Footprint {
  bundleBytes: number;
  bundleGzipBytes: number;
  startMs: Figure;
  nodeMs: Figure;
  start: Ratio;
  /** VmRSS of each host's shim and of what it started: after the migrations of this run (without the unit's options), and
   *  of one freshly started as the unit does. */
  usedRssBytes: number[];
  idleRssBytes: number;
}

const bundlePath = join(import.meta.dirname, "../../dist/shim.mjs");

export async function measureFootprint(fleet: Fleet, hosts: readonly Host[], rounds: number): Promise<Footprint> {
  const bundle = await readFile(bundlePath);
  const usedRssBytes = await rssOfShims(fleet, hosts);
  const [host] = hosts;
  if (host === undefined) throw new Error("no host");
  const [starts, nodes]: [number[], number[]] = [[], []];
  await fleet.shim(host).stop();
  let idleRssBytes = 0;
  for (let round = 1; round <= rounds; round += 1) {
    nodes.push(await lifeOfNode());
    const started = await startShim(fleet, host);
    starts.push(started.ms);
    try {
      if (round < rounds) continue;
      await sleep(settleMs);
      idleRssBytes = await rssOfTree(started.pid);
    } finally {
      await started.stop();
    }
  }
  return {
    bundleBytes: bundle.byteLength,
    bundleGzipBytes: gzipSync(bundle, { level: 9 }).byteLength,
    startMs: figure(starts),
    nodeMs: figure(nodes),
    start: ratio(starts, nodes),
    usedRssBytes,
    idleRssBytes,
  };
}

async function lifeOfNode(): Promise<number> {
  const fromMs = performance.now();
  const child = spawn(process.execPath, ["-e", "0"], { stdio: "ignore" });
  await new Promise((resolve, reject) => child.once("exit", resolve).once("error", reject));
  return performance.now() - fromMs;
}

const unitPath = join(import.meta.dirname, "../../infra/systemd/vmferry-shim.service");

/** How the unit starts Node: its options, and what it adds to the environment. */
async function unitStart(): Promise<{ options: string[]; env: Record<string, string> }> {
  const unit = await readFile(unitPath, "utf8");
  const options = /^ExecStart=\/usr\/bin\/env node (.*)\S*\/shim\.mjs$/m.exec(unit)?.[1];
  if (options === undefined) throw new Error(`${unitPath} starts the shim in an unknown way`);
  const env = Object.fromEntries(
    [...unit.matchAll(/^Environment=(\w+)=(\S*)$/gm)].map(([, name, value]) => [name, value]),
  );
  return { options: options.split(" ").filter((word) => word.startsWith("--")), env };
}

/** Starts a shim that is enrolled; `ms` is from the start of the process to its own `connected`. */
async function startShim(fleet: Fleet, host: Host): Promise<{ ms: number; pid: number; stop(): Promise<unknown> }> {
  const unit = await unitStart();
  const words = ["--url", fleet.url, "--name", host.name, "--state", join(fleet.dir, `shim-${host.name}`)];
  words.push("--libvirt", host.socket, "--migration-address", host.migrationAddress);
  const fromMs = performance.now();
  const child = spawn(process.execPath, [...unit.options, bundlePath, ...words], {
    env: { ...process.env, ...fleet.env, ...unit.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  const stop = () => {
    child.kill("SIGTERM");
    return exited;
  };
  try {
    const ms = await new Promise<number>((resolve, reject) => {
      let said = "";
      const timer = setTimeout(() => reject(new Error(`the shim did not connect:\n${said}`)), connectTimeoutMs);
      const hear = (chunk: Buffer) => {
        said += chunk.toString();
        if (!said.includes("vmferry shim: connected as")) return;
        clearTimeout(timer);
        resolve(performance.now() - fromMs);
      };
      child.stdout.on("data", hear);
      child.stderr.on("data", hear);
      child.once("error", reject);
      child.once("exit", (code) => reject(new Error(`the shim exited ${code} before it connected:\n${said}`)));
    });
    return { ms, pid: child.pid ?? 0, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

function rssOfShims(fleet: Fleet, hosts: readonly Host[]): Promise<number[]> {
  return Promise.all(hosts.map((host) => rssOfTree(fleet.shim(host).child.pid ?? 0)));
}

/** VmRSS of a process and its children, in bytes. */
async function rssOfTree(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  const own = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
  if (!Number.isFinite(own)) throw new Error(`process ${pid} has no VmRSS`);
  const children = (await readFile(`/proc/${pid}/task/${pid}/children`, "utf8"))
    .split(" ")
    .filter((word) => word !== "");
  const theirs = await Promise.all(children.map((child) => rssOfTree(Number(child)).catch(() => 0)));
  return theirs.reduce((sum, rss) => sum + rss, own);
}
