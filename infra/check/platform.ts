/**
 * SST's own sources and types in `.sst/platform`, without an account and without GitHub: `sst install` unpacks them from
 * SST's binary and asks npm for the providers. It also wants the `pulumi` program from GitHub, which a check never runs; a
 * stub that only tells its version stands in, in a folder of its own, so that a real deployment never finds it.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const root = join(import.meta.dirname, "../..");
export const platform = join(root, ".sst/platform");

/** Of the versions in package.json and sst.config.ts; `sst install` refuses another pulumi than the one it was built with. */
const versions = { sst: "4.17.1", pulumi: "3.215.0" } as const;

/** A stage for which sst.config.ts names both providers. */
const bothProviders = "check-edge";
const installMsMax = 10 * 60_000;

const isInstalled = () =>
  existsSync(join(platform, "config.d.ts")) &&
  existsSync(join(platform, "node_modules/@pulumi/aws/package.json")) &&
  existsSync(join(platform, "node_modules/@pulumi/cloudflare/package.json")) &&
  readFileSync(join(platform, "config.d.ts"), "utf8").includes("@pulumi/cloudflare") &&
  readFileSync(join(platform, "version"), "utf8").trim() === versions.sst;

/** Makes `.sst/platform` if it is not there (half a minute, 320 MB). Throws with SST's own words when that fails. */
export function installPlatform(): void {
  mustBe("sst", installedVersion(join(root, "node_modules/sst")), versions.sst);
  if (!isInstalled()) {
    console.log("Fetching SST's sources and types into .sst (once) ...");
    const folder = mkdtempSync(join(tmpdir(), "vmferry-sst-"));
    try {
      writeStub(join(folder, "sst/bin"));
      const { status, stdout, stderr } = spawnSync(
        join(root, "node_modules/.bin/sst"),
        ["install", "--stage", bothProviders],
        {
          cwd: root,
          encoding: "utf8",
          timeout: installMsMax,
          // Without SST_NO_BUN it would take bun from GitHub as well.
          env: { ...process.env, XDG_CONFIG_HOME: folder, SST_NO_BUN: "1", DO_NOT_TRACK: "1" },
        },
      );
      if (status !== 0) throw new Error(`sst install ended with ${status}:\n${stdout}${stderr}`);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  mustBe("@pulumi/pulumi", installedVersion(join(platform, "node_modules/@pulumi/pulumi")), versions.pulumi);
}

function writeStub(folder: string): void {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, "pulumi");
  writeFileSync(path, `#!/bin/sh\necho v${versions.pulumi}\n`);
  chmodSync(path, 0o755);
}

function installedVersion(folder: string): string {
  if (!existsSync(join(folder, "package.json"))) return "not installed (npm ci)";
  const read: unknown = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  return typeof read === "object" && read !== null && "version" in read ? String(read.version) : "none";
}

function mustBe(name: string, found: string, wanted: string): void {
  if (found !== wanted)
    throw new Error(`${name} is ${found}, the check was made for ${wanted}: change infra/check/platform.ts with it.`);
}
