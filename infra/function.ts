/**
 * A Lambda function with all that belongs to it: its own role, its own log group with an end to what is kept, and the
 * bundle of `npm run build`. Plain resources instead of SST's Function, which bundles anew and lets each function write
 * into every log of the account.
 */
import { artifact } from "./artifact.ts";
import { logUse, policyOf, type Statement, trustOf } from "./permissions.ts";
import type { Secrets } from "./secrets.ts";
import type { Stage } from "./stage.ts";
import type { Storage } from "./storage.ts";

/** What each function is. Memory buys CPU, and a cold start is CPU. API Gateway waits 29 s for an answer, so do we. */
const kinds = {
  http: { memoryMiB: 1024, timeoutSeconds: 29, purpose: "the HTTP API" },
  socket: { memoryMiB: 1024, timeoutSeconds: 29, purpose: "websockets of shims" },
  // Ends before the next minute begins.
  timer: { memoryMiB: 512, timeoutSeconds: 55, purpose: "finds what is overdue, each minute" },
} as const;
export type FunctionKind = keyof typeof kinds;

type Text = $util.Output<string>;

export interface FunctionInput {
  kind: FunctionKind;
  stage: Stage;
  storage: Storage;
  secrets: Secrets;
  /** Where shims connect, and where messages to them are posted. */
  sockets: { url: Text; callbackUrl: Text };
  /** Beside the log, which every function has. */
  statements: $util.Output<readonly Statement[]>;
  /** The exported name that Lambda calls. */
  entry?: string;
  /** Instead of the kind's own. */
  timeoutSeconds?: number;
  environment?: Record<string, $util.Input<string>>;
}

/** The name of a resource for people and for `aws` commands: vmferry-STAGE-PART. */
export const named = (part: string) => `${$app.name}-${$app.stage}-${part}`;

export function createFunction(input: FunctionInput) {
  const { kind, stage, storage, secrets, sockets, statements, entry = "handler", environment = {} } = input;
  const { memoryMiB, purpose } = kinds[kind];
  const name = named(kind);
  const label = `${kind[0]?.toUpperCase()}${kind.slice(1)}`;
  const file = `lambda-${kind}.mjs`;

  const log = new aws.cloudwatch.LogGroup(`${label}Log`, {
    name: `/aws/lambda/${name}`,
    retentionInDays: stage.logDays,
  });
  const role = new aws.iam.Role(`${label}Role`, {
    name,
    description: `vmferry: ${purpose}`,
    assumeRolePolicy: accountId().apply((account) => trustOf("lambda.amazonaws.com", account)),
  });
  const policy = new aws.iam.RolePolicy(`${label}Policy`, {
    role: role.name,
    name: "vmferry",
    policy: $resolve({ own: statements, log: log.arn }).apply((known) =>
      policyOf([...known.own, ...logUse(known.log)]),
    ),
  });
  const lambda = new aws.lambda.Function(
    label,
    {
      name,
      description: `vmferry: ${purpose}`,
      role: role.arn,
      runtime: "nodejs24.x",
      architectures: ["arm64"],
      handler: `lambda-${kind}.${entry}`,
      code: new $util.asset.AssetArchive({ [file]: new $util.asset.FileAsset(artifact(file)) }),
      memorySize: memoryMiB,
      timeout: input.timeoutSeconds ?? kinds[kind].timeoutSeconds,
      // Lines of JSON as the functions write them.
      loggingConfig: { logFormat: "Text", logGroup: log.name },
      environment: {
        variables: {
          TABLE: storage.table,
          BUCKET: storage.bucket,
          SOCKET_URL: sockets.url,
          SOCKET_CALLBACK_URL: sockets.callbackUrl,
          ADMIN_TOKEN_SHA256: secrets.adminTokenSha256,
          TICKET_KEY: secrets.ticketKey,
          ...environment,
        },
      },
      // No reserved concurrency: a new account has ten executions in all and may set none aside. What is throttled is
      // repeated by shims and by the timer, and an alarm rings.
    },
    // Its first call must not come before its rights.
    { dependsOn: [policy] },
  );
  // The next minute, the shim or the client repeats it; Lambda's own late repeats would only be more of the same.
  new aws.lambda.FunctionEventInvokeConfig(`${label}Retries`, {
    functionName: lambda.name,
    maximumRetryAttempts: 0,
    maximumEventAgeInSeconds: 60,
  });
  return { kind, lambda, name: lambda.name, arn: lambda.arn, log: log.name };
}
export type DeployedFunction = ReturnType<typeof createFunction>;

export const accountId = (): Text => aws.getCallerIdentityOutput({}).accountId;
export const region = (): Text => aws.getRegionOutput({}).region;
