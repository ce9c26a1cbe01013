/**
 * On Cloudflare: the Worker that `vmferry up` runs in miniflare, as it is built; a Durable Object per host's socket and
 * one per migration's news; the timer as a cron of the same Worker. DynamoDB and S3 are reached with the keys of an IAM
 * user who may do what a function on AWS may do, no more.
 *
 * SST's Worker component is used for what it knows of Durable Object migrations, workers.dev and domains. What it bundles
 * is put aside for the Worker of `npm run build`, which is what was tested.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { relative } from "node:path";
import { artifact } from "./artifact.ts";
import { named, region } from "./function.ts";
import { objectUse, policyOf, tableUse } from "./permissions.ts";
import type { Secrets } from "./secrets.ts";
import type { Settings } from "./stage.ts";
import type { Storage } from "./storage.ts";

/** As in functions/cli/up.ts; a unit test compares. */
export const compatibilityDate = "2026-08-01";

/** Bindings and the classes behind them. A class that is added, renamed or dropped needs a further migration, never another `v1`. */
const objects = { HOST_SOCKET: "HostSocket", MIGRATION_FEED: "MigrationFeed", WEBHOOK_BELL: "WebhookBell" } as const;

interface Input {
  settings: Settings;
  storage: Storage;
  secrets: Secrets;
}

export function createEdge({ settings, storage, secrets }: Input) {
  const key = accessKey(storage);
  const script = artifact("worker.mjs");
  const worker = new sst.cloudflare.Worker("Worker", {
    handler: relative($cli.paths.root, script),
    url: true,
    ...(settings.domain === null ? {} : { domain: settings.domain.name }),
    compatibility: { date: compatibilityDate, flags: ["nodejs_compat"] },
    migrations: [
      { tag: "v1", newSqliteClasses: [objects.HOST_SOCKET, objects.MIGRATION_FEED] },
      { tag: "v2", newSqliteClasses: [objects.WEBHOOK_BELL] },
    ],
    transform: {
      worker(args) {
        args.contentFile = script;
        args.contentSha256 = createHash("sha256").update(readFileSync(script)).digest("hex");
        args.observability = { enabled: true };
        args.bindings = $output(args.bindings ?? []).apply((given) => [
          ...given,
          ...Object.entries(objects).map(([name, className]) => ({
            type: "durable_object_namespace",
            name,
            className,
          })),
          ...texts({ TABLE: storage.table, BUCKET: storage.bucket, REGION: region(), ACCESS_KEY_ID: key.id }),
          ...(settings.domain === null ? [] : texts({ PUBLIC_URL: `https://${settings.domain.name}` })),
          ...hidden({
            SECRET_ACCESS_KEY: key.secret,
            ADMIN_TOKEN_SHA256: secrets.adminTokenSha256,
            TICKET_KEY: secrets.ticketKey,
          }),
        ]);
      },
    },
  });
  new cloudflare.WorkersCronTrigger("EachMinute", {
    accountId: sst.cloudflare.DEFAULT_ACCOUNT_ID,
    scriptName: worker.nodes.worker.scriptName,
    schedules: [{ cron: "* * * * *" }],
  });
  const url = $output(worker.url).apply((address) => {
    if (address === undefined) throw new Error("Cloudflare gave the Worker no address.");
    return address;
  });
  return { url, socketUrl: url.apply((address) => address.replace(/^https:/, "wss:")) };
}

type Values = Record<string, $util.Input<string>>;
const texts = (values: Values) => Object.entries(values).map(([name, text]) => ({ type: "plain_text", name, text }));
/** Cloudflare never shows them again, and Pulumi keeps them encrypted. */
const hidden = (values: Values) =>
  Object.entries(values).map(([name, text]) => ({ type: "secret_text", name, text: $util.secret(text) }));

function accessKey(storage: Storage) {
  const user = new aws.iam.User("WorkerUser", { name: named("worker"), forceDestroy: true });
  new aws.iam.UserPolicy("WorkerUserPolicy", {
    user: user.name,
    name: "vmferry",
    policy: $resolve(storage.arns).apply(({ table, bucket }) => policyOf([...tableUse(table), ...objectUse(bucket)])),
  });
  return new aws.iam.AccessKey("WorkerKey", { user: user.name });
}
