/** The supervisor's loop over invented outcomes and a clock of its own: when it waits, how long, what it says, when it ends. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { FaultBody } from "#protocol/fault";
import type { ConnectionOutcome, Session } from "#shim/connection";
import { backoff, heldMsMin, refusedBackoff, Supervisor } from "#shim/supervisor";

const fault = (cause: string): FaultBody => ({
  code: "shim.unauthorised",
  cause,
  action: "Enrol again.",
  retry: "person",
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
    address: new URL("ws://x/"),
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
      if (outcome?.kind === "served") parts.onSession({ send: () => true } as unknown as Session);
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
