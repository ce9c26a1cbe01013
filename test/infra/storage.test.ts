/** The table and the bucket: what may never be lost, and what may never be seen. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type CreateTableCommandInput, DynamoDBClient } from "@aws-sdk/client-dynamodb";
import * as z from "zod/mini";
import { createTable, indexes } from "#functions/store/dynamo-table";
import { objectFolders } from "../../infra/permissions.ts";
import { ofType, one, planned, policies } from "./plan.ts";

const kept = planned("production");
const passing = planned("pr-7");
const edge = planned("production-edge");

const tableSchema = z.object({
  hashKey: z.string(),
  rangeKey: z.string(),
  billingMode: z.string(),
  attributes: z.array(z.object({ name: z.string(), type: z.string() })),
  globalSecondaryIndexes: z.array(
    z.object({
      name: z.string(),
      hashKey: z.string(),
      rangeKey: z.string(),
      projectionType: z.string(),
      nonKeyAttributes: z.array(z.string()),
    }),
  ),
});

/** What `vmferry up` asks DynamoDB for. */
async function localTable() {
  const client = new DynamoDBClient({ region: "r", credentials: { accessKeyId: "a", secretAccessKey: "s" } });
  let asked: CreateTableCommandInput | undefined;
  client.middlewareStack.add(
    () => async (args) => {
      // The one request that describes a table; later ones only ask whether it is there.
      asked ??= z.custom<CreateTableCommandInput>().parse(args.input);
      return { output: { $metadata: {}, Table: { TableStatus: "ACTIVE" } }, response: {} };
    },
    { step: "initialize" },
  );
  await createTable(client, "local");
  assert.ok(asked);
  return asked;
}

const byName = <T extends { name: string }>(list: T[]) => list.toSorted((a, b) => (a.name < b.name ? -1 : 1));

describe("a table that was put back from a backup", () => {
  test("is used in place of the stage's own, by functions and rights alike, and nothing is made in its place", () => {
    const plan = planned("production", { VMFERRY_TABLE: "vmferry-restored" });
    const made = ofType(plan, "dynamodb/table:Table").filter(({ isRead }) => !isRead);
    assert.deepEqual(made, []);
    const environments = ofType(plan, "lambda/function:Function").map(({ inputs }) =>
      JSON.stringify(inputs.environment),
    );
    assert.equal(environments.length, 3);
    for (const environment of environments) assert.match(environment, /"TABLE":"vmferry-restored"/);
    const named = policies(plan).filter((text) => JSON.stringify(text).includes("dynamodb:PutItem"));
    assert.ok(named.length > 0);
    for (const policy of named) assert.match(JSON.stringify(policy), /vmferry-restored/);
  });
});

describe("table", () => {
  for (const [title, plan] of Object.entries({ kept, passing, edge }))
    test(`${title}: recovery, encryption, the broom, pay per request`, () => {
      const table = one(plan, "dynamodb/table:Table");
      assert.deepEqual(table.pointInTimeRecovery, { enabled: true });
      assert.deepEqual(table.serverSideEncryption, { enabled: true });
      assert.deepEqual(table.ttl, { attributeName: "ttl", enabled: true });
      assert.equal(table.billingMode, "PAY_PER_REQUEST");
      assert.notEqual(table.streamEnabled, true);
    });

  test("has the keys and the indexes of the one that `vmferry up` makes", async () => {
    const local = await localTable();
    const deployed = tableSchema.parse(one(kept, "dynamodb/table:Table"));
    assert.deepEqual(
      byName(deployed.attributes),
      byName(
        (local.AttributeDefinitions ?? []).map((a) => ({
          name: String(a.AttributeName),
          type: String(a.AttributeType),
        })),
      ),
    );
    assert.deepEqual(
      [deployed.hashKey, deployed.rangeKey],
      local.KeySchema?.map(({ AttributeName }) => AttributeName),
    );
    assert.deepEqual(
      byName(deployed.globalSecondaryIndexes),
      byName(
        (local.GlobalSecondaryIndexes ?? []).map((index) => ({
          name: String(index.IndexName),
          hashKey: String(index.KeySchema?.[0]?.AttributeName),
          rangeKey: String(index.KeySchema?.[1]?.AttributeName),
          projectionType: String(index.Projection?.ProjectionType),
          nonKeyAttributes: index.Projection?.NonKeyAttributes ?? [],
        })),
      ),
    );
    assert.equal(deployed.globalSecondaryIndexes.length, Object.keys(indexes).length);
  });

  test("a kept stage refuses to delete it, and it outlives the stack; a passing one goes", () => {
    for (const plan of [kept, edge]) {
      assert.equal(plan.app.protect, true);
      assert.equal(one(plan, "dynamodb/table:Table").deletionProtectionEnabled, true);
      assert.deepEqual(
        ofType(plan, "dynamodb/table:Table").map(({ retainOnDelete }) => retainOnDelete),
        [true],
      );
      assert.equal(one(plan, "s3/bucket:Bucket").forceDestroy, false);
      assert.deepEqual(
        ofType(plan, "s3/bucket:Bucket").map(({ retainOnDelete }) => retainOnDelete),
        [true],
      );
    }
    assert.equal(passing.app.protect, false);
    assert.equal(one(passing, "dynamodb/table:Table").deletionProtectionEnabled, false);
    assert.equal(one(passing, "s3/bucket:Bucket").forceDestroy, true);
  });
});

const lifecycleSchema = z.array(
  z.object({
    status: z.literal("Enabled"),
    filter: z.object({ prefix: z.string() }),
    expiration: z.object({ days: z.number() }),
    noncurrentVersionExpiration: z.object({ noncurrentDays: z.number() }),
    abortIncompleteMultipartUpload: z.object({ daysAfterInitiation: z.number() }),
  }),
);

/** The safety copy is promised for so long after a migration's end (design, section 6). */
const promisedDays = 7;

describe("bucket", () => {
  for (const [title, plan] of Object.entries({ kept, passing, edge })) {
    test(`${title}: nobody but its owner, and only over TLS`, () => {
      const block = one(plan, "s3/bucketPublicAccessBlock:BucketPublicAccessBlock");
      for (const way of ["blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"])
        assert.equal(block[way], true, way);
      const [policy, ...more] = policies(plan).filter(({ where }) => where.includes("s3/bucketPolicy"));
      assert.ok(policy !== undefined && more.length === 0);
      const bucket = String(one(plan, "s3/bucket:Bucket").bucket);
      assert.deepEqual(policy.document.Statement, [
        {
          Effect: "Deny",
          Principal: { "*": ["*"] },
          Action: ["s3:*"],
          Resource: [`arn:aws:s3:::${bucket}`, `arn:aws:s3:::${bucket}/*`],
          Condition: { Bool: { "aws:SecureTransport": ["false"] } },
        },
      ]);
      assert.deepEqual(one(plan, "BucketOwnershipControls").rule, { objectOwnership: "BucketOwnerEnforced" });
      assert.deepEqual(ofType(plan, "BucketCorsConfiguration"), []);
    });

    test(`${title}: encrypted, with versions`, () => {
      assert.deepEqual(one(plan, "BucketServerSideEncryptionConfiguration").rules, [
        { applyServerSideEncryptionByDefault: { sseAlgorithm: "AES256" } },
      ]);
      assert.deepEqual(one(plan, "BucketVersioning").versioningConfiguration, { status: "Enabled" });
    });

    test(`${title}: every folder of the functions empties itself, well after the safety copy's promised time`, () => {
      const rules = lifecycleSchema.parse(one(plan, "BucketLifecycleConfiguration").rules);
      assert.deepEqual(
        rules.map(({ filter }) => filter.prefix),
        objectFolders.map((folder) => `${folder}/`),
      );
      for (const { expiration, noncurrentVersionExpiration, abortIncompleteMultipartUpload } of rules) {
        assert.ok(expiration.days >= 4 * promisedDays);
        assert.ok(noncurrentVersionExpiration.noncurrentDays >= promisedDays);
        assert.equal(abortIncompleteMultipartUpload.daysAfterInitiation, 1);
      }
    });
  }
});
