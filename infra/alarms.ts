/**
 * What a person is told without asking: functions that fail or are throttled, a timer that is silent, a table that
 * throttles or fails, an API that answers 5xx, and lines of level `error` in the logs. With VMFERRY_ALARM_EMAIL they
 * arrive by mail, else they stand in CloudWatch. A stage that may be thrown away has none: they cost about three dollars
 * a month, at $0.10 a metric watched.
 */
import { indexes } from "#functions/store/dynamo-table";
import type { Api } from "./api.ts";
import { type DeployedFunction, named } from "./function.ts";
import { tableActions } from "./permissions.ts";
import type { Sockets } from "./sockets.ts";
import type { Settings, Stage } from "./stage.ts";
import type { Storage } from "./storage.ts";
import type { Timer } from "./timer.ts";

const minuteSeconds = 60;
const fiveMinutesSeconds = 300;

type Text = $util.Input<string>;
type Dimensions = Record<string, Text>;

interface Metric {
  namespace: string;
  metricName: string;
  dimensions: Dimensions;
}

interface Alarm {
  /** Ends the name: vmferry-STAGE-... */
  name: string;
  /** The cause first, then what to look at. */
  says: string;
  /** Their sum counts. CloudWatch takes ten in one alarm. */
  metrics: Metric[];
  /** Rings at so many in five minutes; `silence` rings at none. */
  rings: { at: number } | "silence";
}

interface Input {
  stage: Stage;
  settings: Settings;
  storage: Storage;
  /** What runs on AWS; absent where the functions run elsewhere. */
  running?: { sockets: Sockets; api: Api; timer: Timer };
}

export function createAlarms({ stage, settings, storage, running }: Input): void {
  if (!stage.kept) return;
  const tell = recipients(settings);
  tableAlarms(tell, storage);
  if (running === undefined) return;
  const { sockets, api, timer } = running;
  const handlers = [api.handler, sockets.handler, timer.handler];
  for (const handler of handlers) functionAlarms(tell, handler);
  loggedErrors(tell, handlers);
  ring(tell, {
    name: "timer-silent",
    says: "The timer has not run for five minutes: what is overdue is not found. Look at the schedule and at the account's limit of concurrent executions.",
    metrics: [lambdaMetric("Invocations", timer.handler)],
    rings: "silence",
  });
  ring(tell, {
    name: "sockets-failing",
    says: "The websocket API could not reach its function or got an error from it: shims may be offline.",
    metrics: ["IntegrationError", "ExecutionError"].map((metricName) => ({
      namespace: "AWS/ApiGateway",
      metricName,
      dimensions: { ApiId: sockets.apiId, Stage: sockets.stageName },
    })),
    rings: { at: 5 },
  });
  ring(tell, {
    name: "http-5xx",
    says: "The HTTP API answers 5xx. The function's log has the cause under the request id.",
    metrics: [
      api.gatewayId === null
        ? lambdaMetric("Url5xxCount", api.handler)
        : { namespace: "AWS/ApiGateway", metricName: "5xx", dimensions: { ApiId: api.gatewayId } },
    ],
    rings: { at: 5 },
  });
}

/** Whom an alarm tells: nobody, or a topic that mails. */
type Recipients = $util.Output<string>[];

/** The topic is not encrypted with a KMS key: CloudWatch may not use AWS's own, and no alarm tells a secret. */
function recipients({ alarmEmail }: Settings): Recipients {
  if (alarmEmail === null) return [];
  const topic = new aws.sns.Topic("Alarms", { name: named("alarms") });
  new aws.sns.TopicSubscription("AlarmsByMail", { topic: topic.arn, protocol: "email", endpoint: alarmEmail });
  return [topic.arn];
}

function tableAlarms(tell: Recipients, { table }: Storage): void {
  const throttles = (metricName: string): Metric[] => [
    { namespace: "AWS/DynamoDB", metricName, dimensions: { TableName: table } },
    ...Object.keys(indexes).map((index) => ({
      namespace: "AWS/DynamoDB",
      metricName,
      dimensions: { TableName: table, GlobalSecondaryIndexName: index },
    })),
  ];
  ring(tell, {
    name: "table-throttled",
    says: "DynamoDB throttles the table or an index: requests are repeated and migrations are slow. Look for a hot partition.",
    metrics: [...throttles("ReadThrottleEvents"), ...throttles("WriteThrottleEvents")],
    rings: { at: 10 },
  });
  ring(tell, {
    name: "table-failing",
    says: "DynamoDB answers with errors of its own. Nothing is lost, it is tried again; see the AWS Health Dashboard.",
    metrics: tableActions.map((action) => ({
      namespace: "AWS/DynamoDB",
      metricName: "SystemErrors",
      dimensions: { TableName: table, Operation: action.replace("dynamodb:", "") },
    })),
    rings: { at: 5 },
  });
}

const lambdaMetric = (metricName: string, { name }: DeployedFunction): Metric => ({
  namespace: "AWS/Lambda",
  metricName,
  dimensions: { FunctionName: name },
});

function functionAlarms(tell: Recipients, handler: DeployedFunction): void {
  const { kind } = handler;
  ring(tell, {
    name: `${kind}-failing`,
    says: `The function ${kind} throws or runs out of time. Its log has the cause.`,
    metrics: [lambdaMetric("Errors", handler)],
    rings: { at: 3 },
  });
  ring(tell, {
    name: `${kind}-throttled`,
    says: `Lambda throttles the function ${kind}: the account's limit of concurrent executions is reached. Ask AWS to raise it.`,
    metrics: [lambdaMetric("Throttles", handler)],
    rings: { at: 1 },
  });
}

/** One metric for all three: each costs its own price. */
function loggedErrors(tell: Recipients, handlers: DeployedFunction[]): void {
  const metricName = named("errors-logged");
  for (const { kind, log } of handlers)
    new aws.cloudwatch.LogMetricFilter(`${kind}-errors-logged`, {
      name: metricName,
      logGroupName: log,
      // The functions' log lines are JSON; Lambda may write its own words before them, so the level is looked for as text.
      pattern: '"\\"level\\":\\"error\\""',
      metricTransformation: { namespace: "vmferry", name: metricName, value: "1", defaultValue: "0" },
    });
  ring(tell, {
    name: "errors-logged",
    says: 'A function logged an error. Search the log groups /aws/lambda/vmferry-... for "level":"error".',
    metrics: [{ namespace: "vmferry", metricName, dimensions: {} }],
    rings: { at: 1 },
  });
}

function ring(tell: Recipients, { name, says, metrics, rings }: Alarm): void {
  const silence = rings === "silence";
  new aws.cloudwatch.MetricAlarm(`${name}-alarm`, {
    name: named(name),
    alarmDescription: says,
    comparisonOperator: silence ? "LessThanThreshold" : "GreaterThanOrEqualToThreshold",
    threshold: silence ? 1 : rings.at,
    // A single empty minute is a late report of CloudWatch; five in a row are silence.
    evaluationPeriods: silence ? fiveMinutesSeconds / minuteSeconds : 1,
    treatMissingData: silence ? "breaching" : "notBreaching",
    ...measured(metrics, silence ? minuteSeconds : fiveMinutesSeconds),
    alarmActions: tell,
    okActions: tell,
  });
}

/** One metric as such; several as their sum, in which what reported nothing counts as none. */
function measured(metrics: Metric[], periodSeconds: number) {
  const [only] = metrics;
  if (only !== undefined && metrics.length === 1) return { ...only, period: periodSeconds, statistic: "Sum" };
  return {
    metricQueries: [
      ...metrics.map(({ namespace, metricName, dimensions }, at) => ({
        id: `m${at}`,
        metric: { namespace, metricName, dimensions, period: periodSeconds, stat: "Sum" },
      })),
      { id: "sum", expression: "SUM(FILL(METRICS(), 0))", label: "sum", returnData: true },
    ],
  };
}
