/** `vmferry check`: what stands in the way, all of it at once. Exit 0 allowed, 2 only risks that could be accepted, 3 blocked. */
import { type Check, checkSchema } from "../http/check-resource.ts";
import type { Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { tableLines } from "./table.ts";
import type { Terminal } from "./terminal.ts";

/** The codes given by --accept, each by itself or separated by commas. */
export const acceptedCodes = (texts: readonly string[]): string[] => [
  ...new Set(
    texts
      .flatMap((text) => text.split(","))
      .map((code) => code.trim())
      .filter((code) => code !== ""),
  ),
];

type Findings = Pick<Check, "blockers" | "risks" | "notes">;

function printFindings(terminal: Terminal, found: Findings): void {
  for (const [word, findings] of [
    ["blocker", found.blockers],
    ["risk   ", found.risks],
    ["note   ", found.notes],
  ] as const)
    for (const { code, side, cause, action } of findings) {
      terminal.out(`${word}  ${code} (${side}): ${cause}`);
      terminal.out(`         next: ${action}`);
    }
}

function exitOfCheck(check: Check): number {
  if (check.allowed) return exitCodes.ok;
  if (check.blockers.length > 0) return exitCodes.blocked;
  if (check.destination !== null) return exitCodes.risks;
  return check.destinations.some(({ blockers }) => blockers.length === 0) ? exitCodes.risks : exitCodes.blocked;
}

export const check: Run = async (context, invocation) => {
  const { terminal } = context;
  const to = invocation.text("to");
  const from = invocation.text("from");
  const client = await context.connect();
  terminal.status(`asking the hosts about ${invocation.positional("DOMAIN")} ...`);
  const result = await client.ask("/v1/checks", checkSchema, {
    method: "POST",
    body: {
      domain: invocation.positional("DOMAIN"),
      ...(to === undefined ? {} : { destination: to }),
      ...(from === undefined ? {} : { source: from }),
      accept: acceptedCodes(invocation.texts("accept")),
    },
  });
  terminal.status(null);
  const exit = exitOfCheck(result);
  if (invocation.flag("json")) {
    terminal.json(result);
    return exit;
  }
  const carries =
    result.carries === null
      ? "not known"
      : `${result.carries.snapshots} snapshots, ${result.carries.checkpoints} checkpoints`;
  terminal.out(`domain   ${result.domain.name} (${result.domain.uuid}) on ${result.source}, carries ${carries}`);
  printFindings(terminal, result);
  if (result.destination === null && result.destinations.length > 0)
    for (const line of tableLines(
      ["DESTINATION", "ALLOWED", "BECAUSE"],
      result.destinations.map(({ host, allowed, blockers, risks }) => [
        host,
        allowed ? "yes" : blockers.length > 0 ? "no" : "risks",
        [...blockers, ...risks].map(({ code, cause }) => `${code}: ${cause}`).join("  "),
      ]),
    ))
      terminal.out(line);
  const where = result.destination ?? "any host";
  if (exit === exitCodes.ok) terminal.out(`allowed  ${result.domain.name} may move to ${where}`);
  else if (exit === exitCodes.blocked)
    terminal.err(`blocked: ${result.domain.name} cannot move to ${where}; remove what blocks and check again.`);
  else {
    const codes = [...new Set((result.destination === null ? [] : result.risks).map(({ code }) => code))];
    terminal.err(
      `risks: ${result.domain.name} may move to ${where} once they are accepted${codes.length > 0 ? `: --accept ${codes.join(",")}` : "."}`,
    );
  }
  return exit;
};
