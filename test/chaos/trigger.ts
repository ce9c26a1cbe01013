/** Waits for a moment and strikes in it: by the shims' journals, or by what the source's libvirtd tells of the guest. */
import { type ChildProcess, spawn } from "node:child_process";
import type { ChaosScene } from "./chaos-scene.ts";
import { JournalWatch } from "./journal-watch.ts";
import { type Moment, markOf } from "./moment.ts";

export interface Trigger {
  /** Resolves when it has struck. */
  readonly struck: Promise<void>;
  disarm(): void;
}

/** Arms before the migration is asked for; the next one that comes to the moment is struck, once. */
export async function arm(scene: ChaosScene, { at }: Moment, strike: () => void): Promise<Trigger> {
  let resolve: () => void = () => {};
  const struck = new Promise<void>((done) => {
    resolve = done;
  });
  let armed = true;
  let timer: NodeJS.Timeout | undefined;
  const fire = () => {
    strike();
    resolve();
  };
  const reached = (afterMs = 0) => {
    if (!armed) return;
    armed = false;
    // Without a timer where none is asked for: the moment is over in a millisecond.
    if (afterMs === 0) fire();
    else timer = setTimeout(fire, afterMs);
  };
  const close = at === "guestStopped" ? await onGuestStopped(scene, reached) : onMark(scene, at, reached);
  return {
    struck,
    disarm() {
      armed = false;
      clearTimeout(timer);
      close();
    },
  };
}

function onMark(scene: ChaosScene, at: Exclude<Moment["at"], string>, reached: (afterMs?: number) => void): () => void {
  const watch = new JournalWatch(scene.stateOf(scene[at.side]), (_, entry) => {
    if (at.marks.includes(markOf(entry))) reached(at.afterMs);
  });
  return () => watch.close();
}

/** libvirt says `Suspended Migrated` when the guest's CPUs have stopped and before Perform returns. */
async function onGuestStopped(scene: ChaosScene, reached: () => void): Promise<() => void> {
  const words = ["-q", "-c", scene.source.uri, "event", "--event", "lifecycle", "--loop", "--domain", scene.guest.name];
  // virsh writes to a pipe in blocks; stdbuf makes it lines.
  const child = spawn("stdbuf", ["-oL", "virsh", ...words], { stdio: ["ignore", "pipe", "ignore"] });
  child.stdout.on("data", (chunk: Buffer) => {
    if (/Suspended Migrated/.test(chunk.toString())) reached();
  });
  await registered(child);
  return () => void child.kill("SIGTERM");
}

/** virsh does not say when it listens; it connects in tens of ms, and Perform is more than a second away. */
async function registered(child: ChildProcess): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    child.once("spawn", resolve);
    child.once("error", reject);
  });
}
