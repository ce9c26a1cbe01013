/**
 * systemd's own logind on a bus of its own: a private dbus-daemon, the real systemd-logind in its own mount namespace, and a stand-in for PID 1 (python3-dbusmock)
 * that takes down what it is asked to start.
 *
 * Nothing here can shut the machine down: no call goes to the system's bus (each names its address), the only one who is asked to start `reboot.target` is the
 * stand-in, and logind runs without CAP_SYS_BOOT. `/run` is a tmpfs of its own, so no nologin file and no message to terminals leaves it.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import * as z from "zod/mini";

const run = promisify(execFile);

const logind = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
const mock = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.DBus.Mock"];
const unit = "org.freedesktop.systemd1.Unit";
const systemd = "org.freedesktop.systemd1.Manager";

/** dbus-daemon refuses everything that no policy allows. */
const busConfig = (socket: string) => `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>custom</type>
  <listen>unix:path=${socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="false"/>
    <allow send_type="method_call"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`;

/** Slow machines; a start takes half a second. */
const startMsMax = 20_000;

export interface Lock {
  who: string;
  why: string;
  mode: string;
  pid: number;
}

export interface Logind {
  /** For DBUS_SYSTEM_BUS_ADDRESS. */
  address: string;
  /** Where this logind leaves what `shutdown +N` leaves behind. */
  scheduledPath: string;
  locks(): Promise<Lock[]>;
  /** Calls the manager's method. Rejects with what busctl says. `as`: a user id, root without. */
  call(words: readonly string[], as?: number): Promise<void>;
  /** Asks for a reboot in root's name, past what refuses it. `wasRefused`: plain words did not do (systemd 257 and newer). */
  reboot(): Promise<{ wasRefused: boolean }>;
  /** Units that PID 1 was asked to start. */
  started(): string[];
  /** PID 1 says that this job is over: logind prepares for nothing any more. */
  endJob(): Promise<void>;
  property(name: string): Promise<string>;
  end(): Promise<void>;
}

/** `dropIn`: a file for logind.conf.d. Needs what `logindSkipReason` looks for. */
export async function startLogind(dropIn: string): Promise<Logind> {
  const dir = await mkdtemp(join(tmpdir(), "vmferry-logind-"));
  const socket = join(dir, "bus");
  const address = `unix:path=${socket}`;
  const shutdownDir = join(dir, "shutdown");
  await mkdir(shutdownDir);
  await writeFile(join(dir, "bus.conf"), busConfig(socket));
  const env = { ...process.env, DBUS_SYSTEM_BUS_ADDRESS: address, SYSTEMD_LOG_TARGET: "console" };
  const children: ChildProcess[] = [];
  const said: string[] = [];
  const start = (program: string, args: readonly string[]) => {
    const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    const lines = { text: "" };
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        lines.text += text;
        said.push(text);
      });
    children.push(child);
    return lines;
  };
  const busctl = async (words: readonly string[]) =>
    (await run("busctl", [`--address=${address}`, "--json=short", ...words], { env })).stdout;
  const until = async (what: string, isSo: () => Promise<boolean>) => {
    for (let waitedMs = 0; !(await isSo().catch(() => false)); waitedMs += 50) {
      if (waitedMs > startMsMax) throw new Error(`${what} did not come up: ${said.join("").slice(-2_000)}`);
      await sleep(50);
    }
  };
  const end = async () => {
    for (const child of children.toReversed()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const closed = new Promise((resolve) => child.once("close", resolve));
      child.kill("SIGKILL");
      await closed;
    }
    await rm(dir, { recursive: true });
  };

  try {
    start("dbus-daemon", [`--config-file=${join(dir, "bus.conf")}`, "--nofork", "--nopidfile"]);
    await until("the bus", async () => (await busctl(["list"])) !== "");
    const pid1 = start("/usr/bin/python3", ["-u", "-m", "dbusmock", "--system", mock[0] ?? "", mock[1] ?? "", systemd]);
    const isOwned = (name: string) => async () => (await busctl(["list", "--acquired"])).includes(name);
    await until("the stand-in for PID 1", isOwned("org.freedesktop.systemd1"));
    const job = 'ret = dbus.ObjectPath("/org/freedesktop/systemd1/job/1")';
    await busctl(["call", ...mock, "AddMethod", "sssss", systemd, "StartUnit", "ss", "o", job]);
    await busctl(["call", ...mock, "AddMethod", "sssss", systemd, "Subscribe", "", "", ""]);
    for (const name of ["reboot", "poweroff", "halt"]) {
      const path = `/org/freedesktop/systemd1/unit/${name}_2etarget`;
      await busctl(["call", ...mock, "AddObject", "ssa{sv}a(ssss)", path, unit, "1", "LoadState", "s", "loaded", "0"]);
    }
    const script = [
      "set -e",
      "mount -t tmpfs tmpfs /run",
      "mkdir -p /run/systemd/system /run/systemd/shutdown /run/systemd/logind.conf.d",
      'cp "$1" /run/systemd/logind.conf.d/50-vmferry.conf',
      'mount --bind "$2" /run/systemd/shutdown',
      "exec /lib/systemd/systemd-logind",
    ].join("\n");
    const withoutBoot = ["setpriv", "--bounding-set=-sys_boot", "--inh-caps=-sys_boot"];
    start("unshare", ["-m", "--propagation", "private", ...withoutBoot, "sh", "-c", script, "sh", dropIn, shutdownDir]);
    await until("logind", isOwned("org.freedesktop.login1"));

    const call = async (words: readonly string[], as?: number) => {
      const asUser = as === undefined ? [] : [`--reuid=${as}`, `--regid=${as}`, "--clear-groups"];
      const busctlWords = ["busctl", `--address=${address}`, "call", ...logind, ...words];
      await run("setpriv", [...asUser, ...busctlWords], { env });
    };
    return {
      address,
      scheduledPath: join(shutdownDir, "scheduled"),
      async locks() {
        const answer = z
          .object({
            data: z.tuple([z.array(z.tuple([z.string(), z.string(), z.string(), z.string(), z.number(), z.number()]))]),
          })
          .parse(JSON.parse(await busctl(["call", ...logind, "ListInhibitors"])));
        return answer.data[0].map(([, who, why, mode, , pid]) => ({ who, why, mode, pid }));
      },
      call,
      async reboot() {
        try {
          await call(["Reboot", "b", "false"]);
          return { wasRefused: false };
        } catch {
          // SD_LOGIND_SKIP_INHIBITORS, what `systemctl reboot -i` sends there.
          await call(["RebootWithFlags", "t", "16"]);
          return { wasRefused: true };
        }
      },
      started: () => [...pid1.text.matchAll(/ StartUnit "([^"]+)"/g)].map(([, name]) => name ?? ""),
      async endJob() {
        const about = ["4", "u", "1", "o", "/org/freedesktop/systemd1/job/1", "s", "reboot.target", "s", "done"];
        await busctl(["call", ...mock, "EmitSignal", "sssav", systemd, "JobRemoved", "uoss", ...about]);
      },
      property: (name) => busctl(["get-property", ...logind, name]),
      end,
    };
  } catch (error) {
    await end();
    throw error;
  }
}
