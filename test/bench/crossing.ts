/**
 * One move of the guest, timed from outside: by `vmferry migrate`, by `virsh migrate`, by the usual script. Each is a
 * process from its start to its exit, and each is watched on the guest's serial port for the whole of it.
 */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as z from "zod/mini";
import type { Fleet } from "#lab/fleet";
import type { Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { type Migration, migrationSchema } from "../../functions/http/migration-resource.ts";
import { type Background, between, causedBy, readStoreCounts, type StoreCounts } from "./store-requests.ts";

/** Ticks that show that the guest runs after a move, and how long they may take on a loaded machine. */
const ticksAfter = 20;
const tickTimeoutMs = 60_000;

export interface Bench {
  fleet: Fleet;
  guest: Guest;
  hosts: readonly [Host, Host];
  background: Background;
}

export interface Crossing {
  /** Process, start to exit. */
  totalMs: number;
  /** Longest silence of the serial port, and our own longest pause between two looks in it. */
  blackout: { ms: number; observerMs: number };
}

export interface VmferryCrossing extends Crossing {
  /** From the POST's `createdAt` to `endedAt`, by the functions' clock. */
  requestToEndMs: number;
  /** The shim's Perform: the memory transfer. */
  performMs: number;
  /** libvirt's own measure. */
  libvirtDowntimeMs: number | null;
  steps: { step: string; side: string | null; ms: number }[];
  stores: StoreCounts;
  bundleBytes: number;
  bundlePlainBytes: number;
}

const scriptSchema = z.object({
  snapshots: z.int(),
  dumpMs: z.number(),
  deleteMs: z.number(),
  migrateMs: z.number(),
  redefineMs: z.number(),
});
export interface ScriptCrossing extends Crossing, z.infer<typeof scriptSchema> {}

/** Which host has the guest, and which has not. */
export async function whereIs({ guest, hosts }: Bench): Promise<{ source: Host; destination: Host }> {
  const [one, other] = hosts;
  const [here, there] = await Promise.all([one.virsh.domstate(guest.name), other.virsh.domstate(guest.name)]);
  if (here === "running" && there === undefined) return { source: one, destination: other };
  if (there === "running" && here === undefined) return { source: other, destination: one };
  throw new Error(`the guest is ${here ?? "absent"} on ${one.name} and ${there ?? "absent"} on ${other.name}`);
}

/** Times a process and the guest's silence in it, and holds it to have moved a guest that counts on. */
async function timed(
  bench: Bench,
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Crossing & { stdout: string }> {
  const { guest } = bench;
  const { destination } = await whereIs(bench);
  await guest.witness.waitForTicks(ticksAfter, tickTimeoutMs);
  guest.witness.reset();
  const fromMs = performance.now();
  const { code, stdout, stderr } = await run(command, env);
  const totalMs = performance.now() - fromMs;
  if (code !== 0) throw new Error(`${command.join(" ")} exited ${code}\n${stdout}\n${stderr}`);
  await guest.witness.waitForTicks(ticksAfter, tickTimeoutMs);
  const gap = guest.witness.largestGap;
  if (gap === undefined || guest.witness.violations.length > 0)
    throw new Error(`the guest did not count on: ${JSON.stringify(guest.witness.violations.slice(0, 3))}`);
  const now = await whereIs(bench);
  if (now.source !== destination) throw new Error(`${command.join(" ")} moved nothing`);
  return { totalMs, blackout: { ms: gap.ms, observerMs: gap.observerMs }, stdout };
}

function run(command: readonly string[], env: Readonly<Record<string, string>>) {
  const [file = "", ...words] = command;
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve, reject) => {
    const child = spawn(file, words, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.once("error", reject);
    child.once("close", (code) => resolve({ code: code ?? 128, stdout, stderr }));
  });
}

export async function byVirsh(bench: Bench): Promise<Crossing> {
  const { source, destination } = await whereIs(bench);
  const words = ["migrate", "--live", "--persistent", "--undefinesource", "--unsafe", bench.guest.name];
  const { totalMs, blackout } = await timed(bench, ["virsh", "-q", "-c", source.uri, ...words, destination.uri]);
  return { totalMs, blackout };
}

const script = join(import.meta.dirname, "usual-script.sh");

export async function byScript(bench: Bench): Promise<ScriptCrossing> {
  const { source, destination } = await whereIs(bench);
  const folder = await mkdtemp(join(tmpdir(), "vmferry-bench-"));
  try {
    const { stdout, ...crossing } = await timed(bench, [script, bench.guest.name, source.uri, destination.uri, folder]);
    return { ...crossing, ...scriptSchema.parse(JSON.parse(stdout.trim().split("\n").at(-1) ?? "")) };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

export const cliPath = join(import.meta.dirname, "../../dist/vmferry.mjs");

export async function byVmferry(bench: Bench, accept: readonly string[] = []): Promise<VmferryCrossing> {
  const { destination } = await whereIs(bench);
  const { fleet, guest, background } = bench;
  const words = ["migrate", guest.name, "--to", destination.name, "--json"];
  if (accept.length > 0) words.push("--accept", accept.join(","));
  const before = await readStoreCounts(fleet);
  const fromMs = performance.now();
  const { stdout, ...crossing } = await timed(bench, [process.execPath, cliPath, ...words], fleet.env);
  const stores = causedBy(between(before, await readStoreCounts(fleet)), background, performance.now() - fromMs);
  return { ...crossing, stores, ...storyOf(migrationSchema.parse(JSON.parse(stdout))) };
}

function storyOf(migration: Migration) {
  const { timeline, createdAt, endedAt, status, progress, bundle } = migration;
  const steps = timeline.flatMap(({ step, side, ms }) => (ms === null ? [] : [{ step, side, ms }]));
  const performMs = steps.find(({ step }) => step === "perform")?.ms;
  if (status !== "completed" || endedAt === null || performMs === undefined)
    throw new Error(`the migration is ${status}: ${JSON.stringify(migration.error)}`);
  return {
    requestToEndMs: Date.parse(endedAt) - Date.parse(createdAt),
    performMs,
    libvirtDowntimeMs: progress.blackoutMs,
    steps,
    bundleBytes: bundle?.bytes ?? 0,
    bundlePlainBytes: bundle?.plainBytes ?? 0,
  };
}
