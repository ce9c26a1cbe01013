/** The shim's own command line, for the bundle that runs without the rest of vmferry: arguments first, then VMFERRY_*. */
import { parseArgs } from "node:util";
import { labelKeySchema, labelValueSchema } from "#protocol/message";
import type { ShimOptions } from "./main.ts";

export const shimUsage = `Usage: vmferry shim --url URL [--join TOKEN] [--name NAME] [--state DIR] [--libvirt SOCKET|URI]
                    [--migration-address ADDR] [--peer-listen ADDR:PORT] [--peer-advertise ADDR:PORT]
                    [--allow-path DIR ...] [--label KEY=VALUE ...]
                    [--shutdown-budget 15m] [--shutdown-lock block|block-weak]
Each option may also come from the environment: VMFERRY_URL, VMFERRY_JOIN, VMFERRY_NAME, VMFERRY_STATE,
VMFERRY_LIBVIRT, VMFERRY_MIGRATION_ADDRESS, VMFERRY_PEER_LISTEN, VMFERRY_PEER_ADVERTISE, VMFERRY_ALLOW_PATH (separated by colons),
VMFERRY_LABELS (separated by commas), VMFERRY_SHUTDOWN_BUDGET, VMFERRY_SHUTDOWN_LOCK.`;

export type ParsedArguments = { help: true } | { help: false; options: Omit<ShimOptions, "out" | "err" | "signal"> };

/** The options of the shim by their names on the command line. */
export interface ShimValues {
  url?: string | undefined;
  join?: string | undefined;
  name?: string | undefined;
  state?: string | undefined;
  libvirt?: string | undefined;
  "migration-address"?: string | undefined;
  "peer-listen"?: string | undefined;
  "peer-advertise"?: string | undefined;
  "allow-path"?: string[] | undefined;
  label?: string[] | undefined;
  "shutdown-budget"?: string | undefined;
  "shutdown-lock"?: string | undefined;
}

/** Throws an Error whose sentence names the wrong option. */
export function parseShimArguments(
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): ParsedArguments {
  const { values } = parseArgs({
    args: [...args],
    strict: true,
    allowPositionals: false,
    options: {
      url: { type: "string" },
      join: { type: "string" },
      name: { type: "string" },
      state: { type: "string" },
      libvirt: { type: "string" },
      "migration-address": { type: "string" },
      "peer-listen": { type: "string" },
      "peer-advertise": { type: "string" },
      "allow-path": { type: "string", multiple: true },
      label: { type: "string", multiple: true },
      "shutdown-budget": { type: "string" },
      "shutdown-lock": { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help === true) return { help: true };
  return { help: false, options: shimOptions(values, env) };
}

/** Options as they were given, each falling back to its variable. Throws an Error when there is no URL. */
export function shimOptions(
  values: ShimValues,
  env: Readonly<Record<string, string | undefined>>,
): Omit<ShimOptions, "out" | "err" | "signal"> {
  const given = (value: string | undefined, name: string) => {
    const found = value ?? env[name];
    return found === undefined || found === "" ? undefined : found;
  };
  const optional = <K extends string>(key: K, value: string | undefined): Partial<Record<K, string>> => {
    const found: Partial<Record<K, string>> = {};
    if (value !== undefined) found[key] = value;
    return found;
  };
  const url = given(values.url, "VMFERRY_URL");
  if (url === undefined) throw new Error("--url URL is missing");
  return {
    url,
    ...optional("joinToken", given(values.join, "VMFERRY_JOIN")),
    ...optional("name", given(values.name, "VMFERRY_NAME")),
    ...optional("stateDir", given(values.state, "VMFERRY_STATE")),
    ...optional("libvirt", given(values.libvirt, "VMFERRY_LIBVIRT")),
    ...optional("migrationAddress", given(values["migration-address"], "VMFERRY_MIGRATION_ADDRESS")),
    ...optional("peerListen", given(values["peer-listen"], "VMFERRY_PEER_LISTEN")),
    ...optional("peerAdvertise", given(values["peer-advertise"], "VMFERRY_PEER_ADVERTISE")),
    ...shutdownOf(
      given(values["shutdown-budget"], "VMFERRY_SHUTDOWN_BUDGET"),
      given(values["shutdown-lock"], "VMFERRY_SHUTDOWN_LOCK"),
    ),
    labels: labelsOf(values.label ?? (env.VMFERRY_LABELS ?? "").split(",").filter((text) => text.trim() !== "")),
    allowPaths: values["allow-path"] ?? (env.VMFERRY_ALLOW_PATH ?? "").split(":").filter((path) => path !== ""),
  };
}

/** Longer than an evacuation takes; who needs more evacuates before. */
const shutdownBudgetMsMax = 24 * 3_600_000;
const unitMs: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: 3_600_000 };

/** How this host's own shutdown is held. Throws an Error whose sentence names the wrong one. */
function shutdownOf(
  budget: string | undefined,
  lock: string | undefined,
): Pick<ShimOptions, "shutdownBudgetMs" | "shutdownLock"> {
  const found: Pick<ShimOptions, "shutdownBudgetMs" | "shutdownLock"> = {};
  if (budget !== undefined) {
    const [, number = "", unit = "s"] = /^(\d{1,5})(?:([smh])|(?<=^0))$/.exec(budget) ?? [];
    const ms = Number(number) * (unitMs[unit] ?? 0);
    if (number === "" || ms > shutdownBudgetMsMax)
      throw new Error(
        `--shutdown-budget takes a time as in 90s, 15m or 2h, up to 24h, or 0, not "${budget.slice(0, 80)}"`,
      );
    found.shutdownBudgetMs = ms;
  }
  if (lock !== undefined) {
    if (lock !== "block" && lock !== "block-weak")
      throw new Error(`--shutdown-lock is block or block-weak, not "${lock.slice(0, 80)}"`);
    found.shutdownLock = lock;
  }
  return found;
}

/** Labels of one host; far more than people give, and few enough for a heartbeat. */
const labelsMax = 64;

/** KEY=VALUE each. Throws an Error whose sentence names the wrong one; of the same key twice, too: which was meant is not guessed. */
export function labelsOf(texts: readonly string[]): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const text of texts) {
    const at = text.indexOf("=");
    const key = text.slice(0, Math.max(at, 0)).trim();
    const value = text.slice(at + 1).trim();
    if (at === -1 || !labelKeySchema.safeParse(key).success || !labelValueSchema.safeParse(value).success)
      throw new Error(
        `--label takes KEY=VALUE (a key of letters, digits and ._/- up to 63), not "${text.slice(0, 80)}"`,
      );
    if (Object.hasOwn(labels, key)) throw new Error(`--label has the key ${key} twice`);
    labels[key] = value;
  }
  if (texts.length > labelsMax) throw new Error(`--label was given ${texts.length} times; ${labelsMax} is the most`);
  return labels;
}

/** Runs the shim as a process of its own; resolves with its exit code. A second signal ends it at once. */
export async function runFromArguments(run: (options: ShimOptions) => Promise<number>): Promise<number> {
  const out = (line: string) => void process.stdout.write(`${line}\n`);
  const err = (line: string) => void process.stderr.write(`${line}\n`);
  let parsed: ParsedArguments;
  try {
    // `vmferry-shim shim ...` is taken as well, so that both names of the program accept the same line.
    const args = process.argv.slice(process.argv[2] === "shim" ? 3 : 2);
    parsed = parseShimArguments(args, process.env);
  } catch (error) {
    err(`vmferry shim: usage: ${error instanceof Error ? error.message : "wrong arguments"}`);
    err(shimUsage);
    return 64;
  }
  if (parsed.help) {
    out(shimUsage);
    return 0;
  }
  const stop = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.on(name, () => {
      if (stop.signal.aborted) process.exit(130);
      stop.abort();
    });
  return run({ ...parsed.options, out, err, signal: stop.signal });
}
