/**
 * The API on Lambda. `handler` is for API Gateway's HTTP API (payload 2.0), which hands an answer over when it is whole; `streamed` is for a
 * function URL with response streaming, where server-sent events arrive as they are sent. Deploy either, or both under two addresses.
 */
import { Hono } from "hono";
import { handle, type LambdaContext, streamHandle } from "hono/aws-lambda";
import { createApp } from "../http/app.ts";
import type { EventsCarrier } from "../http/deps.ts";
import { faultOf, problemResponse } from "../http/problem.ts";
import { invoked, wireAws } from "./aws-wiring.ts";
import { ids } from "./runtime-ports.ts";

/** API Gateway gives up after 29 s (AWS: HTTP API quotas); the rest is for the start of a cold function and the last look into the store. */
const bufferedEvents: EventsCarrier = { delivers: "whole", msMax: 20_000 };
/** A Lambda lives for 15 min at most; the client resumes. */
const streamedEvents: EventsCarrier = { delivers: "events", msMax: 14 * 60_000 };

interface Invocation {
  /** From `handle`. */
  lambdaContext?: LambdaContext;
  /** From `streamHandle`. */
  context?: LambdaContext;
}

/** Wired with the first request and not while it is loaded, so that an environment that lacks something is an answer with a line in the log. */
function front(carrier: EventsCarrier) {
  let app: ReturnType<typeof createApp> | null = null;
  const hono = new Hono<{ Bindings: Invocation }>();
  hono.all("*", (context) => {
    invoked((context.env.lambdaContext ?? context.env.context)?.awsRequestId);
    app ??= createApp({ ...wireAws(process.env).deps, eventsCarrier: carrier });
    return app.fetch(context.req.raw);
  });
  hono.onError((error) => {
    const requestId = ids.ulid();
    process.stdout.write(`${JSON.stringify({ level: "error", message: error.message, requestId })}\n`);
    return problemResponse(faultOf(error), requestId);
  });
  return hono;
}

/** Everything that we answer is text but a payload of unknown kind; base64 would cost a third of the 6 MB that an answer may have. */
const isContentTypeBinary = (type: string) => !/^text\/|[/+]json\b/i.test(type);

export const handler = handle(front(bufferedEvents), { isContentTypeBinary });

/** Lambda's runtime brings `awslambda` along; elsewhere nothing can stream and the same answers are given whole. */
export const streamed = canStream() ? streamHandle(front(streamedEvents)) : handler;

/** The SDK's build for Node puts an empty object there where Lambda has put none. */
function canStream(): boolean {
  const runtime: unknown = Reflect.get(globalThis, "awslambda");
  return typeof runtime === "object" && runtime !== null && "streamifyResponse" in runtime;
}
