/** Who arrived paused and never ran, told by /proc: here a folder that looks like it. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { hasNotRunSinceArrival } from "#shim/paused-arrival";

const uuid = "9fd1b494-cd4d-48be-a67f-4dc8eaa36c9b";
let proc: string;
before(async () => {
  proc = await mkdtemp(join(tmpdir(), "vmferry-proc-"));
});
after(() => rm(proc, { recursive: true, force: true }));

/** A process with threads named so, each with so many ticks in user and in system mode. */
async function one(words: readonly string[], threads: readonly (readonly [string, number, number])[]) {
  await rm(join(proc, "7"), { recursive: true, force: true });
  await mkdir(join(proc, "7", "task"), { recursive: true });
  await writeFile(join(proc, "7", "cmdline"), `${words.join("\0")}\0`);
  for (const [index, [name, user, system]] of threads.entries()) {
    const dir = join(proc, "7", "task", String(7 + index));
    await mkdir(dir);
    const stat = `${7 + index} (${name}) S 1 7 7 0 -1 4194304 1 2 3 4 ${user} ${system} 0 0 20 0 3 0 100 5 6`;
    await writeFile(join(dir, "stat"), stat);
  }
  return hasNotRunSinceArrival(uuid, proc);
}

const received = ["/usr/bin/qemu-system-x86_64", "-S", "-uuid", uuid, "-incoming", "defer"];

test("a process that received and whose CPUs used no time has not run it", async () => {
  assert.equal(
    await one(received, [
      ["qemu-system-x86", 900, 900],
      ["CPU 0/KVM", 1, 2],
    ]),
    true,
  );
  assert.equal(
    await one(received, [
      ["CPU 0/TCG", 0, 0],
      ["CPU 1/TCG", 0, 3],
    ]),
    true,
  );
});

test("one whose CPUs used time has, and one that was started here or holds another domain says nothing", async () => {
  assert.equal(await one(received, [["CPU 0/KVM", 60, 40]]), false);
  assert.equal(
    await one(received, [
      ["CPU 0/TCG", 99, 0],
      ["CPU 1/TCG", 1, 0],
    ]),
    false,
  );
  assert.equal(await one(received.slice(0, 4), [["CPU 0/KVM", 0, 0]]), false);
  assert.equal(await one(received.with(3, uuid.replace("9", "8")), [["CPU 0/KVM", 0, 0]]), false);
  assert.equal(await hasNotRunSinceArrival(uuid, join(proc, "none")), false);
});
