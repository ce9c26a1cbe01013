/** The supervisor's loop over invented outcomes and a clock of its own: when it waits, how long, what it says, when it ends. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { queryObjects } from "node:v8";
import type { FaultBody } from "#protocol/fault";
import type { ConnectionOutcome, ConnectionParts, Welcome } from "#shim/connection";
import { DoorUnreachableError } from "#shim/door";
import {
  backoff,
  heldMsMin,
  overlapMs,
  refusedBackoff,
  renewBackoff,
  Supervisor,
  type SupervisorParts,
} from "#shim/supervisor";

const fault = (cause: string): FaultBody => ({
  code: "shim.unauthorised",
  cause,
  action: "Enrol again.",
  retry: "person",
});

const dial = { address: new URL("ws://x/"), headers: {}, nonce: null };
const door = { dial: async () => dial, forget: () => {}, refusal: async () => null };

const welcome = (session: string, renewAfterMs?: number): Welcome => ({
  type: "welcome",
  session,
  protocol: 1,
  features: [],
  name: "alpha",
  heartbeatMs: 1_000,
  ...(renewAfterMs === undefined ? {} : { renewAfterMs }),
});

/** Runs the loop over `outcomes`, then stops it. `random` is what every draw gives. */
async function run(outcomes: ConnectionOutcome[], random = 1) {
  const stop = new AbortController();
  const waits: number[] = [];
  const refused: FaultBody[] = [];
  const logs: string[] = [];
  const sent: boolean[] = [];
  let dialled = 0;
  const supervisor = new Supervisor({
    door,
    hostId: "h",
    sign: () => "",
    facts: () => Promise.reject(new Error("not asked here")),
    onMessage: () => {},
    onSession: () => sent.push(supervisor.send({ type: "heartbeat" })),
    onResend: () => {},
    onRefused: (each) => refused.push(each),
    clock: {
      now: () => "",
      monotonicMs: () => 0,
      random: () => random,
      sleep: async (ms) => {
        waits.push(ms);
        if (dialled === outcomes.length) stop.abort();
      },
    },
    log: { write: (level, message) => logs.push(`${level} ${message}`) },
    signal: stop.signal,
    run: async (parts) => {
      const outcome = outcomes[dialled];
      dialled += 1;
      if (outcome?.kind === "served") parts.onSession({ welcome: welcome("one"), send: () => true });
      return outcome ?? { kind: "stopped" };
    },
  });
  const ended = await supervisor.run();
  return { ended, waits, refused, logs, sent, supervisor, dialled };
}

const lost: ConnectionOutcome = { kind: "retryable", cause: "ECONNREFUSED" };

describe("supervisor", () => {
  test("waits grow to a cap and are drawn from the whole range", async () => {
    const { waits } = await run(Array.from({ length: 8 }, () => lost));
    assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    assert.deepEqual((await run([lost, lost], 0)).waits, [0, 0]);
    assert.deepEqual((await run([lost, lost], 0.5)).waits, [backoff.baseMs / 2, backoff.baseMs]);
  });

  test("attempts that came to nothing leave nothing behind", async () => {
    const attempts = 400;
    await run(Array.from({ length: attempts }, () => lost));
    const before = queryObjects(Promise, { format: "count" });
    await run(Array.from({ length: attempts }, () => lost));
    const left = queryObjects(Promise, { format: "count" }) - before;
    assert.ok(left < attempts / 4, `${left} promises stay after ${attempts} attempts`);
  });

  test("a session that held resets the wait; a door that opens and shuts does not", async () => {
    const served = (heldMs: number): ConnectionOutcome => ({ kind: "served", heldMs, cause: "cut" });
    const { waits } = await run([lost, lost, served(heldMsMin), lost, served(heldMsMin - 1), served(0)]);
    assert.deepEqual(waits, [500, 1000, 500, 1000, 2000, 4000]);
  });

  test("a refusal is said once, tried again slowly, and said again when it is another one", async () => {
    const refusal = (cause: string): ConnectionOutcome => ({ kind: "refused", fault: fault(cause) });
    const { waits, refused } = await run([refusal("a"), refusal("a"), refusal("b")], 0);
    assert.deepEqual(
      refused.map(({ cause }) => cause),
      ["a", "b"],
    );
    assert.deepEqual(waits, [refusedBackoff.baseMs, refusedBackoff.baseMs, refusedBackoff.baseMs]);
  });

  test("the same cause is not said at every attempt", async () => {
    const { logs } = await run([lost, lost, lost, { kind: "retryable", cause: "EHOSTUNREACH" }]);
    assert.equal(logs.filter((line) => line.startsWith("warn")).length, 2);
  });

  test("ends with the fault that makes every further attempt useless, or with null when it is stopped", async () => {
    const { ended, dialled } = await run([lost, { kind: "fatal", fault: fault("no key") }, lost]);
    assert.equal(ended?.cause, "no key");
    assert.equal(dialled, 2);
    assert.equal((await run([{ kind: "stopped" }])).ended, null);
    assert.equal((await run([lost])).ended, null);
  });

  test("sends through the open session only", async () => {
    const { sent, supervisor } = await run([{ kind: "served", heldMs: 1, cause: "cut" }]);
    assert.deepEqual(sent, [true]);
    assert.equal(supervisor.send({ type: "heartbeat" }), false);
    assert.equal(supervisor.isConnected, false);
  });
});

/** A supervisor whose connections and sleeps are opened and ended by hand. */
function byHand(over: Partial<SupervisorParts> = {}) {
  const stop = new AbortController();
  const lines: {
    parts: ConnectionParts;
    open(session: string): void;
    end(outcome: ConnectionOutcome): void;
    sent: string[];
  }[] = [];
  const sleeps: { ms: number; wake(): void }[] = [];
  const sessions: [string, boolean][] = [];
  const supervisor = new Supervisor({
    door,
    hostId: "h",
    sign: () => "",
    facts: () => Promise.reject(new Error("not asked here")),
    onMessage: () => {},
    onSession: ({ welcome: { session } }, renewed) => sessions.push([session, renewed]),
    onResend: () => {},
    onRefused: () => {},
    clock: {
      now: () => "",
      monotonicMs: () => 0,
      random: () => 1,
      sleep: (ms, signal) =>
        new Promise((resolve) => {
          sleeps.push({ ms, wake: resolve });
          signal?.addEventListener("abort", () => resolve());
        }),
    },
    log: { write: () => {} },
    signal: stop.signal,
    run: (parts) =>
      new Promise((resolve) => {
        const sent: string[] = [];
        parts.signal.addEventListener("abort", () => resolve({ kind: "stopped" }));
        lines.push({
          parts,
          sent,
          open: (session) =>
            parts.onSession({
              welcome: welcome(session, 7_000),
              send: ({ type }) => {
                sent.push(type);
                return true;
              },
            }),
          end: resolve,
        });
      }),
    ...over,
  });
  const ended = supervisor.run();
  const until = async (condition: () => boolean) => {
    while (!condition()) await new Promise((resolve) => setImmediate(resolve));
  };
  const wake = async (ms: number) => {
    await until(() => sleeps.some((sleep) => sleep.ms === ms));
    const at = sleeps.findIndex((sleep) => sleep.ms === ms);
    sleeps.splice(at, 1)[0]?.wake();
  };
  return { supervisor, lines, sessions, ended, stop, until, wake };
}

describe("a socket that its carrier will cut", () => {
  test("S4: the next one opens beside it and takes over before it is closed", async () => {
    const { supervisor, lines, sessions, ended, stop, until, wake } = byHand();
    await until(() => lines.length === 1);
    lines[0]?.open("one");
    await wake(7_000);
    await until(() => lines.length === 2);
    assert.equal(lines[1]?.parts.renews, "one");
    supervisor.send({ type: "heartbeat" });
    assert.deepEqual(lines[0]?.sent, ["heartbeat"], "the older one serves until the next one is open");
    lines[1]?.open("two");
    supervisor.send({ type: "heartbeat" });
    assert.deepEqual(lines[1]?.sent, ["heartbeat"]);
    assert.equal(lines[0]?.parts.signal.aborted, false, "both are open for a while");
    await wake(overlapMs);
    await until(() => lines[0]?.parts.signal.aborted === true);
    assert.equal(supervisor.isConnected, true);
    assert.deepEqual(sessions, [
      ["one", false],
      ["two", true],
    ]);
    await wake(7_000);
    await until(() => lines.length === 3);
    assert.equal(lines[2]?.parts.renews, "two");
    stop.abort();
    assert.equal(await ended, null);
  });

  test("S4: a successor that fails is tried again while the older one serves", async () => {
    const { supervisor, lines, stop, until, wake } = byHand();
    await until(() => lines.length === 1);
    lines[0]?.open("one");
    await wake(7_000);
    await until(() => lines.length === 2);
    lines[1]?.end({ kind: "retryable", cause: "busy" });
    await wake(renewBackoff.baseMs * 2);
    await until(() => lines.length === 3);
    assert.equal(lines[2]?.parts.renews, "one");
    assert.equal(supervisor.isConnected, true);
    stop.abort();
  });

  test("the older one is cut while the next one is still dialling: that attempt ends, and a new session begins", async () => {
    const { supervisor, lines, stop, until, wake } = byHand();
    await until(() => lines.length === 1);
    lines[0]?.open("one");
    await wake(7_000);
    await until(() => lines.length === 2);
    lines[0]?.end({ kind: "served", heldMs: 7_200_000, cause: "1001" });
    await until(() => lines[1]?.parts.signal.aborted === true);
    assert.equal(supervisor.isConnected, false);
    await wake(backoff.baseMs);
    await until(() => lines.length === 3);
    assert.equal(lines[2]?.parts.renews, undefined);
    stop.abort();
  });
});

describe("the door", () => {
  test("is asked again after a dial that came to nothing, and not after a session", async () => {
    const calls: string[] = [];
    const counting = {
      dial: async () => {
        calls.push("dial");
        return dial;
      },
      forget: () => void calls.push("forget"),
      refusal: async () => null,
    };
    const { lines, until, wake, stop } = byHand({ door: counting });
    await until(() => lines.length === 1);
    lines[0]?.end({ kind: "retryable", cause: "ECONNREFUSED" });
    await wake(500);
    await until(() => lines.length === 2);
    lines[1]?.open("one");
    lines[1]?.end({ kind: "served", heldMs: heldMsMin, cause: "cut" });
    await wake(500);
    await until(() => lines.length === 3);
    assert.deepEqual(calls, ["dial", "forget", "dial", "dial"]);
    stop.abort();
  });

  test("that cannot be reached, or refuses in the request, gives its cause", async () => {
    const refused: FaultBody[] = [];
    const mute = {
      ...door,
      dial: async () => {
        throw new DoorUnreachableError("ECONNREFUSED");
      },
    };
    const first = byHand({ door: mute });
    await first.wake(500);
    first.stop.abort();
    assert.equal(await first.ended, null, "it is tried again, not given up");
    const second = byHand({
      door: { ...door, refusal: async () => fault("This host was removed.") },
      onRefused: (each) => refused.push(each),
    });
    await second.until(() => second.lines.length === 1);
    second.lines[0]?.end({ kind: "retryable", cause: "HTTP 401", refusedStatus: 401 });
    await second.until(() => refused.length === 1);
    assert.equal(refused[0]?.cause, "This host was removed.");
    second.stop.abort();
  });
});
