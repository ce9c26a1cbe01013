/**
 * What a user types, with the real `sst`: secrets set, then `sst deploy`. Real are the program, its bundler, its state and
 * its secrets; stand-ins are Pulumi's engine and the clouds. SST writes beside what it reads, so it reads a copy.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { platform, root } from "../../infra/check/platform.ts";
import { lambdaNames } from "../../infra/lambda-build.ts";
import { type CloudStandIn, openClouds } from "./cloud-stand-in.ts";
import { secretValues } from "./plan.ts";

const sstMsMax = 180_000;

let folder: string;
let clouds: CloudStandIn;

/** A working copy as far as SST reads it; its installed platform is the checkout's. */
function copyTree(): string {
  const tree = join(folder, "tree");
  mkdirSync(join(tree, ".sst"), { recursive: true });
  for (const name of [
    "infra",
    "functions",
    "shim",
    "package.json",
    "package-lock.json",
    "sst.config.ts",
    "tsconfig.json",
  ])
    cpSync(join(root, name), join(tree, name), { recursive: true });
  symlinkSync(join(root, "node_modules"), join(tree, "node_modules"));
  const modules = join(platform, "node_modules");
  cpSync(join(root, ".sst/provider-lock.json"), join(tree, ".sst/provider-lock.json"));
  cpSync(platform, join(tree, ".sst/platform"), { recursive: true, filter: (from) => from !== modules });
  symlinkSync(modules, join(tree, ".sst/platform/node_modules"));
  mkdirSync(join(tree, "dist"));
  for (const name of ["worker", ...lambdaNames])
    writeFileSync(join(tree, "dist", `${name}.mjs`), "export default {};\nexport class HostSocket {}\n");
  return tree;
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "vmferry-deploy-"));
  clouds = await openClouds();
  copyTree();
  const bin = join(folder, "config/sst/bin");
  mkdirSync(bin, { recursive: true });
  const standIn = join(root, "test/infra/pulumi-stand-in.ts");
  writeFileSync(join(bin, "pulumi"), `#!/bin/sh\nexec "${process.execPath}" "${standIn}" "$@"\n`);
  chmodSync(join(bin, "pulumi"), 0o755);
});

after(() => {
  clouds.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Ended {
  code: number | null;
  text: string;
}

/** Runs the real program; `input` goes to its standard input. */
function sst(args: string[], input = "", env: Record<string, string> = {}): Promise<Ended> {
  const own = Object.entries(process.env).filter(([name]) => !/^(?:VMFERRY_|AWS_|CLOUDFLARE_|SST_)/.test(name));
  const child = spawn(join(root, "node_modules/.bin/sst"), args, {
    cwd: join(folder, "tree"),
    timeout: sstMsMax,
    env: {
      ...Object.fromEntries(own),
      XDG_CONFIG_HOME: join(folder, "config"),
      SST_NO_BUN: "1",
      DO_NOT_TRACK: "1",
      AWS_ENDPOINT_URL: clouds.url,
      AWS_REGION: "eu-test-1",
      AWS_ACCESS_KEY_ID: "id",
      AWS_SECRET_ACCESS_KEY: "key",
      CLOUDFLARE_API_BASE_URL: `${clouds.url}/cloudflare`,
      CLOUDFLARE_API_TOKEN: "token",
      CLOUDFLARE_DEFAULT_ACCOUNT_ID: "account",
      VMFERRY_DIST: "dist",
      ...env,
    },
  });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (part) => (text += part));
  child.stdin.end(input);
  return new Promise((resolve, reject) => child.once("error", reject).once("close", (code) => resolve({ code, text })));
}

/** What is typed for a stage, and what came of it. */
async function deploy(stage: string): Promise<Ended & { resources: string[] }> {
  const plan = join(folder, `${stage}.plan`);
  // As from a file, whose last line ends.
  for (const name of ["AdminTokenSha256", "TicketKey"] as const) {
    const { code, text } = await sst(["secret", "set", name, "--stage", stage], `${secretValues[name]}\n`);
    assert.equal(code, 0, text);
  }
  const ended = await sst(["deploy", "--stage", stage], "", { VMFERRY_PLAN: plan });
  return { ...ended, resources: existsSync(plan) ? readFileSync(plan, "utf8").trim().split("\n") : [] };
}

describe("sst deploy", () => {
  test("without secrets it says which is missing and how to set it", async () => {
    const { code, text } = await sst(["deploy", "--stage", "dev-bare"], "", {
      VMFERRY_PLAN: join(folder, "bare.plan"),
    });
    assert.notEqual(code, 0);
    assert.match(text, /sst secret set (?:AdminTokenSha256|TicketKey)/);
  });

  test("a stage on AWS: all resources are asked for, and the user is told the addresses", async () => {
    const { code, text, resources } = await deploy("dev-x");
    assert.equal(code, 0, text);
    for (const resource of ["lambda/function:Function Http", "scheduler/schedule:Schedule EachMinute"])
      assert.ok(
        resources.some((line) => line.endsWith(resource)),
        `${resource}\n${text}`,
      );
    assert.match(text, /url: https:\/\/http\.execute-api/);
    assert.match(text, /socketUrl: wss:\/\/sockets\.execute-api.*\/live/);
    assert.doesNotMatch(text, new RegExp(secretValues.TicketKey.replaceAll("+", "\\+")));
  });

  test("a stage on Cloudflare: SST bundles the Worker beside ours, and asks for the script", async () => {
    const { code, text, resources } = await deploy("dev-x-edge");
    assert.equal(code, 0, text);
    assert.ok(
      resources.some((line) => line.endsWith("workersScript:WorkersScript WorkerScript")),
      text,
    );
    assert.match(text, /url: https:\/\/.*workers\.dev/);
  });

  test("SST keeps its state and the secrets encrypted in the account", () => {
    assert.ok(
      clouds.written.some((name) => name.endsWith("/secret/vmferry/dev-x.json")),
      clouds.written.join("\n"),
    );
    assert.ok(
      clouds.written.some((name) => name.endsWith("/app/vmferry/dev-x.json")),
      clouds.written.join("\n"),
    );
  });
});
