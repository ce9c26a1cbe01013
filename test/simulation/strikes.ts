/** What strikes from outside: a process killed, a host without power, a cut, a disk that is full, an owner at work. */
import { type SideName, sides, type WorldKind } from "./fault-plan.ts";
import { domainRef, migrationId, type Scene } from "./scene.ts";

/** A host that stays away: longer than the functions' patience (15 min), so that a person is called; the world's healing
 *  brings it back. */
const longMs = 60 * 60_000;

const isSide = (text: string | undefined): text is SideName => text === "source" || text === "destination";

export function strike(scene: Scene, kind: WorldKind): void {
  const { world, shims, daemons, disks, network, functions, bucket, streams } = scene;
  const { chance, time } = world;
  const [what, where] = kind.split(":");
  const side = isSide(where) ? where : "source";
  switch (what) {
    case "cancel":
      functions.invoke((runner) => runner.cancel(migrationId, "person"));
      return;
    case "snapshot":
      takeSnapshot(scene);
      return;
    case "crash":
      shims[side].crash();
      return;
    case "daemon":
      daemons[side].restart();
      return;
    case "power":
    case "powerLong": {
      powerOff(scene, side);
      const ms = what === "power" ? chance.between(20_000, 5 * 60_000) : longMs;
      time.after(ms, () => powerOn(scene, side));
      return;
    }
    case "socket":
      network.cutSocket(side);
      return;
    case "peerCut":
      network.cutPeerFor(chance.between(500, 10 * 60_000));
      return;
    case "streamCut":
      streams.cutFor(chance.between(500, 60_000));
      return;
    case "functionsAway":
      functions.awayFor(chance.between(5_000, 30 * 60_000));
      return;
    case "bucketAway":
      bucket.awayFor(chance.between(5_000, 10 * 60_000));
      return;
    case "diskFull":
      disks[side].fillFor(chance.between(1_000, 5 * 60_000));
  }
}

function powerOff({ daemons, shims, disks, world }: Scene, side: SideName): void {
  if (!daemons[side].hasPower) return;
  shims[side].mayRun = false;
  daemons[side].losePower();
  shims[side].crash();
  disks[side].losePower();
  world.note(`${side} has no power`);
}

export function powerOn({ daemons, shims, world }: Scene, side: SideName): void {
  if (daemons[side].hasPower) return;
  daemons[side].regainPower();
  shims[side].mayRun = true;
  world.time.after(world.chance.between(500, 5_000), () => shims[side].start());
}

/** Its owner takes a snapshot where the guest runs, if libvirt lets them. */
function takeSnapshot({ daemons, world, owned }: Scene): void {
  for (const side of sides) {
    const domain = daemons[side].domains.get(domainRef.uuid);
    if (domain === undefined || domain.qemu?.cpu !== "running" || domain.job !== null || !daemons[side].isUp) continue;
    const name = `theirs${owned.size}`;
    const createdAt = 100 + owned.size;
    domain.snapshots.take(name, createdAt);
    owned.set(name, { parent: domain.snapshots.records.get(name)?.parent ?? null, createdAt, added: true });
    world.note(`${side} its owner takes a snapshot "${name}"`);
    return;
  }
}
