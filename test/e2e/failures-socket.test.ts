/**
 * A shim's websocket is cut as a command passes, on either side, at every command: before the command arrives, and after it
 * arrived but before its report. The migration completes all the same, and nothing is done twice.
 *
 * READ THIS BEFORE YOU TRUST THE NAMES BELOW: the cut lasts the full 20 s of the issue in one run for each side, in which it is
 * cut at EVERY one of that side's commands in turn, before it arrives and after it arrived by turns. The table of each command
 * in both ways uses 2 s, because with 20 s it would take a quarter of an hour. What a short cut does not reach are the bounds
 * of 15 s for a handshake and of 20 s for a transfer that fails; the full runs do, at each command in one of the two ways.
 * Finish and Confirm are not among them: the shims do them by their ticket. failures-after-perform.test.ts cuts the shims from
 * each other, so that the functions relay them.
 * The bucket is away with the control plane: both are behind one port.
 */
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Side } from "#protocol/command";
import { type Attempt, commandMark, FailureScene } from "./failure-scene.ts";
import { eventually } from "./world.ts";

/** How long a cut lasts in the two full runs, and in the table. */
const cutMs = 20_000;
const shortCutMs = 2_000;

const commandsOf = {
  source: ["inspectSource", "export", "begin", "perform"],
  destination: ["inspectDestination", "stage", "prepare", "settle"],
} as const;
type Kind = (typeof commandsOf)[Side][number];
type When = "before" | "after";

/** Inspections change nothing, so they leave no journal by which their arrival could be told. */
const unjournalled: ReadonlySet<Kind> = new Set(["inspectSource", "inspectDestination"]);

describe("a shim's websocket is cut", { timeout: 1_200_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  /** Cuts at the command, looks that it has or has not arrived, and heals after that time. */
  async function cutAt(
    begun: Attempt | Promise<Attempt>,
    cut: { side: Side; kind: Kind; when: When; forMs: number; passed: Promise<void> },
  ): Promise<void> {
    const { side, kind, when, forMs, passed } = cut;
    const attempt = await begun;
    await Promise.race([passed, attempt.cli.exited]);
    assert.ok(attempt.cli.alive, `it ended before ${kind} was sent:\n${attempt.cli.output}`);
    if (!unjournalled.has(kind)) {
      if (when === "after") await eventually(`${kind} has arrived`, () => scene.wasGiven(scene[side], attempt, kind));
      else assert.equal(await scene.wasGiven(scene[side], attempt, kind), false, `${kind} has arrived`);
    }
    await sleep(forMs);
    assert.ok(attempt.cli.alive, `it ended without its ${side}:\n${attempt.cli.output}`);
    scene.proxy(scene[side]).heal();
  }

  const arm = (side: Side, kind: Kind, when: When) =>
    scene.proxy(scene[side]).cutWhen(commandMark(kind), { direction: "down", when });

  for (const side of ["source", "destination"] as const)
    for (const kind of commandsOf[side])
      for (const when of ["before", "after"] as const)
        test(`for ${shortCutMs / 1000} s on the ${side}, ${when} ${kind} arrives`, async () => {
          const passed = arm(side, kind, when);
          const attempt = await scene.migrate();
          await cutAt(attempt, { side, kind, when, forMs: shortCutMs, passed });
          await scene.completed(attempt);
        });

  for (const side of ["source", "destination"] as const)
    test(`for ${cutMs / 1000} s on the ${side} at each of its commands`, async () => {
      let attempt: Attempt | undefined;
      for (const [index, kind] of commandsOf[side].entries()) {
        const when = index % 2 === 0 ? "before" : "after";
        const passed = arm(side, kind, when);
        attempt ??= await scene.migrate();
        await cutAt(attempt, { side, kind, when, forMs: cutMs, passed });
      }
      assert.ok(attempt !== undefined);
      await scene.completed(attempt);
    });
});
