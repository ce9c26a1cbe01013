/** Doctor's look at the control plane: is it reached, and do the clocks agree. No protocol needs them to; people reading two logs do. */
import { healthSchema } from "../http/health-resource.ts";
import type { Config } from "./config.ts";
import type { Diagnosis } from "./doctor-command.ts";
import { durationText } from "./terminal.ts";

const skewMsMax = 5_000;
const waitMsMax = 10_000;

export async function checkClock(config: Config | null, path: string, signal: AbortSignal): Promise<Diagnosis> {
  const check = "control plane";
  if (config === null)
    return {
      check,
      verdict: "unknown",
      says: `neither VMFERRY_URL nor ${path} names one`,
      action: "Set VMFERRY_URL and VMFERRY_TOKEN to have it looked at.",
    };
  try {
    const before = Date.now();
    const response = await fetch(`${config.url}/healthz`, {
      signal: AbortSignal.any([signal, AbortSignal.timeout(waitMsMax)]),
      redirect: "error",
    });
    const { at } = healthSchema.parse(await response.json());
    const after = Date.now();
    const there = Date.parse(at);
    // It was somewhere between the two readings: only what is outside of them is a difference.
    const skewMs = Math.max(0, before - there, there - after);
    return {
      check,
      verdict: skewMs > skewMsMax ? "warn" : "ok",
      says: `${config.url} answers, clocks differ by ${skewMs === 0 ? "nothing that can be seen" : durationText(skewMs)}`,
      action: skewMs > skewMsMax ? "Let both follow NTP (timedatectl)." : "",
    };
  } catch (error) {
    signal.throwIfAborted();
    const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    return {
      check,
      verdict: "fail",
      says: `${config.url} does not answer: ${inner instanceof Error ? inner.message : "unknown"}`,
      action: "Look whether it runs and whether this host may reach it.",
    };
  }
}
