/**
 * systemd-logind as the shim sees it: what it says of a shutdown, and when it says something. Through `busctl`, which systemd brings along: what is needed
 * is three properties and a hint that they have changed, and no D-Bus library is worth that in a process that should stay small.
 *
 * The hint is never read: whatever comes, the properties are asked for anew.
 */
import { execFile, spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import * as z from "zod/mini";
import type { Shutting } from "./shutdown-plan.ts";

const run = promisify(execFile);

const object = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"] as const;
const match = "type='signal',sender='org.freedesktop.login1',path='/org/freedesktop/login1'";

/** logind answers from memory; a bus that takes this long is not one. */
const answerMsMax = 5_000;
const answerBytesMax = 64 * 1024;

/** What `shutdown +N` leaves behind (logind 252 has a property for it and no signal). */
export const scheduledPath = "/run/systemd/shutdown/scheduled";

const propertiesSchema = z.tuple([
  z.object({ type: z.literal("b"), data: z.boolean() }),
  z.object({ type: z.literal("(st)"), data: z.tuple([z.string(), z.number()]) }),
  z.object({ type: z.literal("t"), data: z.number() }),
]);

export class LogindAbsentError extends Error {
  override readonly name = "LogindAbsentError";
}

/** Of `ScheduledShutdown` µs: nothing is scheduled, by different versions. */
const isNever = (micros: number): boolean => micros === 0 || micros >= Number.MAX_SAFE_INTEGER;

/** Asks logind. Throws `LogindAbsentError` where none answers; never starts one. */
export async function readShutting(): Promise<Shutting> {
  const args = ["--system", "--json=short", "--auto-start=no", "get-property", ...object];
  let text: string;
  try {
    const asked = ["PreparingForShutdown", "ScheduledShutdown", "InhibitDelayMaxUSec"];
    const bounds = { timeout: answerMsMax, maxBuffer: answerBytesMax };
    ({ stdout: text } = await run("busctl", [...args, ...asked], bounds));
  } catch (error) {
    throw new LogindAbsentError(causeOf(error));
  }
  return shuttingOf(text);
}

/** The three properties as `busctl --json=short` prints them, one a line. Throws `LogindAbsentError` for anything else. */
export function shuttingOf(text: string): Shutting {
  let lines: unknown;
  try {
    const parts = text.split("\n").filter((line) => line.trim() !== "");
    lines = parts.map((line): unknown => JSON.parse(line));
  } catch {
    throw new LogindAbsentError("busctl answered something else than JSON");
  }
  const read = propertiesSchema.safeParse(lines);
  if (!read.success) throw new LogindAbsentError("its properties are not those of a logind that is known here");
  const [preparing, { data: scheduled }, delay] = read.data;
  const [kind, micros] = scheduled;
  // A rehearsal (`shutdown -k`) shuts nothing down. Newer versions do not tell it from the real thing.
  const isReal = kind !== "" && !kind.startsWith("dry-");
  return {
    preparing: preparing.data,
    kind: isReal ? kind.slice(0, 32) : null,
    scheduledMs: isReal && !isNever(micros) ? Math.floor(micros / 1000) : null,
    delayMsMax: Math.floor(delay.data / 1000),
  };
}

/** The text of what `shutdown +N` leaves behind; null: nothing is scheduled. */
export const readScheduled = (path = scheduledPath): Promise<string | null> => readFile(path, "utf8").catch(() => null);

/** Calls `onHint` whenever logind says anything, until `signal` or until the bus ends it. Resolves with why it ended. */
export function watchLogind(onHint: () => void, signal: AbortSignal): Promise<string> {
  const child = spawn("busctl", ["--system", "--json=short", "monitor", `--match=${match}`], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const stop = () => void child.kill("SIGTERM");
  if (signal.aborted) stop();
  signal.addEventListener("abort", stop, { once: true });
  let said = "";
  child.stdout.on("data", onHint);
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said = `${said}${text}`.slice(-500);
    // What happened before it listened is asked for as well.
    onHint();
  });
  return new Promise((resolve) => {
    const ended = (cause: string) => {
      signal.removeEventListener("abort", stop);
      resolve(cause);
    };
    child.once("error", (error) => ended(error.message));
    child.once("close", (code, by) => ended(said.trim() === "" ? `busctl ended with ${by ?? code}` : said.trim()));
  });
}

function causeOf(error: unknown): string {
  const { stderr, message } = z
    .object({ stderr: z._default(z.string(), ""), message: z._default(z.string(), "not an error") })
    .parse(error instanceof Error ? { stderr: Reflect.get(error, "stderr"), message: error.message } : {});
  const line = stderr.trim().split("\n").at(-1) ?? "";
  return (line === "" ? message : line).slice(0, 300);
}
