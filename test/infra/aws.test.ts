/** The functions on AWS, their doors, the timer and what rings when they fail. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import * as z from "zod/mini";
import { awsEnvOf } from "#functions/entry/aws-wiring";
import { indexes } from "#functions/store/dynamo-table";
import type { Plan, Resource } from "../../infra/check/resources.ts";
import { tableActions } from "../../infra/permissions.ts";
import { decrypted, ofType, one, planned, secretValues, texts } from "./plan.ts";

const gateway = planned("production");
const streamed = planned("staging", { VMFERRY_DOOR: "function-url" });
const named = planned("production", {
  VMFERRY_DOMAIN: "ferry.example.com",
  VMFERRY_ZONE_ID: "ZONE",
  VMFERRY_ALARM_EMAIL: "ops@example.com",
});
const all: Record<string, Plan> = { gateway, streamed, named };

const functionSchema = z.object({
  name: z.string(),
  handler: z.string(),
  runtime: z.string(),
  architectures: z.array(z.string()),
  memorySize: z.number(),
  timeout: z.number(),
  loggingConfig: z.object({ logGroup: z.string() }),
  code: z.object({ assets: z.record(z.string(), z.object({ path: z.string() })) }),
  environment: z.unknown(),
});
const functionsOf = (plan: Plan) =>
  ofType(plan, "lambda/function:Function").map(({ inputs }) => functionSchema.parse(inputs));

/** A function's environment as it will find it. */
const environmentOf = ({ environment }: { environment: unknown }) =>
  z.object({ variables: z.record(z.string(), z.string()) }).parse(decrypted(environment)).variables;

describe("functions", () => {
  for (const [title, plan] of Object.entries(all)) {
    test(`${title}: three, each with its own bundle and nothing beside it`, () => {
      const functions = functionsOf(plan);
      assert.deepEqual(functions.map(({ name }) => name.split("-").at(-1)).sort(), ["http", "socket", "timer"]);
      for (const { name, code, handler, runtime, architectures } of functions) {
        const file = `lambda-${name.split("-").at(-1)}.mjs`;
        assert.deepEqual(Object.keys(code.assets), [file]);
        assert.ok(code.assets[file]?.path.endsWith(`/${file}`));
        assert.equal(handler.split(".")[0], file.replace(".mjs", ""));
        assert.equal(runtime, "nodejs24.x");
        assert.deepEqual(architectures, ["arm64"]);
      }
    });

    test(`${title}: the environment is one that the functions accept`, () => {
      for (const made of functionsOf(plan)) {
        const given = environmentOf(made);
        // Lambda gives these three itself, and refuses to have them set.
        for (const own of ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]) assert.ok(!(own in given), own);
        const lambda = { AWS_REGION: "eu-test-1", AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "key" };
        const env = awsEnvOf({ ...given, ...lambda });
        assert.equal(env.TABLE, plan.outputs.table);
        assert.equal(env.BUCKET, plan.outputs.bucket);
        assert.equal(env.SOCKET_URL, plan.outputs.socketUrl);
        assert.equal(env.TICKET_KEY, secretValues.TicketKey);
        assert.equal(env.ADMIN_TOKEN_SHA256, secretValues.AdminTokenSha256);
        assert.equal(env.SOCKET_CALLBACK_URL, "https://sockets.execute-api.eu-test-1.amazonaws.com/live");
      }
    });

    test(`${title}: no secret in clear in any resource or output`, () => {
      const clear = [...plan.resources.map(({ inputs }) => inputs), plan.outputs].flatMap((value) =>
        texts(value).filter(({ text, secret }) => !secret && Object.values(secretValues).some((s) => text.includes(s))),
      );
      assert.deepEqual(clear, []);
    });

    test(`${title}: every log has an end, and each function writes into its own`, () => {
      const groups = ofType(plan, "cloudwatch/logGroup:LogGroup");
      for (const { name, inputs } of groups) assert.ok(Number(inputs.retentionInDays) > 0, name);
      const names = new Set(groups.map(({ inputs }) => inputs.name));
      for (const { name, loggingConfig } of functionsOf(plan)) {
        assert.equal(loggingConfig.logGroup, `/aws/lambda/${name}`);
        assert.ok(names.has(loggingConfig.logGroup), loggingConfig.logGroup);
      }
    });
  }

  test("none outlives who asked: 29 s of API Gateway, the next minute of the timer, 15 min of Lambda", () => {
    const timeouts = (plan: Plan) =>
      Object.fromEntries(functionsOf(plan).map(({ name, timeout }) => [name.split("-").at(-1), timeout]));
    const { http, socket, timer } = timeouts(gateway);
    assert.ok((http ?? 99) <= 29 && (socket ?? 99) <= 29 && (timer ?? 99) < 60);
    assert.equal(timeouts(streamed).http, 900);
    for (const { memorySize } of functionsOf(gateway)) assert.ok(memorySize >= 256 && memorySize <= 1024);
  });

  test("Lambda repeats nothing by itself", () => {
    const configs = ofType(gateway, "FunctionEventInvokeConfig");
    assert.equal(configs.length, 3);
    for (const { inputs } of configs) assert.equal(inputs.maximumRetryAttempts, 0);
  });
});

describe("doors", () => {
  test("the three routes of the websocket API lead to the socket function", () => {
    const routes = ofType(gateway, "apigatewayv2/route:Route").filter(({ inputs }) => inputs.apiId === "Sockets-id");
    assert.deepEqual(routes.map(({ inputs }) => inputs.routeKey).sort(), ["$connect", "$default", "$disconnect"]);
    for (const { inputs } of routes) assert.equal(inputs.target, "integrations/SocketsIntegration-id");
    const integration = one(gateway, "apigatewayv2/integration:Integration", "SocketsIntegration");
    assert.match(String(integration.integrationUri), /vmferry-production-socket\/invocations$/);
    assert.equal(integration.integrationType, "AWS_PROXY");
    assert.equal(one(gateway, "apigatewayv2/stage:Stage", "SocketsLive").autoDeploy, true);
  });

  test("the HTTP API hands everything to the http function, in the format that it reads", () => {
    const integration = one(gateway, "apigatewayv2/integration:Integration", "HttpIntegration");
    assert.match(String(integration.integrationUri), /vmferry-production-http\/invocations$/);
    assert.equal(integration.payloadFormatVersion, "2.0");
    const routes = ofType(gateway, "apigatewayv2/route:Route").filter(({ inputs }) => inputs.apiId === "Http-id");
    assert.deepEqual(
      routes.map(({ inputs }) => inputs.routeKey),
      ["$default"],
    );
    assert.match(String(gateway.outputs.url), /^https:/);
    assert.match(String(gateway.outputs.socketUrl), /^wss:/);
  });

  test("no API writes messages, queries or headers into a log", () => {
    for (const { name, inputs } of ofType(gateway, "apigatewayv2/stage:Stage")) {
      assert.deepEqual(
        texts(inputs).filter(({ path }) => /dataTrace|loggingLevel/.test(path)),
        [],
        name,
      );
      const { format = "{}" } =
        z.optional(z.object({ format: z.optional(z.string()) })).parse(inputs.accessLogSettings) ?? {};
      assert.doesNotMatch(format, /header|querystring|authorizer/i);
    }
  });

  test("a function URL streams and takes the place of the HTTP API", () => {
    assert.equal(one(streamed, "lambda/functionUrl:FunctionUrl").invokeMode, "RESPONSE_STREAM");
    assert.ok(functionsOf(streamed).some(({ handler }) => handler === "lambda-http.streamed"));
    assert.deepEqual(
      ofType(streamed, "apigatewayv2/api:Api").map(({ name }) => name),
      ["Sockets"],
    );
    assert.equal(streamed.outputs.url, "https://url.lambda-url.eu-test-1.on.aws");
  });

  test("a domain is served with TLS 1.2 or newer, for clients and for shims, with proven certificates", () => {
    assert.equal(named.outputs.url, "https://ferry.example.com");
    assert.equal(named.outputs.socketUrl, "wss://sockets.ferry.example.com");
    const domains = ofType(named, "apigatewayv2/domainName:DomainName");
    assert.equal(domains.length, 2);
    for (const { inputs } of domains) {
      const { securityPolicy, certificateArn } = z
        .record(z.string(), z.unknown())
        .parse(inputs.domainNameConfiguration);
      assert.equal(securityPolicy, "TLS_1_2");
      const valid = ofType(named, "CertificateValidation").map(({ inputs: proof }) => proof.certificateArn);
      assert.ok(valid.includes(certificateArn));
    }
    const mappings = ofType(named, "ApiMapping").map(({ inputs }) => [inputs.apiId, inputs.domainName, inputs.stage]);
    assert.deepEqual(mappings.sort(), [
      ["Http-id", "HttpDomain-id", "$default"],
      ["Sockets-id", "SocketsDomain-id", "live"],
    ]);
    assert.deepEqual(ofType(gateway, "DomainName"), []);
  });
});

test("the schedule calls the timer each minute and makes up for nothing", () => {
  const schedule = one(gateway, "scheduler/schedule:Schedule");
  assert.equal(schedule.scheduleExpression, "rate(1 minute)");
  const target = z.record(z.string(), z.unknown()).parse(schedule.target);
  assert.match(String(target.arn), /vmferry-production-timer$/);
  assert.deepEqual(target.retryPolicy, { maximumEventAgeInSeconds: 60, maximumRetryAttempts: 0 });
  assert.ok(
    ofType(gateway, "iam/role:Role").some(({ inputs }) => String(target.roleArn).endsWith(String(inputs.name))),
  );
});

describe("alarms", () => {
  const alarms = (plan: Plan) => ofType(plan, "cloudwatch/metricAlarm:MetricAlarm");
  const metricsOf = ({ inputs }: Resource) =>
    texts(inputs)
      .filter(({ path }) => path.endsWith("/metricName"))
      .map(({ text }) => text);
  const byName = (name: string) => {
    const found = alarms(gateway).find(({ inputs }) => inputs.name === `vmferry-production-${name}`);
    assert.ok(found, name);
    return found;
  };

  test("every function's failures, throttles and logged errors ring", () => {
    for (const kind of ["http", "socket", "timer"]) {
      assert.deepEqual(metricsOf(byName(`${kind}-failing`)), ["Errors"]);
      assert.deepEqual(metricsOf(byName(`${kind}-throttled`)), ["Throttles"]);
      const filter = one(gateway, "LogMetricFilter", `${kind}-errors-logged`);
      assert.equal(filter.logGroupName, `/aws/lambda/vmferry-production-${kind}`);
      assert.equal(filter.pattern, String.raw`"\"level\":\"error\""`);
      const { name, namespace } = z.record(z.string(), z.unknown()).parse(filter.metricTransformation);
      const { inputs } = byName("errors-logged");
      assert.deepEqual([inputs.metricName, inputs.namespace], [name, namespace]);
    }
  });

  test("silence of the timer for five minutes rings", () => {
    const { inputs } = byName("timer-silent");
    assert.deepEqual(
      [inputs.metricName, inputs.comparisonOperator, inputs.threshold, inputs.treatMissingData],
      ["Invocations", "LessThanThreshold", 1, "breaching"],
    );
    assert.equal(Number(inputs.period) * Number(inputs.evaluationPeriods), 300);
  });

  test("the table rings for each kind of request and each index", () => {
    const throttled = texts(byName("table-throttled").inputs);
    for (const index of Object.keys(indexes))
      assert.ok(
        throttled.some(({ text }) => text === index),
        index,
      );
    const failing = texts(byName("table-failing").inputs);
    for (const action of tableActions)
      assert.ok(
        failing.some(({ text }) => text === action.replace("dynamodb:", "")),
        action,
      );
  });

  test("the APIs ring, whichever door is open", () => {
    assert.deepEqual(metricsOf(byName("sockets-failing")), ["IntegrationError", "ExecutionError"]);
    assert.deepEqual(metricsOf(byName("http-5xx")), ["5xx"]);
    const url = alarms(streamed).find(({ inputs }) => inputs.name === "vmferry-staging-http-5xx");
    assert.ok(url);
    assert.deepEqual(metricsOf(url), ["Url5xxCount"]);
  });

  test("CloudWatch takes them: at most ten metrics each, one of which counts, a cause in words", () => {
    for (const plan of Object.values(all))
      for (const { name, inputs } of alarms(plan)) {
        const queries = z
          .array(z.looseObject({ returnData: z.optional(z.boolean()) }))
          .parse(inputs.metricQueries ?? []);
        assert.ok(queries.filter(({ metric }) => metric !== undefined).length <= 10, name);
        if (queries.length > 0) assert.equal(queries.filter(({ returnData }) => returnData === true).length, 1, name);
        assert.ok(String(inputs.alarmDescription).length > 30, name);
      }
  });

  test("a stage that may be thrown away has none", () => {
    assert.deepEqual(alarms(planned("dev-x")), []);
  });

  test("with an address they mail, without they stand", () => {
    assert.equal(one(named, "TopicSubscription").endpoint, "ops@example.com");
    for (const { name, inputs } of alarms(named))
      assert.equal(z.array(z.string()).parse(inputs.alarmActions).length, 1, name);
    assert.deepEqual(ofType(gateway, "sns/topic:Topic"), []);
  });
});
