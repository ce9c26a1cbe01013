/** The bundles as Lambda runs them, over a table in the embedded DynamoDB: what each test of the bundles begins with. */
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { openDynalite } from "#functions/cli/up-dynalite";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { controlKeyPkcs8 } from "#test/fake/control-key";
import { lambdaBuild, type lambdaNames } from "../../infra/lambda-build.ts";

export const stageCredentials = { accessKeyId: "local", secretAccessKey: "local" };
export const stageRegion = "eu-central-1";
export const stageSocketUrl = "wss://sockets.example/prod";

export interface LambdaStage {
  /** Of dynalite itself. */
  endpoint: string;
  table: DynamoTable;
  /** All that a function is given by a deployment without a bucket. Nobody is connected, so nobody is called back. */
  env: Readonly<Record<string, string>>;
  fileOf(name: (typeof lambdaNames)[number]): string;
  close(): Promise<void>;
}

export async function openLambdaStage(adminToken: string): Promise<LambdaStage> {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-lambda-"));
  await build({ ...lambdaBuild(join(import.meta.dirname, "../..")), outdir: join(folder, "dist") });
  const dynalite = await openDynalite(join(folder, "store"));
  const { endpoint } = dynalite;
  const client = createDynamoClient({ region: stageRegion, endpoint, credentials: stageCredentials });
  await createTable(client, "vmferry");
  return {
    endpoint,
    table: new DynamoTable(client, "vmferry"),
    env: {
      TABLE: "vmferry",
      BUCKET: "bundles",
      AWS_REGION: stageRegion,
      AWS_ACCESS_KEY_ID: stageCredentials.accessKeyId,
      AWS_SECRET_ACCESS_KEY: stageCredentials.secretAccessKey,
      DYNAMODB_ENDPOINT: endpoint,
      SOCKET_URL: stageSocketUrl,
      SOCKET_CALLBACK_URL: "http://127.0.0.1:9/prod",
      ADMIN_TOKEN_SHA256: createHash("sha256").update(adminToken).digest("hex"),
      TICKET_KEY: controlKeyPkcs8(),
    },
    fileOf: (name) => join(folder, "dist", `${name}.mjs`),
    async close() {
      await dynalite.close();
      await rm(folder, { recursive: true });
    },
  };
}
