/**
 * The API on Lambda. `handler` is for API Gateway's HTTP API (payload 2.0), which hands an answer over when it is whole; `streamed` is for a
 * function URL with response streaming, where server-sent events arrive as they are sent. Deploy either, or both under two addresses.
 */
import { createApp } from "../http/app.ts";
import type { EventsCarrier } from "../http/deps.ts";
import { faultOf, problemResponse } from "../http/problem.ts";
import { version } from "../version.ts";
import { metricsOf } from "./aws-metrics.ts";
import { rulesOf } from "./aws-rules.ts";
import { webhooksOf } from "./aws-webhooks.ts";
import { type AwsWiring, invoked, wireAws } from "./aws-wiring.ts";
import { isStreamingRuntime, type ProxyResponse, proxyResponse, requestOf, streamResponse } from "./lambda-request.ts";
import { ids } from "./runtime-ports.ts";

/** API Gateway gives up after 29 s (AWS: HTTP API quotas); the rest is for the start of a cold function and the last look into the store. */
const bufferedEvents: EventsCarrier = { delivers: "whole", msMax: 20_000 };
/** Of the same 29 s: what asks hosts one after the other ends in time with what it knows. */
const bufferedAnswerMsMax = 24_000;
/**
 * Lambda tells nobody that a client has left, and runs and bills on to the end of the stream (AWS: response streaming): a watcher who
 * left holds one of the account's executions for no longer than this. Those who stay resume at once.
 */
const streamedEvents: EventsCarrier = { delivers: "events", msMax: 2 * 60_000 };

interface Context {
  awsRequestId?: string;
}

/** Wired with the first request and not while it is loaded, so that an environment that lacks something is an answer with a line in the log. */
function front(carrier: EventsCarrier, answerMsMax?: number): (event: unknown, context?: Context) => Promise<Response> {
  let app: ReturnType<typeof createApp> | null = null;
  return async (event, context) => {
    invoked(context?.awsRequestId);
    try {
      app ??= appOf(wireAws(process.env), carrier, answerMsMax);
      return await app.fetch(requestOf(event));
    } catch (error) {
      const requestId = ids.ulid();
      const message = error instanceof Error ? error.message : String(error);
      process.stdout.write(`${JSON.stringify({ level: "error", message, requestId })}\n`);
      return problemResponse(faultOf(error), requestId);
    }
  };
}

const appOf = (wiring: AwsWiring, eventsCarrier: EventsCarrier, answerMsMax: number | undefined) =>
  createApp({
    ...wiring.deps,
    rules: rulesOf(wiring),
    webhooks: webhooksOf(wiring),
    metrics: { counter: metricsOf(wiring).counter, version },
    eventsCarrier,
    answerMsMax,
  });

const whole = front(bufferedEvents, bufferedAnswerMsMax);

export async function handler(event: unknown, context?: Context): Promise<ProxyResponse> {
  return proxyResponse(await whole(event, context));
}

/** Lambda's runtime brings `awslambda` along; elsewhere nothing can stream and the same answers are given whole. */
const runtime: unknown = Reflect.get(globalThis, "awslambda");
const piecemeal = front(streamedEvents);

export const streamed = isStreamingRuntime(runtime)
  ? runtime.streamifyResponse(async (event, stream, context) =>
      streamResponse(runtime, await piecemeal(event, context), stream),
    )
  : handler;
