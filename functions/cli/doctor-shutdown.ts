/** Doctor's look at this host's own shutdown: does systemd-logind run, and does it hold a shutdown long enough for domains to be moved. Reads only. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import * as z from "zod/mini";
import type { Diagnosis } from "./doctor-command.ts";
import { durationText } from "./terminal.ts";

const run = promisify(execFile);
const waitMsMax = 5_000;

/** Shorter than this moves no domain of usual size. */
const delayMsMin = 60_000;
/** From this version of systemd on a `block` lock holds root as well (its NEWS). */
const heldRootSince = 257;

const delaySchema = z.object({ type: z.literal("t"), data: z.number() });
const manager = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"] as const;

export async function checkShutdown(): Promise<Diagnosis> {
  const check = "shutdown";
  try {
    const args = ["--system", "--json=short", "--auto-start=no", "get-property", ...manager, "InhibitDelayMaxUSec"];
    const { stdout } = await run("busctl", args, { timeout: waitMsMax });
    const delayMs = delaySchema.parse(JSON.parse(stdout)).data / 1000;
    const version = /^systemd (\d+)/.exec((await run("busctl", ["--version"], { timeout: waitMsMax })).stdout)?.[1];
    const root = Number(version ?? 0) >= heldRootSince ? "also root's" : "but not root's";
    const isLong = delayMs >= delayMsMin;
    return {
      check,
      verdict: isLong ? "ok" : "warn",
      says: `systemd-logind ${version ?? ""} refuses a shutdown while domains run, ${root}, and holds one that passes for ${durationText(delayMs)} at most`,
      action: isLong
        ? ""
        : "Raise InhibitDelayMaxSec: infra/systemd/logind-vmferry.conf goes to /etc/systemd/logind.conf.d/50-vmferry.conf; then systemctl restart systemd-logind.",
    };
  } catch {
    return {
      check,
      verdict: "warn",
      says: "no systemd-logind answers: a shutdown of this host is neither held nor told",
      action: "Empty this host before it is shut down: vmferry evacuate HOST.",
    };
  }
}
