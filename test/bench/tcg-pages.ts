/**
 * `node test/bench/tcg-pages.ts`: which pages of a guest's memory come over stale when QEMU emulates (TCG) and migrates live? QEMU alone,
 * neither vmferry nor libvirt: the destination is not let go, so its memory must equal that of the stopped source, byte by byte. Then
 * the destination is ended, the source runs on, and again. `tcg-dirty.ts` shows the same from outside, far more seldom.
 *
 *   --moves N     default 100            --odd-memory  8 KiB more than a round size: QEMU then reads its dirty bitmap page by page
 *   --cmdline X   more words for the guest's kernel, such as pti=on
 *   --accel X     default tcg, such as tcg,thread=single
 *   --bandwidth MIB  a second, default 1048576 (libvirt: no limit); --downtime MS, QEMU's own default 300: less of both makes more rounds
 *   --rest MS     how long the source runs between two, default 500
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import * as z from "zod/mini";
import { guestImage } from "#lab/guest-image";

const say = (line: string) => console.error(line);
const pageBytes = 4_096;
const roundKiB = 192 * 1_024;
const oddKiB = 8;
/** No RAM: the window of the display adapter and the firmware behind it. */
const [holeFrom, holeTo] = [0xa0_000, 0x100_000];
const migrateMsMax = 120_000;

const answerSchema = z.object({
  return: z.optional(z.unknown()),
  error: z.optional(z.object({ desc: z.string() })),
});
const statusSchema = z.object({ status: z.optional(z.string()) });

/** One QEMU and its monitor; one command at a time. */
class Qemu {
  readonly #child: ChildProcess;
  readonly #socketPath: string;
  #socket: Socket | undefined;
  #waiting: ((line: unknown) => void) | undefined;

  constructor(socketPath: string, words: readonly string[]) {
    this.#socketPath = socketPath;
    this.#child = spawn("qemu-system-x86_64", [...words, "-qmp", `unix:${socketPath},server=on,wait=off`], {
      stdio: ["ignore", "ignore", "inherit"],
    });
  }

  async open(): Promise<this> {
    for (let tries = 0; ; tries += 1) {
      try {
        await this.#connect();
        break;
      } catch (error) {
        if (tries > 200) throw error;
        await sleep(50);
      }
    }
    await this.run("qmp_capabilities");
    return this;
  }

  #connect(): Promise<void> {
    return new Promise((resolve, reject) => {
      const socket = connect(this.#socketPath, resolve).once("error", reject);
      this.#socket = socket;
      let rest = "";
      socket.setEncoding("utf8").on("data", (text: string) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          const message: unknown = JSON.parse(line);
          if (typeof message === "object" && message !== null && ("return" in message || "error" in message))
            this.#waiting?.(message);
        }
      });
    });
  }

  async run(execute: string, args: object = {}): Promise<unknown> {
    const answer = await new Promise<unknown>((resolve) => {
      this.#waiting = resolve;
      this.#socket?.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    });
    const { return: value, error } = answerSchema.parse(answer);
    if (error !== undefined) throw new Error(`${execute}: ${error.desc}`);
    return value;
  }

  async status(command: string): Promise<string | undefined> {
    return statusSchema.parse(await this.run(command)).status;
  }

  async end(): Promise<void> {
    this.#socket?.destroy();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGKILL");
    await ended;
  }
}

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (const endMs = performance.now() + migrateMsMax; !(await holds()); await sleep(10))
    if (performance.now() > endMs) throw new Error(`not within ${migrateMsMax} ms: ${what}`);
}

const tickOf = (text: string) => /tick (\d+)\r?\n[^\n]*$/.exec(text)?.[1];

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      moves: { type: "string", default: "100" },
      cmdline: { type: "string", default: "" },
      accel: { type: "string", default: "tcg" },
      rest: { type: "string", default: "500" },
      bandwidth: { type: "string", default: "1048576" },
      downtime: { type: "string", default: "300" },
      "odd-memory": { type: "boolean", default: false },
    },
  });
  const memoryKiB = roundKiB + (values["odd-memory"] ? oddKiB : 0);
  await mkdir("/dev/shm", { recursive: true });
  const dir = await mkdtemp("/dev/shm/tcg-pages-");
  const qemus = new Set<Qemu>();
  const stale: number[] = [];
  const pages = new Map<number, number>();
  let moves = 0;
  let stopped = false;
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      stopped = true;
    });
  try {
    const image = await guestImage();
    const words = (serial: string, ...more: string[]) => [
      ...["-nodefaults", "-display", "none", "-machine", "q35", "-accel", values.accel, "-m", `${memoryKiB}k`],
      ...["-kernel", image.kernel, "-initrd", image.initramfs],
      ...["-append", `${image.cmdline} tick_s=0.002 disk_ticks=1000 ${values.cmdline}`],
      ...["-serial", `file:${serial}`, ...more],
    ];
    const start = async (name: string, ...more: string[]) => {
      const qemu = new Qemu(join(dir, `${name}.qmp`), words(join(dir, `${name}.serial`), ...more));
      qemus.add(qemu);
      return qemu.open();
    };
    const source = await start("source");
    const serial = () => readFile(join(dir, "source.serial"), "latin1");
    await until("the guest counts", async () => Number(tickOf(await serial()) ?? 0) > 300);
    await source.run("migrate-set-parameters", {
      "max-bandwidth": Number(values.bandwidth) * 1024 * 1024,
      "downtime-limit": Number(values.downtime),
    });
    for (; moves < Number(values.moves) && !stopped; moves += 1) {
      const at = join(dir, `incoming-${moves}`);
      const destination = await start(`destination-${moves}`, "-S", "-incoming", `unix:${at}`);
      const startMs = performance.now();
      await source.run("migrate", { uri: `unix:${at}` });
      await until("migrated", async () => {
        const status = await source.status("query-migrate");
        if (status === "failed") throw new Error("the migration failed");
        return status === "completed";
      });
      await until("arrived", async () => (await destination.status("query-status")) !== "inmigrate");
      const tookMs = performance.now() - startMs;
      const [one, other] = [join(dir, "source.ram"), join(dir, "destination.ram")];
      await source.run("pmemsave", { val: 0, size: memoryKiB * 1024, filename: one });
      await destination.run("pmemsave", { val: 0, size: memoryKiB * 1024, filename: other });
      const differing = different(await readFile(one), await readFile(other));
      for (const page of differing) pages.set(page, (pages.get(page) ?? 0) + 1);
      if (differing.length > 0) {
        stale.push(differing.length);
        const shown = differing.slice(0, 6).map((page) => (page * pageBytes).toString(16));
        say(
          `   move ${moves + 1} (${tookMs.toFixed(0)} ms), at tick ${tickOf(await serial())}: ${differing.length} stale pages: ${shown.join(" ")}`,
        );
      }
      await destination.end();
      qemus.delete(destination);
      await rm(join(dir, `destination-${moves}.serial`), { force: true });
      await source.run("cont");
      await sleep(Number(values.rest));
      if ((moves + 1) % 5 === 0)
        say(`   ${moves + 1} moves, ${stale.length} with stale pages; the last took ${tookMs.toFixed(0)} ms`);
    }
  } finally {
    for (const qemu of qemus) await qemu.end();
    await rm(dir, { recursive: true, force: true });
  }
  console.log(`accel ${values.accel}, memory ${memoryKiB} KiB, cmdline '${values.cmdline}'`);
  console.log(
    `${moves} moves, ${stale.length} with stale pages (${stale.toSorted((a, b) => a - b).join(", ")}), ${pages.size} different pages`,
  );
}

function different(one: Buffer, other: Buffer): number[] {
  const found: number[] = [];
  for (let at = 0; at < one.length; at += pageBytes) {
    if (at >= holeFrom && at < holeTo) continue;
    if (one.compare(other, at, at + pageBytes, at, at + pageBytes) !== 0) found.push(at / pageBytes);
  }
  return found;
}

await main();
