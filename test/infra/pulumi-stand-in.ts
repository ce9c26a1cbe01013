/**
 * Stands in for the program `pulumi` when the real `sst deploy` runs: it makes the stack's file, runs the program that SST
 * has built with mocks in place of the clouds, and reports the end in the words of Pulumi's event log. It exists so that
 * everything of a deployment that is not Pulumi's engine or a cloud is the real thing.
 *
 * VMFERRY_PLAN names the file that takes the types and names of the resources asked for.
 */
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import * as z from "zod/mini";
import { answered, made, pulumiRuntime, settled } from "../../infra/check/resources.ts";

const [command, ...rest] = process.argv.slice(2);
const stackName = (name: string) => name.split("/").at(-1) ?? name;
const option = (name: string) => rest[rest.indexOf(name) + 1] ?? "";
const record = z.record(z.string(), z.unknown());

/** The program changes into the working copy; the stack's files are where Pulumi was started. */
const home = process.cwd();

/** Pulumi's file of a stack's state, version 3, with nothing in it but the stack and its outputs. */
function writeStack(stack: string, outputs: unknown): void {
  const path = join(home, ".pulumi/stacks/vmferry", `${stackName(stack)}.json`);
  mkdirSync(dirname(path), { recursive: true });
  const type = "pulumi:pulumi:Stack";
  const urn = `urn:pulumi:${stackName(stack)}::vmferry::${type}::vmferry-${stackName(stack)}`;
  const manifest = { time: "2026-01-01T00:00:00Z", magic: "", version: "v3.215.0" };
  const resources = [{ urn, custom: false, type, outputs }];
  writeFileSync(path, JSON.stringify({ version: 3, checkpoint: { stack, latest: { manifest, resources } } }));
}

async function up(): Promise<void> {
  const main = /^main: (.+)$/m.exec(readFileSync("Pulumi.yaml", "utf8"))?.[1];
  const plan = process.env.VMFERRY_PLAN;
  if (main === undefined || plan === undefined) throw new Error("no program, or VMFERRY_PLAN is not set");
  const { runtime } = z.object({ runtime: pulumiRuntime }).parse(createRequire(main)("@pulumi/pulumi"));
  const stack = option("--stack");
  await runtime.setMocks(
    {
      newResource({ type, name, inputs }: { type: string; name: string; inputs: unknown }) {
        appendFileSync(plan, `${type} ${name}\n`);
        return { id: `${name}-id`, state: made(type, name, record.parse(inputs)) };
      },
      call: ({ token, inputs }: { token: string; inputs: unknown }) => answered(token, record.parse(inputs)),
    },
    "vmferry",
    stackName(stack),
    false,
  );
  const program = async () =>
    z.looseObject({ default: z.unknown() }).parse({ ...(await import(pathToFileURL(main).href)) }).default;
  const outputs = record.parse(await settled(await runtime.runInPulumiStack(program)));
  const told: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(outputs)) told[name] = await settled(value);
  process.once("beforeExit", () => {
    writeStack(stack, told);
    const type = "aws:dynamodb/table:Table";
    const metadata = { op: "create", urn: `urn:pulumi:${stackName(stack)}::vmferry::${type}::Store`, type, new: null };
    // One resource that was made, so that SST tells the end of a deployment that changed something.
    report({ resourcePreEvent: { metadata } });
    report({ resOutputsEvent: { metadata } });
    report({ summaryEvent: { resourceChanges: { create: 1 }, durationSeconds: 1, PolicyPacks: {} } });
    report({ cancelEvent: {} });
  });
}

let sequence = 0;
/** One line of Pulumi's event log, which SST follows. */
function report(event: Record<string, unknown>): void {
  sequence += 1;
  appendFileSync(option("--event-log"), `${JSON.stringify({ sequence, timestamp: 0, ...event })}\n`);
}

if (command === "up")
  process.once("uncaughtExceptionMonitor", (error) => {
    const message = `Running program failed with an unhandled exception:\n${error.stack}`;
    report({ diagnosticEvent: { message, color: "never", severity: "error" } });
  });

if (command === "version") console.log("v3.215.0");
else if (command === "stack" && rest[0] === "init") writeStack(rest[1] ?? "", {});
else if (command === "up") await up();
else if (command !== "plugin" && command !== "stack" && command !== "config")
  throw new Error(`pulumi ${process.argv.slice(2).join(" ")}: not expected of a deployment`);
