/** Without faults every guest arrives whole; and a seed is the whole of a run: played again it is the same to the last line. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, test } from "node:test";
import { runPair, scenarios } from "./batch.ts";
import { simulate } from "./run.ts";
import { runSwarm } from "./swarm.ts";

describe("the simulated world", () => {
  for (const [name, scenario] of Object.entries(scenarios))
    test(`without faults a guest arrives: ${name}`, async () => {
      for (let seed = 1; seed <= 20; seed += 1) {
        const result = await simulate({ seed, scenario });
        assert.deepEqual(result.violations, [], `seed ${seed}`);
        assert.equal(result.status, "completed", `seed ${seed}`);
        assert.equal(result.injected.length, 0);
      }
    });

  test("two migrations of one domain at once: the second is refused as busy, and harms nothing", async () => {
    for (let seed = 1; seed <= 60; seed += 1) {
      const result = await simulate({ seed, rivalAtMs: 6_015 + 5 * seed });
      assert.deepEqual(result.violations, [], `seed ${seed}`);
      assert.deepEqual([result.status, result.rival?.status], ["completed", "refused"], `seed ${seed}`);
      assert.equal(result.rival?.failure?.code, "domain.busy");
    }
  });

  test("a seed replays to the same trace, faults and all", async () => {
    let faults = 0;
    for (let seed = 1; seed <= 25; seed += 1)
      for (const run of [runSwarm, runPair]) {
        const [one, other] = [await run(seed, { tracing: true }), await run(seed, { tracing: true })];
        assert.deepEqual(other.trace, one.trace, `seed ${seed}`);
        assert.deepEqual(other.injected, one.injected);
        assert.equal(other.events, one.events);
        faults += one.injected.length;
      }
    assert.ok(faults > 50, `${faults} faults`);
  });

  test("a broken run is told in full, with the command that tells it again", () => {
    const words = ["--seed", "2", "--mutation", "strip before stage"];
    const main = new URL("./main.ts", import.meta.url).pathname;
    const told = () => spawnSync(process.execPath, [main, ...words], { encoding: "utf8" });
    const [one, other] = [told(), told()];
    assert.equal(one.status, 1, one.stderr);
    assert.match(one.stdout, /BROKEN I3 at \d+ ms: .* is being stripped/);
    assert.match(one.stdout, /replay: npm run sim -- --seed 2 --trace --mutation 'strip before stage'/);
    assert.match(one.stdout, /source libvirt domain_snapshot_delete/);
    assert.equal(other.stdout, one.stdout);
  });

  test("tracing changes nothing", async () => {
    for (let seed = 1; seed <= 10; seed += 1)
      assert.equal((await runSwarm(seed)).events, (await runSwarm(seed, { tracing: true })).events);
  });
});
