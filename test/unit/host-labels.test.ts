/** A host's labels: as the shim's command line takes them, as its facts say them, as the API and `vmferry hosts` show them. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { hostFactsSchema } from "#protocol/message";
import { labelsOf, parseShimArguments } from "#shim/command-line";
import { readHostFacts } from "#shim/session-facts";
import { adminToken, factsOf, memoryFleet } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run } from "#test/fake/memory-terminal";

const optionsOf = (args: string[], env: Record<string, string>) => {
  const parsed = parseShimArguments(["--url", "http://x", ...args], env);
  assert.ok(!parsed.help);
  return parsed.options.labels;
};

describe("labels of a host", () => {
  test("each option is one, and the variable stands in where there is none", () => {
    const env = { VMFERRY_LABELS: "rack=c, zone=1" };
    assert.deepEqual(optionsOf(["--label", "rack=b", "--label", "net=a=b"], env), { rack: "b", net: "a=b" });
    assert.deepEqual(optionsOf([], env), { rack: "c", zone: "1" });
    assert.deepEqual(optionsOf([], {}), {});
  });

  for (const wrong of ["rack", "=b", "ra ck=b", `rack=${"x".repeat(256)}`, "-rack=b"])
    test(`"${wrong.slice(0, 12)}" is refused by name`, () => {
      assert.throws(() => labelsOf([wrong]), /--label takes KEY=VALUE/);
    });

  test("a key that comes twice, and too many, are refused", () => {
    assert.throws(() => labelsOf(["rack=a", "rack=b"]), /has the key rack twice/);
    assert.throws(() => labelsOf(Array.from({ length: 65 }, (_, index) => `k${index}=v`)), /64 is the most/);
  });

  test("`vmferry shim` says a wrong one as a usage error", async () => {
    const ran = await run(["shim", "--url", "http://x", "--label", "nonsense"]);
    assert.equal(ran.exit, 64);
    assert.match(ran.err, /--label takes KEY=VALUE.*"nonsense"/);
  });

  test("the facts carry them, and none where there are none", async () => {
    const parts = { libvirt: () => Promise.reject(new Error("away")), migrationAddress: null, peer: null };
    const facts = await readHostFacts({ ...parts, labels: { rack: "b" } });
    assert.deepEqual(hostFactsSchema.parse(facts).labels, { rack: "b" });
    assert.ok(!("labels" in (await readHostFacts({ ...parts, labels: {} }))));
  });

  test("hosts and host show name them", async () => {
    const fleet = await memoryFleet();
    await fleet.addHost(1, { facts: { ...factsOf(1), labels: { zone: "1", rack: "b" } } });
    const server = new MemoryServer(fleet.app.fetch);
    await server.start();
    try {
      const env = { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken };
      assert.match((await run(["hosts"], { env })).out, /LABELS[\s\S]*rack=b,zone=1/);
      assert.match((await run(["host", "show", "host1"], { env })).out, /^labels {5}rack=b,zone=1$/m);
      const shown: { labels?: unknown } = JSON.parse((await run(["host", "show", "host1", "--json"], { env })).out);
      assert.deepEqual(shown.labels, { zone: "1", rack: "b" });
    } finally {
      await server.stop();
    }
  });
});
