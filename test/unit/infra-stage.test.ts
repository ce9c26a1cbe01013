/** What the name of a stage and the environment decide about a deployment. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { settingsOf, stageOf } from "../../infra/stage.ts";

describe("stage", () => {
  test("a name that ends in -edge is on Cloudflare, any other on AWS", () => {
    assert.equal(stageOf("production").cloud, "aws");
    assert.equal(stageOf("production-edge").cloud, "cloudflare");
    assert.equal(stageOf("edge").cloud, "aws");
    assert.equal(stageOf("edge-production").cloud, "aws");
  });

  test("a stage is kept unless its name says that it may go", () => {
    for (const name of ["production", "production-edge", "staging", "eu", "developers", "prague", "testing"])
      assert.equal(stageOf(name).kept, true, name);
    for (const name of ["dev", "dev-anna", "test", "test-1-edge", "pr-42"])
      assert.equal(stageOf(name).kept, false, name);
  });

  test("a name that AWS would not take is refused with what to type", () => {
    for (const name of ["", "Production", "a_b", "-a", "a-", "a--b", "1a", "a".repeat(33)])
      assert.throws(() => stageOf(name), /npx sst deploy --stage production/, name);
    assert.equal(stageOf("a".repeat(32)).name.length, 32);
  });

  test("the longest name still fits into what AWS allows for functions and roles", () => {
    const longest = `vmferry-${"a".repeat(32)}-schedule`;
    assert.ok(longest.length <= 64, String(longest.length));
  });
});

describe("settings", () => {
  test("none is needed", () => {
    const none = { door: "gateway", domain: null, alarmEmail: null, table: null };
    assert.deepEqual(settingsOf("aws", {}), none);
    assert.deepEqual(settingsOf("cloudflare", {}), none);
  });

  test("all that can be said", () => {
    assert.deepEqual(
      settingsOf("aws", {
        VMFERRY_DOMAIN: "ferry.example.com",
        VMFERRY_ZONE_ID: "Z1",
        VMFERRY_ALARM_EMAIL: "ops@example.com",
        VMFERRY_TABLE: "vmferry-restored",
      }),
      {
        door: "gateway",
        domain: { name: "ferry.example.com", zoneId: "Z1" },
        alarmEmail: "ops@example.com",
        table: "vmferry-restored",
      },
    );
    assert.equal(settingsOf("aws", { VMFERRY_DOOR: "function-url" }).door, "function-url");
    assert.deepEqual(settingsOf("cloudflare", { VMFERRY_DOMAIN: "ferry.example.com" }).domain, {
      name: "ferry.example.com",
      zoneId: null,
    });
  });

  test("what does not fit is refused by the name of its variable", () => {
    const refused: [Parameters<typeof settingsOf>[0], Record<string, string>, RegExp][] = [
      ["aws", { VMFERRY_DOOR: "open" }, /VMFERRY_DOOR is "open"/],
      ["aws", { VMFERRY_DOMAIN: "https://ferry.example.com", VMFERRY_ZONE_ID: "Z" }, /VMFERRY_DOMAIN is/],
      ["aws", { VMFERRY_DOMAIN: "ferry.example.com" }, /VMFERRY_ZONE_ID/],
      [
        "aws",
        { VMFERRY_DOMAIN: "ferry.example.com", VMFERRY_ZONE_ID: "Z", VMFERRY_DOOR: "function-url" },
        /exclude each other/,
      ],
      ["aws", { VMFERRY_ALARM_EMAIL: "ops" }, /VMFERRY_ALARM_EMAIL is "ops"/],
      ["cloudflare", { VMFERRY_DOOR: "function-url" }, /VMFERRY_DOOR/],
    ];
    for (const [cloud, env, words] of refused) assert.throws(() => settingsOf(cloud, env), words);
  });

  test("an empty value counts as none", () => {
    assert.deepEqual(
      settingsOf("aws", { VMFERRY_DOOR: "", VMFERRY_DOMAIN: "", VMFERRY_ZONE_ID: "", VMFERRY_ALARM_EMAIL: "" }),
      settingsOf("aws", {}),
    );
  });
});
