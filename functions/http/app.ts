/**
 * The HTTP face: routes from data, one way in (request id, token, query, body) and one way out (problem+json) for all.
 * Nothing is decided here about a migration; that is the runner's and the hosts'.
 */
import { Hono } from "hono";
import { Fault } from "#protocol/fault";
import { recordRequest } from "./audit.ts";
import { authenticate, type Principal, requireAdmin } from "./auth.ts";
import { bundleRoutes } from "./bundles.ts";
import { checkRoutes } from "./checks.ts";
import type { AppDeps } from "./deps.ts";
import { domainRoutes } from "./domains.ts";
import { doorRoutes } from "./door.ts";
import { driftRoutes } from "./drift.ts";
import { enrolmentRoutes } from "./enrolments.ts";
import { evacuationRoutes } from "./evacuations.ts";
import { eventRoutes } from "./events.ts";
import { healthRoutes } from "./health.ts";
import { hostRoutes } from "./hosts.ts";
import { metricsRoutes } from "./metrics.ts";
import { RequestCounts } from "./metrics-requests.ts";
import { migrationRoutes } from "./migrations.ts";
import { openApiDocument } from "./openapi.ts";
import { fault, faultOf, problemResponse } from "./problem.ts";
import { accepted, body } from "./request-body.ts";
import { type AppContext, type Route, route, type Variables } from "./route.ts";
import { ruleRoutes } from "./rules.ts";
import { tokenRoutes } from "./token-routes.ts";
import { triggerRoutes } from "./triggers.ts";
import { webhookRoutes } from "./webhooks.ts";

/** The version of the API's document; the paths carry the major one. */
export const apiVersion = "1.0.0";

const nobody: Principal = { owner: "nobody", name: "nobody", admin: false };

/** Every route of the app, in the order in which it is documented. */
export function appRoutes(deps: AppDeps, requests = new RequestCounts()): Route[] {
  // Made at the first use: a Worker may not draw random bytes while it is loaded.
  let isolate: string | null = null;
  const isolateName = () => {
    isolate ??= deps.ports.ids.ulid();
    return isolate;
  };
  let document: Record<string, unknown> | null = null;
  const routes: Route[] = [
    ...healthRoutes(deps),
    ...metricsRoutes(deps, requests, isolateName),
    route({
      method: "GET",
      path: "/v1/openapi.json",
      tag: "health",
      summary: "This document",
      access: "open",
      reply: { status: 200, description: "OpenAPI 3.1", mediaType: "application/json" },
      async handle() {
        document ??= openApiDocument(routes, apiVersion);
        return Response.json(document);
      },
    }),
    ...tokenRoutes(deps),
    ...enrolmentRoutes(deps),
    ...doorRoutes(deps),
    ...hostRoutes(deps),
    ...domainRoutes(deps),
    ...checkRoutes(deps),
    ...migrationRoutes(deps),
    ...evacuationRoutes(deps),
    ...bundleRoutes(deps),
    ...driftRoutes(deps),
    ...eventRoutes(deps),
    ...ruleRoutes(deps),
    ...triggerRoutes(deps),
    ...webhookRoutes(deps),
  ];
  return routes;
}

/** Builds the app. It keeps nothing between requests but the counts for `/metrics`. */
export function createApp(deps: AppDeps): Hono<{ Variables: Variables }> {
  const { log, ids } = deps.ports;
  const requests = new RequestCounts();
  const app = new Hono<{ Variables: Variables }>();

  app.use(async (context, next) => {
    context.set("requestId", ids.ulid());
    await next();
    context.header("x-request-id", context.get("requestId"));
    context.header("cache-control", "no-store");
    context.header("x-content-type-options", "nosniff");
  });

  for (const each of appRoutes(deps, requests))
    app.on(each.method, each.path, async (context) => {
      const response = await serve(deps, each, context).catch((error: unknown) => refused(context, error));
      requests.count(each.method, each.path, response.status);
      return response;
    });

  app.notFound((context) =>
    refused(
      context,
      fault(
        "request.notFound",
        "There is nothing at this path with this method.",
        "GET /v1/openapi.json lists what there is.",
      ),
    ),
  );
  app.onError((error, context) => refused(context, error));
  return app;

  function refused(context: AppContext, error: unknown): Response {
    const requestId = context.get("requestId");
    const known = error instanceof Fault;
    // The text of an unknown error stays in the log, cut: a library may quote what it was given.
    if (!known || error.code === "internal")
      log.write("error", "a request failed", {
        requestId,
        method: context.req.method,
        error: error instanceof Error ? `${error.name}: ${error.message}`.slice(0, 500) : "not an error",
        at: error instanceof Error ? (error.stack ?? "").split("\n").slice(1, 4).join(" ").slice(0, 500) : "",
      });
    return problemResponse(faultOf(error), requestId);
  }
}

/** Lets a request in and answers it. Throws `Fault`. */
async function serve(deps: AppDeps, served: Route, context: AppContext): Promise<Response> {
  const { req } = context;
  const principal = served.access === "open" ? nobody : await authenticate(deps, req.header("authorization"));
  if (served.access === "admin") requireAdmin(principal);
  const query = served.query === null ? null : accepted("query", served.query, queryOf(req.url));
  const decoded = served.body === null ? null : await body(served.body, req.raw);
  if (served.access !== "open" && served.changes({ body: decoded, query }))
    await recordRequest(deps.ports, {
      method: served.method,
      path: req.path,
      by: principal.name,
      requestId: context.get("requestId"),
      admin: principal.admin,
    });
  const answered = await served.handle({
    context,
    principal,
    query,
    body: decoded,
    param(name) {
      const value = req.param(name);
      if (value === undefined) throw new Error(`route ${served.path} has no parameter ${name}`);
      return value;
    },
  });
  if (answered instanceof Response) return answered;
  const { value, status, headers } = answered;
  return Response.json(value, {
    status: status ?? served.replies[0]?.status ?? 200,
    ...(headers === undefined ? {} : { headers }),
  });
}

/** The query as an object; a repeated parameter is refused rather than guessed. */
function queryOf(url: string): Record<string, string> {
  const query: Record<string, string> = {};
  for (const [name, value] of new URL(url).searchParams) {
    if (Object.hasOwn(query, name))
      throw fault("request.malformed", `The query has \`${name.slice(0, 64)}\` twice.`, "Send it once.");
    query[name] = value;
  }
  return query;
}
