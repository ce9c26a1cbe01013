/** What is kept of a cell that is not sound, so that its cause can be found when its processes are gone. */
import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { look } from "./asking.ts";
import type { Cell } from "./cell.ts";
import type { ChaosScene } from "./chaos-scene.ts";

/** Writes DIR/cell.json, migration.json, *.out, and for each host its shim's journals, libvirtd's log, domain and tree. */
export async function keepEvidence(scene: ChaosScene, cell: Cell, dir: string): Promise<void> {
  const { fleet, guest, world } = scene;
  await mkdir(dir, { recursive: true });
  const write = (name: string, text: string) => writeFile(join(dir, name), text);
  await write("cell.json", JSON.stringify(cell, null, 2));
  await write("migration.json", JSON.stringify(await look(world, cell.migrationId), null, 2));
  for (const running of [fleet.controlPlane, ...fleet.shims.values(), scene.store])
    if (running !== undefined) await write(`${running.label.replaceAll(" ", "-")}.out`, running.output);
  for (const host of world.lab.hosts) {
    await cp(join(scene.stateOf(host), "journal"), join(dir, `${host.name}-journal`), { recursive: true });
    await cp(host.logPath, join(dir, `${host.name}-libvirtd.log`)).catch(() => {});
    for (const words of [
      ["domstate", guest.name, "--reason"],
      ["snapshot-list", guest.name, "--tree"],
      ["domjobinfo", guest.name],
      ["dumpxml", guest.name],
    ])
      await write(
        `${host.name}-${words[0]}`,
        await host.virsh.run(words).catch((error: unknown) => (error instanceof Error ? error.message : String(error))),
      );
  }
}
