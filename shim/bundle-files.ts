/** The bundles of migrations under way on this host: one file each below STATE/bundles, kept until the migration is forgotten (I3). */
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { readBundle, verifyBundle } from "#protocol/bundle-reader";
import { writeBundle } from "#protocol/bundle-writer";
import { removeFile } from "./durable-file.ts";
import type { BundleAccess } from "./ports.ts";

const suffix = ".bundle";

/** Reads and writes bundles as files of this host. */
export const bundleAccess: BundleAccess = { read: readBundle, verify: verifyBundle, write: writeBundle };

export class BundleFiles implements BundleAccess {
  readonly read = bundleAccess.read;
  readonly verify = bundleAccess.verify;
  readonly write = bundleAccess.write;
  readonly #directory: string;

  private constructor(directory: string) {
    this.#directory = directory;
  }

  /** Makes the directory (0700) and removes what belongs to no migration in `known`: leavings of a crash. */
  static async open(stateDirectory: string, known: readonly string[]): Promise<BundleFiles> {
    const directory = join(stateDirectory, "bundles");
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const kept = new Set(known);
    for (const name of await readdir(directory)) {
      const end = name.indexOf(suffix);
      const isWhole = name.endsWith(suffix);
      if (end > 0 && !(isWhole && kept.has(name.slice(0, end)))) await removeFile(join(directory, name));
    }
    return new BundleFiles(directory);
  }

  path(migrationId: string): string {
    return join(this.#directory, migrationId + suffix);
  }

  async remove(migrationId: string): Promise<void> {
    await removeFile(`${this.path(migrationId)}.partial`);
    await removeFile(this.path(migrationId));
  }
}
