/** The watch over a host's shutdown where logind is not there from the beginning. With systemd's own one: test/contract/logind.test.ts. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { UpMessage } from "#protocol/message";
import { systemClock } from "#shim/clock";
import { LogindAbsentError } from "#shim/logind";
import { ShutdownWatch } from "#shim/shutdown-watch";

test("a logind that answers only later is watched from then on, and its absence is said once", async () => {
  const stop = new AbortController();
  const said: UpMessage[] = [];
  const logged: string[] = [];
  let asked = 0;
  const watch = new ShutdownWatch({
    host: "host1",
    budgetMs: 0,
    lock: "block",
    records: () => [],
    send: (message) => {
      said.push(message);
      stop.abort();
      return true;
    },
    clock: { ...systemClock, sleep: async () => {} },
    log: { write: (level, message) => void logged.push(`${level} ${message}`) },
    signal: stop.signal,
    logind: {
      async shutting() {
        asked += 1;
        if (asked < 5) throw new LogindAbsentError("it is being restarted");
        return { preparing: false, kind: "reboot", scheduledMs: Date.now() + 3_600_000, delayMsMax: 5_000 };
      },
      scheduledText: async () => null,
      watch: () => new Promise((resolve) => stop.signal.addEventListener("abort", () => resolve("stopped"))),
    },
  });
  watch.welcome(["shutdown.1"]);
  await watch.run();
  assert.equal(said[0]?.type, "shutdown");
  assert.equal(logged.filter((line) => line.includes("no systemd-logind here")).length, 1);
});
