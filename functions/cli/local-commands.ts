/** Commands that run something on this machine: the control plane, the shim, the lab. Each is loaded only when it runs. */
import { type Invocation, type Run, usageError } from "./command.ts";

/** An option under the name that the callee gives it; nothing when it was not given. */
function optional<K extends string>(invocation: Invocation, key: K, name: string): Partial<Record<K, string>> {
  const value = invocation.text(name);
  const found: Partial<Record<K, string>> = {};
  if (value !== undefined) found[key] = value;
  return found;
}

export const up: Run = async ({ terminal, signal, env }, invocation) => {
  const { runUp } = await import("./up.ts");
  return runUp({
    ...optional(invocation, "listen", "listen"),
    ...optional(invocation, "dataDir", "data"),
    ...optional(invocation, "dynamodb", "dynamodb"),
    ...optional(invocation, "s3", "s3"),
    env,
    out: terminal.out,
    err: terminal.err,
    signal,
  });
};

/** With the same variables as the shim's own program: a unit file that names VMFERRY_URL works with either. */
export const shim: Run = async ({ terminal, signal, env }, invocation) => {
  const { runShim } = await import("#shim/main");
  const { shimOptions } = await import("#shim/command-line");
  const allowPaths = invocation.texts("allow-path");
  const labels = invocation.texts("label");
  const values = {
    url: (invocation.text("url") ?? env.VMFERRY_URL) || invocation.required("url"),
    join: invocation.text("join"),
    name: invocation.text("name"),
    state: invocation.text("state"),
    libvirt: invocation.text("libvirt"),
    "migration-address": invocation.text("migration-address"),
    "peer-listen": invocation.text("peer-listen"),
    "peer-advertise": invocation.text("peer-advertise"),
    "shutdown-budget": invocation.text("shutdown-budget"),
    "shutdown-lock": invocation.text("shutdown-lock"),
    ...(allowPaths.length > 0 ? { "allow-path": allowPaths } : {}),
    ...(labels.length > 0 ? { label: labels } : {}),
  };
  let options: ReturnType<typeof shimOptions>;
  try {
    options = shimOptions(values, env);
  } catch (error) {
    throw usageError(`${error instanceof Error ? error.message : "these options are not understood"}.`, ["shim"]);
  }
  return runShim({ ...options, out: terminal.out, err: terminal.err, signal });
};

export const labUp: Run = async ({ terminal }, invocation) => {
  const lab = await import("#lab/command");
  const hosts = invocation.count("hosts");
  const dir = invocation.text("dir");
  return lab.labUp({
    ...(hosts === undefined ? {} : { hosts }),
    ...(dir === undefined ? {} : { dir }),
    guest: invocation.flag("guest"),
    install: invocation.flag("install"),
    json: invocation.flag("json"),
    out: terminal.out,
    err: terminal.err,
  });
};

export const labDown: Run = async ({ terminal }, invocation) => {
  const lab = await import("#lab/command");
  const dir = invocation.text("dir");
  return lab.labDown({
    ...(dir === undefined ? {} : { dir }),
    json: invocation.flag("json"),
    out: terminal.out,
    err: terminal.err,
  });
};
