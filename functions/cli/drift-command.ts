/** `vmferry drift`: where hosts and records disagree. Exit 0 when nobody has to act (notes may be said), 2 otherwise. */
import { driftReportSchema } from "../http/drift.ts";
import type { Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";

export const drift: Run = async ({ terminal, connect }, invocation) => {
  const report = await (await connect()).ask("/v1/drift", driftReportSchema);
  const serious = report.drifts.filter(({ severity }) => severity !== "note");
  if (invocation.flag("json")) terminal.json(report);
  else {
    for (const { severity, code, domain, hosts, cause, action, repair } of report.drifts) {
      const what = [domain?.name, hosts.join(", ")].filter((text) => text !== undefined && text !== "").join(" on ");
      terminal.out(`${severity.padEnd(8)}  ${code.padEnd(17)}  ${what}`);
      terminal.out(`          ${cause}`);
      terminal.out(`          ${repair === null ? "next" : "by itself"}: ${action}`);
    }
    const looked = `${report.hosts} hosts and ${report.migrations} migrations at ${report.at}`;
    terminal.err(`${report.drifts.length === 0 ? "No drift" : `${report.drifts.length} found`}: ${looked}.`);
    if (!report.complete)
      terminal.err("The history is longer than what is looked at once; its oldest part was left out.");
  }
  return serious.length === 0 ? exitCodes.ok : exitCodes.risks;
};
