/** Commands that run something on this machine: the control plane, the shim, the lab. Each is loaded only when it runs. */
import type { Invocation, Run } from "./command.ts";

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

export const shim: Run = async ({ terminal, signal }, invocation) => {
  const { runShim } = await import("#shim/main");
  return runShim({
    url: invocation.required("url"),
    ...optional(invocation, "joinToken", "join"),
    ...optional(invocation, "name", "name"),
    ...optional(invocation, "stateDir", "state"),
    ...optional(invocation, "libvirt", "libvirt"),
    ...optional(invocation, "migrationAddress", "migration-address"),
    ...optional(invocation, "peerListen", "peer-listen"),
    allowPaths: invocation.texts("allow-path"),
    out: terminal.out,
    err: terminal.err,
    signal,
  });
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
