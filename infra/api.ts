/**
 * The door of clients and of shims that ask where to connect. By default an HTTP API of API Gateway, which buffers: a
 * stream of events ends within 29 s there and is resumed. `VMFERRY_DOOR=function-url` takes the function's own address,
 * which streams; a watcher then pays for a function that waits. Either is open to the internet; the
 * functions ask for a token themselves.
 */
import { createDomain } from "./domain.ts";
import { createFunction, type FunctionInput, named } from "./function.ts";
import { connectionUse, objectUse, tableUse } from "./permissions.ts";
import type { Sockets } from "./sockets.ts";
import type { Settings } from "./stage.ts";

/** Of the account's 10,000 requests a second, clients may take this many; a stray loop must not starve the shims. */
const throttle = { throttlingRateLimit: 500, throttlingBurstLimit: 250 };

/** The longest that Lambda lets a function live. functions/entry/lambda-http.ts ends a stream long before, and a client resumes it. */
const streamSeconds = 900;

type Input = Pick<FunctionInput, "stage" | "storage" | "secrets"> & { settings: Settings; sockets: Sockets };
export type Api = ReturnType<typeof createApi>;

export function createApi({ stage, settings, storage, secrets, sockets }: Input) {
  const streamed = settings.door === "function-url";
  const handler = createFunction({
    kind: "http",
    stage,
    storage,
    secrets,
    sockets,
    ...(streamed ? { entry: "streamed", timeoutSeconds: streamSeconds } : {}),
    environment: settings.domain === null ? {} : { PUBLIC_URL: `https://${settings.domain.name}` },
    statements: $resolve({ ...storage.arns, stage: sockets.stageArn }).apply((arns) => [
      ...tableUse(arns.table),
      ...objectUse(arns.bucket),
      ...connectionUse(arns.stage),
    ]),
  });
  if (streamed) return { handler, gatewayId: null, url: functionUrl(handler) };
  const { id, url } = gateway(handler, settings, stage.logDays);
  return { handler, gatewayId: id, url };
}

type Handler = ReturnType<typeof createFunction>;

function gateway(handler: Handler, settings: Settings, logDays: number) {
  const api = new aws.apigatewayv2.Api("Http", {
    name: named("http"),
    description: "vmferry: the HTTP API",
    protocolType: "HTTP",
  });
  const log = new aws.cloudwatch.LogGroup("HttpAccessLog", {
    name: `/aws/vendedlogs/apis/${named("http")}`,
    retentionInDays: logDays,
  });
  const stage = new aws.apigatewayv2.Stage("HttpDefault", {
    apiId: api.id,
    name: "$default",
    autoDeploy: true,
    defaultRouteSettings: throttle,
    accessLogSettings: { destinationArn: log.arn, format: accessLogFormat },
  });
  const permission = new aws.lambda.Permission("HttpInvoke", {
    action: "lambda:InvokeFunction",
    function: handler.name,
    principal: "apigateway.amazonaws.com",
    sourceArn: $interpolate`${api.executionArn}/*`,
  });
  const integration = new aws.apigatewayv2.Integration(
    "HttpIntegration",
    {
      apiId: api.id,
      integrationType: "AWS_PROXY",
      integrationUri: handler.lambda.invokeArn,
      payloadFormatVersion: "2.0",
      timeoutMilliseconds: 30_000,
    },
    { dependsOn: [permission] },
  );
  new aws.apigatewayv2.Route("HttpRoute", {
    apiId: api.id,
    routeKey: "$default",
    target: $interpolate`integrations/${integration.id}`,
    authorizationType: "NONE",
  });
  const domain = settings.domain === null ? null : createDomain("Http", settings.domain, api.id, stage.name);
  return { id: api.id, url: domain === null ? api.apiEndpoint : $interpolate`https://${domain.name}` };
}

/** Who asked for what and how it went. No query: it may hold names; no header: it holds the token (I9). */
const accessLogFormat = JSON.stringify({
  at: "$context.requestTime",
  requestId: "$context.requestId",
  ip: "$context.identity.sourceIp",
  method: "$context.httpMethod",
  path: "$context.path",
  status: "$context.status",
  ms: "$context.responseLatency",
  error: "$context.integration.error",
});

function functionUrl(handler: Handler) {
  const url = new aws.lambda.FunctionUrl("HttpUrl", {
    functionName: handler.name,
    authorizationType: "NONE",
    invokeMode: "RESPONSE_STREAM",
  });
  // AWS asks for both statements of a public address. Everybody may knock; the function asks for the token.
  new aws.lambda.Permission("HttpUrlOpen", {
    action: "lambda:InvokeFunctionUrl",
    function: handler.name,
    principal: "*",
    functionUrlAuthType: "NONE",
  });
  new aws.lambda.Permission("HttpUrlInvoke", {
    action: "lambda:InvokeFunction",
    function: handler.name,
    principal: "*",
    invokedViaFunctionUrl: true,
  });
  return url.functionUrl.apply((address) => address.replace(/\/$/, ""));
}
