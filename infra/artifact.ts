/**
 * The bundles that are deployed are those that `npm run build` writes and the tests run, byte for byte: SST's own bundler
 * is not asked. They are built anew for each deployment, so that nothing stale goes out. `VMFERRY_DIST` names a folder of
 * finished bundles instead (those of a release, of a CI job).
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { isAbsolute, join } from "node:path";

const ready = process.env.VMFERRY_DIST;

/** Throws with the build's own words when it fails. */
export function buildOnce(): void {
  if (ready !== undefined) return;
  const { status, stdout, stderr, error } = spawnSync("npm", ["run", "build"], {
    cwd: $cli.paths.root,
    encoding: "utf8",
    shell: process.platform === "win32",
  });
  if (status !== 0)
    throw new Error(`npm run build failed: ${error?.message ?? `exit ${status}`}\n${stdout ?? ""}${stderr ?? ""}`);
}

/** The absolute path of a bundle. Throws when there is none. */
export function artifact(file: string): string {
  const folder = ready === undefined ? "dist" : ready;
  const path = join(isAbsolute(folder) ? "" : $cli.paths.root, folder, file);
  if (!existsSync(path))
    throw new Error(`${path} does not exist: run npm run build, or point VMFERRY_DIST to a build.`);
  return path;
}
