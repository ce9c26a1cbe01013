/**
 * The guest's userland: an initramfs of busybox, six kernel modules and one script, built here with cpio.
 *
 * The counter lives in the script's memory, so that a revert to a live snapshot makes it jump back; the disk gets a
 * line about once a second, so that memory and disk can be compared.
 */
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, copyFile, mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { findKernel, findProgram, type GuestKernel, installCommand, LabRefusal } from "./prerequisites.ts";

/** Written by root, read by every lab's QEMU. */
const cacheDir = "/var/cache/vmferry-lab";
/** ext4 is built into Debian's cloud kernel; the virtio disk is not. */
const wantedModules = ["virtio_pci", "virtio_blk"];

/**
 * `tick N` on the serial port near 100 Hz (measured 90: the loop's own work comes on top of its 10 ms), `disk N` once N
 * is appended to counter.log on the disk and synced. The disk writer is a process of its own: a sync must not delay ticks.
 * `read -t` instead of usleep: no fork per tick, a quarter of the host's CPU. What the kernel does not know of its command
 * line is in init's environment: `tick_s` and `disk_ticks` make it finer where a blackout is measured.
 */
const initScript = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
exec </dev/null >/dev/ttyS0 2>&1
$b stty -opost </dev/ttyS0
while read m; do $b insmod /mod/$m; done </mod/order
i=0
while [ ! -b /dev/vda ] && [ $i -lt 200 ]; do $b usleep 20000; i=$((i+1)); done
$b mount -t ext4 /dev/vda /disk 2>/dev/null || { $b mke2fs /dev/vda >/dev/null && $b mount -t ext4 /dev/vda /disk; }
$b mkfifo /never /counts
exec 4<>/never 5<>/counts
( while read n <&5; do
    if echo "$n" >>/disk/counter.log && $b sync; then echo "disk $n"; else echo "disk-error $n"; fi
  done ) &
read up idle </proc/uptime
echo "boot $up"
n=0
tick_s=\${tick_s:-0.01}
disk_ticks=\${disk_ticks:-100}
next=$disk_ticks
while :; do
  n=$((n+1))
  echo "tick $n"
  if [ $n -ge $next ]; then echo $n >&5; next=$((n+disk_ticks)); fi
  read -t $tick_s x <&4
done
`;

export interface GuestImage {
  readonly kernel: string;
  readonly initramfs: string;
  readonly cmdline: string;
}

/** Module files in the order they must be loaded, from depmod's list (which names dependencies last-needed first). */
async function modulePaths(kernel: GuestKernel): Promise<string[]> {
  const root = `/lib/modules/${kernel.release}`;
  const dependencies = new Map<string, string[]>();
  for (const line of (await readFile(join(root, "modules.dep"), "utf8")).split("\n")) {
    const [path, rest] = line.split(":", 2);
    if (path === undefined || rest === undefined) continue;
    const name = basename(path).replace(/\.ko(\.\w+)?$/, "");
    dependencies.set(name, [...rest.trim().split(" ").filter(Boolean).reverse(), path]);
  }
  // Built-in ones are not listed, and need no loading.
  const ordered = new Set(wantedModules.flatMap((name) => dependencies.get(name) ?? []));
  return [...ordered].map((path) => join(root, path));
}

/** Copies a module, unpacked: busybox's insmod reads plain ELF only, Debian 13 ships xz. */
async function copyModule(from: string, toDir: string): Promise<string> {
  const name = basename(from).replace(/\.(xz|zst|gz)$/, "");
  const suffix = /\.(xz|zst|gz)$/.exec(from)?.[1];
  if (suffix === undefined) {
    await copyFile(from, join(toDir, name));
    return name;
  }
  const program = { xz: "xz", zst: "zstd", gz: "gzip" }[suffix] ?? suffix;
  const options = { encoding: "buffer", maxBuffer: 64 * 1024 * 1024 } as const;
  const { stdout } = await promisify(execFile)(program, ["-dc", from], options);
  await writeFile(join(toDir, name), stdout);
  return name;
}

/** Kernel and initramfs of the guest; built once per kernel and script, then taken from the cache. */
export async function guestImage(): Promise<GuestImage> {
  const kernel = await findKernel();
  const busybox = await findProgram("busybox");
  if (kernel === undefined || busybox === undefined) {
    throw new LabRefusal("the guest needs a cloud kernel in /boot and busybox", installCommand);
  }
  const busyboxStat = await stat(busybox);
  const key = createHash("sha256")
    .update(JSON.stringify([kernel.release, initScript, busyboxStat.size, busyboxStat.mtimeMs]))
    .digest("hex")
    .slice(0, 12);
  const initramfs = join(cacheDir, `initramfs-${kernel.release}-${key}.cpio`);
  // mitigations=off and quiet: under emulation they cost seconds. panic=-1: a broken guest reboots, and `boots` shows it.
  const cmdline = "console=ttyS0 quiet panic=-1 mitigations=off";
  if ((await stat(initramfs).catch(() => undefined)) === undefined) await build(kernel, busybox, initramfs);
  return { kernel: kernel.path, initramfs, cmdline };
}

async function build(kernel: GuestKernel, busybox: string, target: string): Promise<void> {
  await mkdir(cacheDir, { recursive: true, mode: 0o755 });
  const work = await mkdtemp(join(tmpdir(), "vmferry-initramfs-"));
  try {
    const root = join(work, "root");
    for (const dir of ["bin", "mod", "dev", "proc", "disk"]) await mkdir(join(root, dir), { recursive: true });
    await copyFile(busybox, join(root, "bin", "busybox"));
    const order: string[] = [];
    for (const path of await modulePaths(kernel)) order.push(await copyModule(path, join(root, "mod")));
    await writeFile(join(root, "mod", "order"), `${order.join("\n")}\n`);
    await writeFile(join(root, "init"), initScript);
    await chmod(join(root, "init"), 0o755);
    const names = [
      "bin",
      "bin/busybox",
      "mod",
      "mod/order",
      ...order.map((name) => `mod/${name}`),
      "dev",
      "proc",
      "disk",
      "init",
    ];
    const archive = `${target}.${process.pid}`;
    await cpio(root, names, archive);
    // Two labs may build at once: either result is whole, and the same.
    await rename(archive, target);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

function cpio(root: string, names: readonly string[], archive: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn("cpio", ["-o", "-H", "newc", "-R", "0:0", "--quiet", "-O", archive], { cwd: root });
    let stderr = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.once("error", reject);
    child.once("close", (code) => (code === 0 ? resolve() : reject(new Error(`cpio ended with ${code}: ${stderr}`))));
    child.stdin.end(`${names.join("\n")}\n`);
  });
}
