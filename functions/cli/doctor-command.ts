/** `vmferry doctor`: every check is made and said, also after the first that fails. Exit 0 when none failed, 1 otherwise. */
import type { Run } from "./command.ts";
import { configPath, loadConfig } from "./config.ts";
import { checkClock } from "./doctor-clock.ts";
import { checkLibvirt } from "./doctor-libvirt.ts";
import { checkAddress, checkCpu, checkLockManager, checkNode, checkPorts, checkStorage } from "./doctor-machine.ts";
import { checkShutdown } from "./doctor-shutdown.ts";
import { exitCodes } from "./exit-code.ts";

/** One thing that was looked at. `warn`: works, but a person should know. */
export interface Diagnosis {
  check: string;
  verdict: "ok" | "warn" | "fail" | "unknown";
  says: string;
  /** What to do; empty when nothing. */
  action: string;
}

export const doctor: Run = async (context, invocation) => {
  const { terminal, env, signal } = context;
  terminal.status("looking ...");
  const libvirt = await checkLibvirt(invocation.text("libvirt"), signal);
  const config = await loadConfig(env).catch(() => null);
  const parts = await Promise.all([
    checkNode(),
    checkCpu(),
    checkPorts(),
    checkAddress(invocation.text("migration-address")),
    checkStorage([...invocation.texts("dir"), ...libvirt.storageDirs]),
    checkLockManager(),
    checkShutdown(),
    checkClock(config, configPath(env), signal),
  ]);
  const diagnoses = [...libvirt.diagnoses, ...parts];
  const failed = diagnoses.filter(({ verdict }) => verdict === "fail");
  terminal.status(null);
  if (invocation.flag("json")) terminal.json({ fit: failed.length === 0, checks: diagnoses });
  else {
    for (const { check, verdict, says, action } of diagnoses) {
      terminal.out(`${verdict.padEnd(7)}  ${check.padEnd(15)}  ${says}`);
      if (action !== "") terminal.out(`${" ".repeat(26)}next: ${action}`);
    }
    if (failed.length === 0) terminal.out("This host is fit.");
    else terminal.err(`This host is not fit: ${failed.map(({ check }) => check).join(", ")}.`);
  }
  return failed.length === 0 ? exitCodes.ok : exitCodes.rolledBack;
};
