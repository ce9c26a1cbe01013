/**
 * The way back to a socket that API Gateway holds: its @connections callbacks, over the SDK's client. A connection id is an address and
 * nothing else; 410 means that nobody is there. What is throttled (429, shared by all APIs of the account) or lost on the way is tried
 * again a few times with growing random pauses, and then given up: redelivery repairs a push, and a hello is said again.
 *
 * A try after a lost answer may deliver twice. Every message may be repeated but the welcome, and a shim that hears two begins anew, as it
 * would without any.
 */
import {
  ApiGatewayManagementApiClient,
  DeleteConnectionCommand,
  GoneException,
  PayloadTooLargeException,
  PostToConnectionCommand,
} from "@aws-sdk/client-apigatewaymanagementapi";
import type { Log } from "../ports.ts";

/** `gone`: nobody is at that address, and nobody will be. `failed`: not sent, the connection may live. */
export type Posted = "sent" | "gone" | "failed";

/** Throttling lasts as long as its bucket is empty, a second or so; with the pauses below five tries take up to three. */
const attemptsMax = 5;
const pauseMsMin = 100;
const pauseMsMax = 1_500;
/** A callback takes some 20 to 50 ms; after this the connection to the service is taken for dead. */
const requestMsMax = 3_000;

export interface CallbackOptions {
  /** https://{api}.execute-api.{region}.amazonaws.com/{stage} */
  callbackUrl: string;
  region: string;
  credentials?: { accessKeyId: string; secretAccessKey: string; sessionToken?: string } | undefined;
  log: Log;
  sleep?: ((ms: number) => Promise<void>) | undefined;
  random?: (() => number) | undefined;
}

export class ApiGatewayCallbacks {
  readonly #client: ApiGatewayManagementApiClient;
  readonly #log: Log;
  readonly #sleep: (ms: number) => Promise<void>;
  readonly #random: () => number;

  constructor({ callbackUrl, region, credentials, log, sleep, random }: CallbackOptions) {
    this.#client = new ApiGatewayManagementApiClient({
      endpoint: callbackUrl,
      region,
      // The tries are ours: the SDK's would multiply them.
      maxAttempts: 1,
      requestHandler: { requestTimeout: requestMsMax, connectionTimeout: requestMsMax },
      ...(credentials === undefined ? {} : { credentials }),
    });
    this.#log = log;
    this.#sleep = sleep ?? ((ms) => new Promise((resolve) => setTimeout(resolve, ms)));
    this.#random = random ?? Math.random;
  }

  /** Sends a text as one message. Never throws. */
  post(connectionId: string, text: string): Promise<Posted> {
    const Data = new TextEncoder().encode(text);
    return this.#tried("post", () =>
      this.#client.send(new PostToConnectionCommand({ ConnectionId: connectionId, Data })),
    );
  }

  /** Cuts a connection; its client sees 1000 whatever the reason. Never throws. */
  close(connectionId: string): Promise<Posted> {
    return this.#tried("close", () => this.#client.send(new DeleteConnectionCommand({ ConnectionId: connectionId })));
  }

  async #tried(call: "post" | "close", send: () => Promise<unknown>): Promise<Posted> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        await send();
        return "sent";
      } catch (error) {
        const status = statusOf(error);
        if (error instanceof GoneException || status === 410) return "gone";
        const isPassing = status === 429 || status >= 500 || status === 0;
        if (!isPassing || attempt >= attemptsMax) {
          this.#log.write(isPassing ? "warn" : "error", "a callback to a socket was given up", {
            call,
            status,
            attempts: attempt,
            error:
              error instanceof PayloadTooLargeException
                ? "the message is over the carrier's limit"
                : error instanceof Error
                  ? error.name
                  : "unknown",
          });
          return "failed";
        }
        const mostMs = Math.min(pauseMsMax, pauseMsMin * 2 ** (attempt - 1));
        await this.#sleep(mostMs * (0.5 + this.#random() / 2));
      }
    }
  }
}

/** The HTTP status that an error of the SDK tells; 0: there was no answer. */
function statusOf(error: unknown): number {
  if (typeof error !== "object" || error === null || !("$metadata" in error)) return 0;
  const { $metadata } = error;
  if (typeof $metadata !== "object" || $metadata === null || !("httpStatusCode" in $metadata)) return 0;
  return typeof $metadata.httpStatusCode === "number" ? $metadata.httpStatusCode : 0;
}
