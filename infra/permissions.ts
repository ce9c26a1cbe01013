/**
 * Who may do what, as data. Each statement names its actions one by one, its resources, and why it is needed; the check
 * of the infrastructure (test/infra) walks every policy of a stack and fails on an action with a `*`, on a statement that
 * is not from here, and on a `*` in a resource without a reason. SST's `link` is not used: it grants dynamodb:* and s3:*.
 */

export interface Statement {
  /** Names the statement in IAM, and leads from a policy back to this file. */
  sid: string;
  actions: readonly string[];
  resources: readonly string[];
  why: string;
  /** Why a resource ends in `*`. Absent: none does. */
  wildcard?: string;
}

/** What the store asks of the table itself (functions/store; a unit test compares). */
export const tableActions = [
  "dynamodb:BatchWriteItem",
  "dynamodb:DeleteItem",
  "dynamodb:GetItem",
  "dynamodb:PutItem",
  "dynamodb:Query",
  "dynamodb:UpdateItem",
] as const;

/** The folders of the bucket (functions/bundle/s3-bundles.ts): whatever else is put there is none of the functions' business. */
export const objectFolders = ["bundles", "cookies"] as const;

export const tableUse = (tableArn: string): readonly Statement[] => [
  {
    sid: "TableItems",
    actions: tableActions,
    resources: [tableArn],
    why: "Single-item conditional writes, reads and queries of the one table.",
  },
  {
    sid: "TableIndexes",
    actions: ["dynamodb:Query"],
    resources: [`${tableArn}/index/*`],
    why: "Lists come from the sparse indexes.",
    wildcard: "Every index of this one table; they project nothing that the table does not hold.",
  },
];

const objects = (bucketArn: string) => objectFolders.map((folder) => `${bucketArn}/${folder}/*`);
const eachObject = "Objects are named by their own digest, so their names are not known beforehand.";

/** S3 answers HEAD of a missing object with 403 to whoever may not list; the store tells the two apart (S3Bundles.head). */
const objectNames = (bucketArn: string): Statement => ({
  sid: "ObjectNames",
  actions: ["s3:ListBucket"],
  resources: [bucketArn],
  why: "Without it S3 answers 403 instead of 404 for an object that is not there. It is never used to list.",
});

/** For functions that sign requests of shims: a presigned request may do what its signer may. */
export const objectUse = (bucketArn: string): readonly Statement[] => [
  {
    sid: "Objects",
    actions: ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
    resources: objects(bucketArn),
    why: "Presigned up- and downloads of bundles and cookies, HEAD of them, removal of an altered bundle.",
    wildcard: eachObject,
  },
  objectNames(bucketArn),
];

/** For the timer, which signs nothing: it looks and removes. HEAD is allowed by s3:GetObject. */
export const objectSweep = (bucketArn: string): readonly Statement[] => [
  {
    sid: "ObjectsSwept",
    actions: ["s3:DeleteObject", "s3:GetObject"],
    resources: objects(bucketArn),
    why: "HEAD of bundles and removal of an altered one, when the timer carries on what a function left unfinished.",
    wildcard: eachObject,
  },
  objectNames(bucketArn),
];

/** `stageArn`: arn:aws:execute-api:REGION:ACCOUNT:API/STAGE. */
export const connectionUse = (stageArn: string): readonly Statement[] => [
  {
    sid: "Connections",
    actions: ["execute-api:ManageConnections"],
    resources: ["POST", "DELETE"].map((method) => `${stageArn}/${method}/@connections/*`),
    why: "Messages to shims, and the end of a connection.",
    wildcard: "Connection ids are made by API Gateway; all of this one stage are ours.",
  },
];

/** Instead of the managed AWSLambdaBasicExecutionRole, which may write into every log of the account. */
export const logUse = (logGroupArn: string): readonly Statement[] => [
  {
    sid: "Logs",
    actions: ["logs:CreateLogStream", "logs:PutLogEvents"],
    resources: [`${logGroupArn}:*`],
    why: "The function's own log.",
    wildcard: "The log streams of this one group; Lambda names them.",
  },
];

export const invocation = (functionArn: string): readonly Statement[] => [
  {
    sid: "Invocation",
    actions: ["lambda:InvokeFunction"],
    resources: [functionArn],
    why: "The schedule calls the timer.",
  },
];

/** The IAM document, as JSON. */
export const policyOf = (statements: readonly Statement[]): string =>
  JSON.stringify({
    Version: "2012-10-17",
    Statement: statements.map(({ sid, actions, resources }) => ({
      Sid: sid,
      Effect: "Allow",
      Action: actions,
      Resource: resources,
    })),
  });

/** Who may take a role. `accountId` bounds a service to acting for us, so that nobody else's schedule or function can. */
export const trustOf = (service: "lambda.amazonaws.com" | "scheduler.amazonaws.com", accountId: string): string =>
  JSON.stringify({
    Version: "2012-10-17",
    Statement: [
      {
        Effect: "Allow",
        Principal: { Service: service },
        Action: "sts:AssumeRole",
        ...(service === "scheduler.amazonaws.com"
          ? { Condition: { StringEquals: { "aws:SourceAccount": accountId } } }
          : {}),
      },
    ],
  });
