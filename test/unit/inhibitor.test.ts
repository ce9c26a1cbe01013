/** A lock's child: taken over, refused, lost, given back. In place of systemd-inhibit a script that writes down who lives; the real one is in test/contract/logind.test.ts. */
import assert from "node:assert/strict";
import { chmod, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Clock, systemClock } from "#shim/clock";
import { Inhibitor, inhibitBackoff } from "#shim/inhibitor";

let dir: string;
let program: string;
const open: Inhibitor[] = [];
const waits: number[] = [];
const logged: string[] = [];
let isWaiting = true;

/** Waits are written down and last no longer than they must, or until the test says so. */
const clock: Clock = {
  ...systemClock,
  random: () => 0.5,
  async sleep(ms, signal) {
    waits.push(ms);
    while (isWaiting && signal?.aborted !== true) await sleep(5);
  },
};

before(async () => {
  dir = await mkdtemp(join(tmpdir(), "vmferry-inhibitor-"));
  program = join(dir, "systemd-inhibit");
  // As the real one: options first, then the program that is to be run with the lock; a lock may be refused before it runs.
  await writeFile(
    program,
    `#!/bin/sh
for word in "$@"; do
  case "$word" in
    --why=*refuse*) echo "Failed to inhibit: refused" >&2; exit 1;;
    --why=*) why="\${word#--why=}";;
    --*) ;;
    *) break;;
  esac
done
while [ "\${1#--}" != "$1" ]; do shift; done
: > "${"$"}{0%/*}/held $why"
"$@"
rm -f "${"$"}{0%/*}/held $why"
`,
  );
  await chmod(program, 0o755);
});
after(() => rm(dir, { recursive: true, force: true }));
afterEach(async () => {
  isWaiting = false;
  for (const each of open.splice(0)) await each.release();
  waits.length = 0;
  logged.length = 0;
  isWaiting = true;
});

function inhibitor(of = program): Inhibitor {
  const made = new Inhibitor({
    mode: "block",
    clock,
    log: { write: (level, message, fields) => void logged.push(`${level} ${message} ${JSON.stringify(fields)}`) },
    program: of,
  });
  open.push(made);
  return made;
}

const held = async () => (await readdir(dir)).filter((name) => name.startsWith("held ")).map((name) => name.slice(5));
async function until(what: string, isSo: () => Promise<boolean> | boolean): Promise<void> {
  for (let tries = 0; !(await isSo()); tries += 1) {
    if (tries > 1_000) assert.fail(`${what}; held: ${await held()}; ${logged.join("; ")}`);
    await sleep(5);
  }
}
const holds = (...whys: string[]) =>
  until(`never held by ${whys}`, async () => JSON.stringify(await held()) === JSON.stringify(whys));

describe("a lock", () => {
  test("is held until it is given back, the same reason twice is once", async () => {
    const lock = inhibitor();
    lock.hold("one");
    lock.hold("one");
    await until("is not there", () => lock.isHeld);
    assert.deepEqual(await held(), ["one"]);
    await lock.release();
    assert.deepEqual([await held(), lock.isHeld], [[], false]);
  });

  test("goes over to another reason", async () => {
    const lock = inhibitor();
    lock.hold("one");
    await until("is not there", () => lock.isHeld);
    lock.hold("two");
    await holds("two");
    assert.deepEqual(logged, []);
    await lock.release();
    assert.deepEqual(await held(), []);
  });

  test("stays with the older reason where the newer is refused, and takes the next", async () => {
    const lock = inhibitor();
    lock.hold("one");
    await until("is not there", () => lock.isHeld);
    lock.hold("refuse this");
    await until("the newer was not refused", () => lock.isHeld);
    assert.deepEqual(await held(), ["one"]);
    lock.hold("three");
    await holds("three");
    assert.deepEqual(waits, []);
  });

  test("that is refused is tried again, each time after longer, and said a few times only", async () => {
    isWaiting = false;
    const lock = inhibitor();
    lock.hold("refuse this");
    await until("is not tried again", () => waits.length >= 8);
    const { baseMs, capMs } = inhibitBackoff;
    assert.deepEqual(
      waits.slice(0, 8),
      [0, 1, 2, 3, 4, 5, 6, 7].map((times) => baseMs + Math.floor(0.5 * Math.min(capMs, baseMs * 2 ** times))),
    );
    const warned = logged.filter((line) => line.startsWith("warn"));
    assert.equal(warned.length, 3);
    assert.match(warned[0] ?? "", /Failed to inhibit: refused/);
    await lock.release();
  });

  test("whose program is not there is tried again as well", async () => {
    const lock = inhibitor(join(dir, "absent"));
    lock.hold("one");
    await until("is not tried again", () => waits.length > 0);
    assert.match(logged[0] ?? "", /ENOENT/);
    assert.equal(lock.isHeld, false);
  });

  test("given back while it waits for its next try is not taken after all", async () => {
    const lock = inhibitor();
    lock.hold("refuse this");
    await until("is not refused", () => waits.length === 1);
    await lock.release();
    isWaiting = false;
    await sleep(50);
    assert.deepEqual([waits.length, await held()], [1, []]);
  });

  test("the reason is one word to the program, whatever is in it", async () => {
    const lock = inhibitor();
    lock.hold('$(touch pwned) "; --mode=delay');
    await until("is not there", () => lock.isHeld);
    assert.deepEqual(await held(), ['$(touch pwned) "; --mode=delay']);
    assert.ok(!(await readdir(".")).includes("pwned"));
  });
});
