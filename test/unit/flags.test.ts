/** libvirt's flags and parameters for each phase, as virDomainMigrateVersion3Full sets them. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import * as fc from "fast-check";
import { MigrateFlag } from "#libvirt/constants";
import type { MigrateOptions } from "#protocol/command";
import { destinationFlags, finishParams, migrateFlags, performParams, prepareParams } from "#shim/flags";

const plain: MigrateOptions = { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null };
const { LIVE, PERSIST_DEST, UNDEFINE_SOURCE, UNSAFE, AUTO_CONVERGE, PAUSED, OFFLINE } = MigrateFlag;
const always = PERSIST_DEST | UNDEFINE_SOURCE;

describe("migrateFlags", () => {
  const cases: [string, MigrateOptions, boolean, number][] = [
    ["a running domain", plain, false, always | LIVE],
    ["a paused one", plain, true, always | LIVE | PAUSED],
    ["proven storage", { ...plain, unsafe: true }, false, always | LIVE | UNSAFE],
    ["auto-converge", { ...plain, autoConverge: true }, false, always | LIVE | AUTO_CONVERGE],
    [
      "offline takes nothing live along",
      { ...plain, offline: true, unsafe: true, autoConverge: true },
      true,
      always | OFFLINE,
    ],
  ];
  for (const [what, options, paused, flags] of cases)
    test(what, () => assert.equal(migrateFlags(options, paused), flags));

  test("never protects against change, tunnels or copies storage, whatever the options", () => {
    const options = fc.record({
      offline: fc.boolean(),
      unsafe: fc.boolean(),
      autoConverge: fc.boolean(),
      bandwidthMiBps: fc.option(fc.integer({ min: 1, max: 1_000_000 })),
    });
    const { CHANGE_PROTECTION, TUNNELLED, PEER2PEER, NON_SHARED_DISK, NON_SHARED_INC } = MigrateFlag;
    const never = CHANGE_PROTECTION | TUNNELLED | PEER2PEER | NON_SHARED_DISK | NON_SHARED_INC;
    fc.assert(fc.property(options, fc.boolean(), (given, paused) => (migrateFlags(given, paused) & never) === 0));
  });
});

test("the destination is spared what only a source understands", () => {
  const flags = always | LIVE | UNSAFE | AUTO_CONVERGE | MigrateFlag.ABORT_ON_ERROR;
  assert.equal(destinationFlags(flags), always | LIVE | UNSAFE);
});

describe("parameters", () => {
  const fields = (params: readonly { field: string; value: unknown }[]) =>
    Object.fromEntries(params.map(({ field, value }) => [field, value]));

  test("Prepare: Begin's XML, and the address with libvirt's own port", () => {
    assert.deepEqual(fields(prepareParams(plain, "<domain/>", null)), { destination_xml: "<domain/>" });
    assert.deepEqual(fields(prepareParams(plain, "<domain/>", "10.0.0.2")), {
      destination_xml: "<domain/>",
      migrate_uri: "tcp://10.0.0.2",
      listen_address: "10.0.0.2",
    });
    assert.equal(fields(prepareParams(plain, "", "2001:db8::1")).migrate_uri, "tcp://[2001:db8::1]");
    // A name may mean several addresses: QEMU is not bound to one.
    assert.equal("listen_address" in fields(prepareParams(plain, "", "h2.example")), false);
  });

  test("offline there is no stream to listen for", () => {
    const offline = { ...plain, offline: true };
    assert.deepEqual(fields(prepareParams(offline, "<domain/>", "10.0.0.2")), { destination_xml: "<domain/>" });
  });

  test("Perform goes where Prepare said; Finish names the domain; the bandwidth is in every phase", () => {
    const slow = { ...plain, bandwidthMiBps: 100 };
    assert.deepEqual(fields(performParams(slow, "tcp://h2:49152")), { bandwidth: 100n, migrate_uri: "tcp://h2:49152" });
    assert.deepEqual(fields(performParams(plain, null)), {});
    assert.deepEqual(fields(finishParams(slow, "web")), { bandwidth: 100n, destination_name: "web" });
    assert.equal(fields(prepareParams(slow, "", null)).bandwidth, 100n);
  });
});
