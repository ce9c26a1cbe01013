/**
 * The websocket API of API Gateway: shims hold their connection to it, the functions hold none. Its limits shape the
 * shim's side: 2 h per connection, 10 min idle, frames of 32 KB, messages of 128 KB, a reply within 29 s. Access logs are
 * left off: they need a role for the whole account, and the function logs each connection itself.
 */
import { createDomain } from "./domain.ts";
import { createFunction } from "./function.ts";
import { connectionUse, objectUse, tableUse } from "./permissions.ts";
import type { Secrets } from "./secrets.ts";
import type { Settings, Stage } from "./stage.ts";
import type { Storage } from "./storage.ts";

/** Part of the address of the API; a name without `$`, which some clients escape in a path. */
const stageName = "live";
/** Of the 10,000 requests a second that an account has for all its APIs and callbacks, shims may take this many. */
const throttle = { throttlingRateLimit: 2_000, throttlingBurstLimit: 1_000 };

const routes = { Connect: "$connect", Disconnect: "$disconnect", Default: "$default" } as const;

interface Input {
  stage: Stage;
  settings: Settings;
  storage: Storage;
  secrets: Secrets;
}
export type Sockets = ReturnType<typeof createSockets>;

export function createSockets({ stage, settings, storage, secrets }: Input) {
  const api = new aws.apigatewayv2.Api("Sockets", {
    name: `${$app.name}-${$app.stage}-sockets`,
    description: "vmferry: websockets of shims",
    protocolType: "WEBSOCKET",
    // Every message goes to $default: what it is stands in its own, versioned words.
    routeSelectionExpression: "$request.body.none",
  });
  const live = new aws.apigatewayv2.Stage("SocketsLive", {
    apiId: api.id,
    name: stageName,
    autoDeploy: true,
    // Never `dataTraceEnabled`: it would write messages, and so cookies, into a log (I9).
    defaultRouteSettings: throttle,
  });
  const domain =
    settings.domain === null
      ? null
      : createDomain("Sockets", { ...settings.domain, name: `sockets.${settings.domain.name}` }, api.id, live.name);
  const sockets = {
    url: domain === null ? $interpolate`${api.apiEndpoint}/${stageName}` : $interpolate`wss://${domain.name}`,
    // Callbacks always go to AWS's own name, a domain of ours has no @connections.
    callbackUrl: api.apiEndpoint.apply((endpoint) => `${endpoint.replace(/^wss:/, "https:")}/${stageName}`),
    stageArn: $interpolate`${api.executionArn}/${stageName}`,
  };

  const handler = createFunction({
    kind: "socket",
    stage,
    storage,
    secrets,
    sockets,
    statements: $resolve({ ...storage.arns, stage: sockets.stageArn }).apply((arns) => [
      ...tableUse(arns.table),
      ...objectUse(arns.bucket),
      ...connectionUse(arns.stage),
    ]),
  });
  const permission = new aws.lambda.Permission("SocketsInvoke", {
    action: "lambda:InvokeFunction",
    function: handler.name,
    principal: "apigateway.amazonaws.com",
    sourceArn: $interpolate`${sockets.stageArn}/*`,
  });
  const integration = new aws.apigatewayv2.Integration(
    "SocketsIntegration",
    {
      apiId: api.id,
      integrationType: "AWS_PROXY",
      integrationUri: handler.lambda.invokeArn,
      integrationMethod: "POST",
      timeoutMilliseconds: 29_000,
    },
    { dependsOn: [permission] },
  );
  for (const [label, routeKey] of Object.entries(routes))
    new aws.apigatewayv2.Route(`Sockets${label}`, {
      apiId: api.id,
      routeKey,
      target: $interpolate`integrations/${integration.id}`,
      // Who a shim is, $connect finds out itself: the proof is signed with the host's own key.
      authorizationType: "NONE",
    });
  return { ...sockets, apiId: api.id, stageName, handler };
}
