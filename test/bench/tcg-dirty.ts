/**
 * `node test/bench/tcg-dirty.ts`: does QEMU by itself lose what a guest wrote, when it emulates (TCG) and migrates? A guest that counts
 * fast moves to and fro between two lab hosts by plain `virsh migrate --live`, nothing of vmferry runs. A count that comes back after a
 * move is either a second running copy, or memory that came over stale. The first shows as counts of the source that come after the
 * first ones of the destination, or as a source that QEMU stopped after it had let the destination go. All else is the second.
 *
 *   --moves N     default 200               --minutes N     end after as long, default 15
 *   --load N      busy loops beside it, default 2
 *   --cmdline X   more words for the guest's kernel, such as pti=on
 *   --exact       the lab's usual guest, of which QEMU reads the dirty bitmap page by page (`exactDirtyPages`)
 *   --bandwidth MIB  a second, default without limit; --downtime MS, default QEMU's own 300: less of both makes more rounds
 *   --disk-ticks N  counts between two lines on the disk, default 1000; each makes the guest switch processes, which empties QEMU's TLB
 *   --keep DIR    the serial output of both hosts, QEMU's events and all moves go there
 */
import { type ChildProcess, spawn } from "node:child_process";
import { type FileHandle, mkdir, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { bootGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { startLab } from "#lab/lab";
import { isRoot, LabRefusal } from "#lab/prerequisites";
import { figure } from "./statistics.ts";

const say = (line: string) => console.error(line);
const tickPauseMs = 2;
const lookMs = 1;
/** So that the shell's pages lie in QEMU's TLB as in daily life. */
const ticksBefore = 60;
const ticksAfter = 60;
const ticksToWarm = 300;
/** A guest that is silent for so long after a move does not come back: it is booted anew and counted as stuck. */
const silenceMsMax = 15_000;
const bootMsMax = 120_000;
const troubleSign = /\b(panic|BUG:|Oops|segfault|general protection|Call Trace|can't|not found|syntax error)/i;

interface Line {
  /** Of the look in which it was seen whole. */
  look: number;
  text: string;
}

/** One host's own copy of the serial output, in lines. */
class Output {
  readonly lines: Line[] = [];
  rest = "";
  readonly #path: string;
  #file: FileHandle | undefined;
  #offset = 0;

  constructor(path: string) {
    this.#path = path;
  }

  async read(look: number): Promise<void> {
    this.#file ??= await open(this.#path, "r").catch(() => undefined);
    if (this.#file === undefined) return;
    const buffer = Buffer.alloc(65_536);
    const { bytesRead } = await this.#file.read(buffer, 0, buffer.length, this.#offset);
    this.#offset += bytesRead;
    const parts = (this.rest + buffer.toString("latin1", 0, bytesRead)).split("\n");
    this.rest = parts.pop() ?? "";
    for (const text of parts) this.lines.push({ look, text: text.trimEnd() });
  }

  all(): string {
    return this.lines.map(({ look, text }) => `${look} ${text}`).join("\n");
  }

  async close(): Promise<void> {
    await this.#file?.close();
  }
}

const countOf = ({ text }: Line): number | undefined => {
  const digits = /^tick (\d+)$/.exec(text)?.[1];
  return digits === undefined ? undefined : Number(digits);
};

/** Reads both hosts in turns. `to` is read first: whatever `from` shows in a later look was printed after what `to` had shown. */
class Reader {
  readonly outputs: ReadonlyMap<Host, Output>;
  first: Host;
  look = 0;
  #stopped = false;
  readonly #loop: Promise<void>;

  constructor(guest: Guest, hosts: readonly Host[], first: Host) {
    this.outputs = new Map(hosts.map((host) => [host, new Output(guest.serialCopyOn(host))]));
    this.first = first;
    this.#loop = this.#read();
  }

  of(host: Host): Output {
    const output = this.outputs.get(host);
    if (output === undefined) throw new Error(`${host.name} is not read`);
    return output;
  }

  async #read(): Promise<void> {
    while (!this.#stopped) {
      this.look += 1;
      const first = this.of(this.first);
      await first.read(this.look);
      for (const output of this.outputs.values()) if (output !== first) await output.read(this.look);
      await sleep(lookMs);
    }
  }

  /** False when they do not come: the guest is silent. */
  async counts(host: Host, more: number, timeoutMs: number): Promise<boolean> {
    const { lines } = this.of(host);
    const from = lines.length;
    const untilMs = performance.now() + timeoutMs;
    while (lines.length < from + more) {
      if (performance.now() > untilMs) return false;
      await sleep(20);
    }
    return true;
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#loop;
    for (const output of this.outputs.values()) await output.close();
  }
}

/** QEMU's own times of STOP and RESUME on one host, in s since 1970, by its machine's clock: one for both lab hosts. */
class Events {
  readonly seen: { event: string; atS: number }[] = [];
  readonly #child: ChildProcess;

  constructor(host: Host) {
    this.#child = spawn("virsh", ["-q", "-c", host.uri, "qemu-monitor-event", "--loop"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    let rest = "";
    this.#child.stdout?.setEncoding("latin1").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const [, event, at] = /^event (\w+) at (\d+\.\d+)/.exec(line) ?? [];
        if (event !== undefined && at !== undefined) this.seen.push({ event, atS: Number(at) });
      }
    });
  }

  last(event: string): number | undefined {
    return this.seen.findLast((each) => each.event === event)?.atS;
  }

  stop(): void {
    this.#child.kill("SIGKILL");
  }
}

interface Move {
  number: number;
  from: string;
  to: string;
  /** Last whole count of the source, first whole one of the destination. */
  last: number | undefined;
  first: number | undefined;
  /** 0 when the count goes on; -15 when 15 counts came again; 3 when 3 never came. */
  jump: number | undefined;
  /** Lines of the source in looks after that with the destination's first line. */
  sourceLinesLater: number;
  /** From the source's STOP to the destination's RESUME by QEMU's clock; negative would be two running ones. */
  stopToResumeMs: number | undefined;
  /** Jumps in what the destination counted afterwards, lines that are signs of trouble, boots, no count at all. */
  laterJumps: string[];
  trouble: string[];
  boots: number;
  stuck: boolean;
  failed: string | undefined;
}

interface Bench {
  migrateWords: readonly string[];
  guest: Guest;
  reader: Reader;
  events: ReadonlyMap<Host, Events>;
}

async function move(bench: Bench, number: number, from: Host, to: Host): Promise<Move> {
  const { guest, reader, events } = bench;
  reader.first = to;
  const [source, destination] = [reader.of(from), reader.of(to)];
  await reader.counts(from, ticksBefore, silenceMsMax);
  const [sourceStart, start] = [source.lines.length, destination.lines.length];
  // What an earlier visit left of a line ended elsewhere.
  destination.rest = "";
  let failed: string | undefined;
  await from.virsh
    .migrate(guest.name, to.uri, { persistent: true, undefineSource: true, extra: bench.migrateWords })
    .catch((error: unknown) => {
      failed = error instanceof Error ? error.message : String(error);
    });
  const stuck = !(await reader.counts(failed === undefined ? to : from, ticksAfter, silenceMsMax));
  const arrived = destination.lines.slice(start);
  const tail = source.rest;
  const [head, ...others] = arrived;
  // The line in which the writers change may be cut in two.
  const joined = head === undefined ? undefined : { ...head, text: tail + head.text };
  const whole = joined === undefined ? [] : [joined, ...others];
  const cutBadly = joined !== undefined && countOf(joined) === undefined && joined.text.startsWith("tick");
  const last = source.lines.findLast((line) => countOf(line) !== undefined);
  const counts = whole.map(countOf).filter((count) => count !== undefined);
  const [lastCount, first] = [last === undefined ? undefined : countOf(last), counts[0]];
  const laterJumps = counts.flatMap((count, index) => {
    const before = counts[index - 1];
    return before === undefined || count === before + 1 ? [] : [`${before}->${count}`];
  });
  const jump = lastCount === undefined || first === undefined ? undefined : first - lastCount - 1;
  const [stopAtS, resumeAtS] = [events.get(from)?.last("STOP"), events.get(to)?.last("RESUME")];
  return {
    number,
    from: from.name,
    to: to.name,
    last: lastCount,
    first,
    // A line cut in two of which the halves do not fit is itself the count that is missing.
    jump: cutBadly && jump === 1 ? 0 : jump,
    sourceLinesLater:
      head === undefined ? 0 : source.lines.slice(sourceStart).filter(({ look }) => look > head.look).length,
    stopToResumeMs: stopAtS === undefined || resumeAtS === undefined ? undefined : (resumeAtS - stopAtS) * 1_000,
    laterJumps,
    trouble: arrived.filter(({ text }) => troubleSign.test(text)).map(({ text }) => text),
    boots: arrived.filter(({ text }) => text.startsWith("boot ")).length,
    stuck,
    failed,
  };
}

const isFine = (each: Move) =>
  each.jump === 0 &&
  each.laterJumps.length + each.trouble.length + each.boots === 0 &&
  !each.stuck &&
  each.failed === undefined;

function told(each: Move): string {
  const gap = each.stopToResumeMs === undefined ? "unknown" : `${each.stopToResumeMs.toFixed(1)} ms`;
  const more = [
    each.laterJumps.length > 0 ? `later ${each.laterJumps.slice(0, 5).join(" ")}` : "",
    each.trouble.length > 0 ? `says ${JSON.stringify(each.trouble.slice(0, 3))}` : "",
    each.boots > 0 ? `${each.boots} boots` : "",
    each.stuck ? "stuck" : "",
    each.failed ?? "",
  ].filter((word) => word !== "");
  return `| ${each.number} | ${each.from}→${each.to} | ${each.last ?? "-"} → ${each.first ?? "-"} | ${each.jump ?? "-"} | ${each.sourceLinesLater} | ${gap} | ${more.join("; ")} |`;
}

function table(moves: readonly Move[]): string {
  const many = (fits: (each: Move) => boolean) => moves.filter(fits).length;
  const back = moves.filter(({ jump }) => jump !== undefined && jump < 0);
  const far = back.map(({ jump }) => -(jump ?? 0)).toSorted((one, other) => one - other);
  const gaps = moves.map(({ stopToResumeMs }) => stopToResumeMs).filter((ms) => ms !== undefined);
  return [
    "| what | moves |",
    "|---|---|",
    `| all | ${moves.length} |`,
    `| refused or failed | ${many(({ failed }) => failed !== undefined)} |`,
    `| count went back | ${back.length}${back.length > 0 ? `, by ${far.join(", ")}` : ""} |`,
    `| … with a source that printed after the destination | ${back.filter(({ sourceLinesLater }) => sourceLinesLater > 0).length} |`,
    `| a source that printed after the destination, in any move | ${many(({ sourceLinesLater }) => sourceLinesLater > 0)} |`,
    `| destination resumed before the source had stopped (QEMU's events, ${gaps.length} moves, least ${Math.min(...gaps).toFixed(1)} ms, median ${figure(gaps).median.toFixed(1)} ms) | ${gaps.filter((ms) => ms < 0).length} |`,
    `| counts missing at the switch | ${many(({ jump }) => jump !== undefined && jump > 0)} |`,
    `| jumps in the counting after the switch | ${many(({ laterJumps }) => laterJumps.length > 0)} |`,
    `| guest booted anew by itself | ${many(({ boots }) => boots > 0)} |`,
    `| panic, oops, segfault, shell error | ${many(({ trouble }) => trouble.length > 0)} |`,
    `| guest silent for ever | ${many(({ stuck }) => stuck)} |`,
    "",
    "| move | way | counts | jump | source later | STOP→RESUME | more |",
    "|---|---|---|---|---|---|---|",
    ...moves.filter((each) => !isFine(each)).map(told),
  ].join("\n");
}

/** Words that QEMU gets behind libvirt's own. */
function commandLine(words: readonly string[]): string {
  const args = words.map((word) => `<qemu:arg value='${word}'/>`).join("");
  return `<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>${args}</qemu:commandline>`;
}

async function boot(
  host: Host,
  options: { cmdline: string; exactDirtyPages: boolean; words: readonly string[]; diskTicks: number },
): Promise<Guest> {
  const guest = await bootGuest(host, {
    serialCopies: true,
    tickPauseMs,
    diskTicks: options.diskTicks,
    exactDirtyPages: options.exactDirtyPages,
    inactive: true,
    witness: { pollMs: 100 },
    ...(options.words.length > 0 ? { extra: commandLine(options.words) } : {}),
  });
  await host.virsh.define(guest.xml.replace("</cmdline>", ` ${options.cmdline}</cmdline>`));
  await host.virsh.start(guest.name);
  await guest.witness.waitForTicks(ticksToWarm, bootMsMax);
  await guest.witness.stop();
  return guest;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      moves: { type: "string", default: "200" },
      minutes: { type: "string", default: "15" },
      load: { type: "string", default: "2" },
      cmdline: { type: "string", default: "" },
      exact: { type: "boolean", default: false },
      bandwidth: { type: "string" },
      downtime: { type: "string" },
      "disk-ticks": { type: "string", default: "1000" },
      keep: { type: "string" },
    },
  });
  const [movesMax, minutesMax, load] = [Number(values.moves), Number(values.minutes), Number(values.load)];
  if (!isRoot()) throw new LabRefusal("libvirt hosts on one machine need mount namespaces, so root", "run it as root");
  const opened: (() => unknown)[] = [];
  const close = async () => {
    for (let end = opened.pop(); end !== undefined; end = opened.pop()) await end();
  };
  // Ends after the move under way, with the table of what there was.
  let stopped = false;
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      stopped = true;
    });
  const moves: Move[] = [];
  try {
    const lab = await startLab({ hosts: 2, log: (line) => say(`   ${line}`) });
    opened.push(() => lab.stop());
    let [from, to] = [lab.host(0), lab.host(1)];
    const guestOptions = {
      exactDirtyPages: values.exact,
      cmdline: values.cmdline,
      words: [...(values.downtime === undefined ? [] : ["-global", `migration.x-downtime-limit=${values.downtime}`])],
      diskTicks: Number(values["disk-ticks"]),
    };
    const migrateWords = values.bandwidth === undefined ? [] : ["--bandwidth", values.bandwidth];
    let guest = await boot(from, guestOptions);
    for (let index = 0; index < load; index += 1) {
      const child = spawn(process.execPath, ["-e", "for(;;);"], { stdio: "ignore" });
      opened.push(() => child.kill("SIGKILL"));
    }
    const events = new Map(lab.hosts.map((host) => [host, new Events(host)]));
    for (const each of events.values()) opened.push(() => each.stop());
    let reader = new Reader(guest, lab.hosts, to);
    opened.push(() => reader.stop());
    const untilMs = performance.now() + minutesMax * 60_000;
    while (!stopped && moves.length < movesMax && performance.now() < untilMs) {
      const number = moves.length + 1;
      const made = await move({ guest, reader, events, migrateWords }, number, from, to);
      moves.push(made);
      if (!isFine(made)) say(told(made));
      if (number % 10 === 0) say(`   ${number} moves`);
      if (values.keep !== undefined && !isFine(made)) await keep(values.keep, made, reader, events);
      if (made.stuck) {
        await reader.stop();
        for (const host of lab.hosts) {
          await host.virsh.destroy(guest.name);
          await host.virsh.undefine(guest.name);
        }
        guest = await boot(from, guestOptions);
        reader = new Reader(guest, lab.hosts, to);
      } else if (made.failed === undefined) [from, to] = [to, from];
    }
    console.log(table(moves));
  } finally {
    await close();
  }
}

/** All that was read of one move, and QEMU's events. */
async function keep(dir: string, made: Move, reader: Reader, events: ReadonlyMap<Host, Events>): Promise<void> {
  const at = join(dir, `move-${made.number}`);
  await mkdir(at, { recursive: true });
  await writeFile(join(at, "move.json"), JSON.stringify(made, null, 2));
  for (const [{ name }, output] of reader.outputs) await writeFile(join(at, `serial-${name}.log`), output.all());
  for (const [{ name }, { seen }] of events)
    await writeFile(join(at, `events-${name}.json`), JSON.stringify(seen.slice(-50)));
}

try {
  await main();
} catch (error) {
  if (!(error instanceof LabRefusal)) throw error;
  console.error(error.message);
  process.exitCode = 69;
}
