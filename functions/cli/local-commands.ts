/** Commands that run something on this machine: the control plane, the shim, the lab. Each is loaded only when it runs. */
import type { Run } from "./command.ts";

export const up: Run = async ({ terminal, signal }, invocation) => {
  const { runUp } = await import("./up.ts");
  const listen = invocation.text("listen");
  const dataDir = invocation.text("data");
  return runUp({
    ...(listen === undefined ? {} : { listen }),
    ...(dataDir === undefined ? {} : { dataDir }),
    out: terminal.out,
    err: terminal.err,
    signal,
  });
};

export const shim: Run = async ({ terminal, signal }, invocation) => {
  const { runShim } = await import("#shim/main");
  const optional = <K extends string>(key: K, name: string): Partial<Record<K, string>> => {
    const value = invocation.text(name);
    const found: Partial<Record<K, string>> = {};
    if (value !== undefined) found[key] = value;
    return found;
  };
  return runShim({
    url: invocation.required("url"),
    ...optional("joinToken", "join"),
    ...optional("name", "name"),
    ...optional("stateDir", "state"),
    ...optional("libvirt", "libvirt"),
    ...optional("migrationAddress", "migration-address"),
    ...optional("peerListen", "peer-listen"),
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
