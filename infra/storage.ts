/**
 * Where the truth is: one DynamoDB table and one bucket. They are the only things that cannot be made again, so a kept
 * stage refuses to delete them, and the table can be brought back to any second of the last 35 days: as a table of another name, which the
 * stage then uses in place of its own (VMFERRY_TABLE; docs/deploy.md). A kept stage's own table stays where it is meanwhile.
 */
import { indexes } from "#functions/store/dynamo-table";
import { objectFolders } from "./permissions.ts";
import type { Settings, Stage } from "./stage.ts";

/**
 * Days until S3 removes a bundle or a large cookie. The safety copy is promised for 7 days after a migration's end, but S3
 * counts from the upload, a stranded migration waits for people, and an unchanged bundle is used again without a new
 * upload: so much longer than any of them. If one goes while it is needed, that migration is rolled back and uploads anew.
 */
const objectDays = 60;
/** Days in which a removed object can be brought back. */
const removedDays = 7;

export type Storage = ReturnType<typeof createStorage>;

export function createStorage({ kept }: Stage, settings: Pick<Settings, "table">) {
  const table = settings.table === null ? createTable(kept) : sst.aws.Dynamo.get("Store", settings.table);
  const bucket = createBucket(kept);
  return { table: table.name, bucket: bucket.name, arns: { table: table.arn, bucket: bucket.arn } };
}

function createTable(kept: boolean) {
  return new sst.aws.Dynamo("Store", {
    fields: Object.fromEntries(keyAttributes().map((name) => [name, "string" as const])),
    primaryIndex: { hashKey: "pk", rangeKey: "sk" },
    globalIndexes: Object.fromEntries(
      Object.entries(indexes).map(([name, { hash, range }]) => [
        name,
        { hashKey: hash, rangeKey: range, projection: ["row"] },
      ]),
    ),
    // A broom for what is long over; nobody relies on when it sweeps.
    ttl: "ttl",
    deletionProtection: kept,
    transform: {
      table(args) {
        args.pointInTimeRecovery = { enabled: true };
        // The account's own KMS key of DynamoDB: each use of it is in CloudTrail.
        args.serverSideEncryption = { enabled: true };
      },
    },
  });
}

function createBucket(kept: boolean) {
  const bucket = new sst.aws.Bucket("Objects", {
    // Shims and functions are no browsers.
    cors: false,
    versioning: true,
    enforceHttps: true,
    transform: {
      bucket(args) {
        args.forceDestroy = !kept;
      },
    },
  });
  new aws.s3.BucketLifecycleConfiguration("ObjectsLifecycle", { bucket: bucket.name, rules: lifecycleRules() });
  new aws.s3.BucketServerSideEncryptionConfiguration("ObjectsEncryption", {
    bucket: bucket.name,
    // S3's own keys: a presigned request of a shim then needs no right on a KMS key.
    rules: [{ applyServerSideEncryptionByDefault: { sseAlgorithm: "AES256" } }],
  });
  new aws.s3.BucketOwnershipControls("ObjectsOwnership", {
    bucket: bucket.name,
    rule: { objectOwnership: "BucketOwnerEnforced" },
  });
  return bucket;
}

function keyAttributes(): string[] {
  return [...new Set(["pk", "sk", ...Object.values(indexes).flatMap(({ hash, range }) => [hash, range])])];
}

/** One rule a folder; S3 sweeps up delete markers along with what has expired. */
const lifecycleRules = () =>
  objectFolders.map((folder) => ({
    id: `${folder}-expire`,
    status: "Enabled",
    filter: { prefix: `${folder}/` },
    expiration: { days: objectDays },
    noncurrentVersionExpiration: { noncurrentDays: removedDays },
    abortIncompleteMultipartUpload: { daysAfterInitiation: 1 },
  }));
