/** The people of a simulated world: one who wants the guest moved, and one who looks after what is stranded. */
import { RunningReason } from "#libvirt/constants";
import { sides } from "./fault-plan.ts";
import { domainRef, migrationId, type Scene } from "./scene.ts";
import { hosts } from "./sim-keys.ts";

/** Somebody asks for the migration, and again when no answer came. */
export function requestSoon({ world, functions, witness }: Scene, id: string, atMs: number): void {
  const ask = (): void => {
    functions.invoke((runner) =>
      runner.request({
        id,
        domain: domainRef,
        source: { ...hosts.source },
        destination: { ...hosts.destination },
        options: { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null },
        accept: [],
      }),
    );
    world.time.after(30_000, () => {
      if (!witness.states.has(id)) ask();
    });
  };
  world.time.after(atMs, ask);
}

/** A person who does what a stranded migration says: states that a host is fenced when it is off; looks where the guest ran
 *  last when its host has booted in the instant of Finish; and nothing else. */
export function watchAsPerson(scene: Scene): void {
  const { world, functions, daemons, witness } = scene;
  const look = (): void => {
    const state = witness.states.get(migrationId);
    for (const side of sides) {
      if (state?.status !== "stranded" || daemons[side].hasPower || witness.fenced.has(side)) continue;
      if (!state.failure?.action.includes(`--fenced ${hosts[side].name}`)) continue;
      world.note(`a person states that the ${side} is fenced`);
      functions.invoke((runner) => runner.resolve(migrationId, { by: "person", reason: "it is off", fenced: side }));
      witness.fenced.add(side);
    }
    if (state?.status === "stranded" && state.timeline.some(({ note }) => note.includes(booted)))
      decideByItsDisks(scene);
    world.time.after(60_000, look);
  };
  world.time.after(16 * 60_000, look);
}

/** The words of the recovery table for it. */
const booted = "has booted in the instant of Finish";

/** `virsh start` or `virsh undefine` on the destination, by what the guest's disks show. */
function decideByItsDisks({ world, daemons: { destination }, witness }: Scene): void {
  const domain = destination.domains.get(domainRef.uuid);
  if (!destination.isUp || domain === undefined || domain.qemu !== null || domain.job !== null) return;
  const hasRun = witness.ranAt === "destination";
  world.note(`a person looks at the guest's disks: it has ${hasRun ? "" : "not "}run on the destination`);
  if (hasRun) destination.start(domain, witness.newLife(destination), "running", RunningReason.BOOTED);
  else destination.domains.delete(domain.uuid);
}
