/**
 * One post to a webhook's receiver by Node's own client, which lets us see the address that a name leads to and connect to that very one: a name that turns
 * to an inner address between a check and a connection is of no use to anybody. Each post has its own connection, for a Lambda is frozen between them.
 */
import { type LookupAddress, lookup } from "node:dns";
import { request as plainRequest, type RequestOptions } from "node:http";
import { request as tlsRequest } from "node:https";
import type { LookupFunction } from "node:net";
import { isReachable, type WebhookTargets } from "./core/webhook-address.ts";
import type { WebhookOutcome } from "./core/webhook-delivery.ts";
import {
  addressRefusedCode,
  answerBytesMax,
  causeOf,
  type PostBounds,
  postBounds,
  type WebhookPost,
  type WebhookPoster,
} from "./webhook-post.ts";

type Resolve = (name: string) => Promise<LookupAddress[]>;

const systemResolve: Resolve = (name) =>
  new Promise((resolve, reject) =>
    lookup(name, { all: true }, (error, addresses) => (error === null ? resolve(addresses) : reject(error))),
  );

const refusal = () => Object.assign(new Error("the address is refused"), { code: addressRefusedCode });

/** Resolves a name to addresses that may be connected to; one that has any other is refused whole. */
export function checkedLookup(targets: WebhookTargets, resolve: Resolve = systemResolve): LookupFunction {
  return (name, options, done) => {
    resolve(name).then(
      (addresses) => {
        const [first] = addresses;
        if (first === undefined || !addresses.every(({ address }) => isReachable(address, targets)))
          done(refusal(), "", 0);
        else if (options.all === true) done(null, addresses);
        else done(null, first.address, first.family);
      },
      (error: NodeJS.ErrnoException) => done(error, "", 0),
    );
  };
}

/** `resolve`: the system's, unless a test has its own. Literal addresses are the caller's to check: they are not looked up. */
export function nodePoster(
  targets: WebhookTargets,
  { resolve, bounds = postBounds }: { resolve?: Resolve; bounds?: PostBounds } = {},
): WebhookPoster {
  const options: RequestOptions = { method: "POST", agent: false, lookup: checkedLookup(targets, resolve) };
  return async (post) => {
    try {
      return await answered(post, options, bounds);
    } catch (error) {
      return { kind: "unanswered", cause: causeOf(error, bounds) };
    }
  };
}

function answered(
  { url, headers, body }: WebhookPost,
  options: RequestOptions,
  { postMs, answerMs }: PostBounds,
): Promise<WebhookOutcome> {
  const signal = AbortSignal.timeout(postMs);
  const length = { "content-length": String(body.byteLength) };
  const request = url.startsWith("https:") ? tlsRequest : plainRequest;
  return new Promise((resolve, reject) => {
    const sent = request(url, { ...options, headers: { ...headers, ...length }, signal }, (response) => {
      const { statusCode, headers: said } = response;
      const end = () => {
        clearTimeout(timer);
        response.destroy();
        resolve({ kind: "answered", status: statusCode ?? 0, retryAfter: said["retry-after"] ?? null });
      };
      const timer = setTimeout(end, answerMs);
      let bytes = 0;
      response.on("data", (part: Buffer) => {
        bytes += part.byteLength;
        if (bytes > answerBytesMax) end();
      });
      // It has answered; that the rest of it broke off changes nothing.
      response.on("end", end).on("error", end);
    });
    sent.on("error", reject);
    // A change of protocol is an answer that nobody asked for; unheard, Node closes the connection and tells of no error, then or later.
    sent.on("upgrade", ({ statusCode }, socket) => {
      socket.destroy();
      resolve({ kind: "answered", status: statusCode ?? 0, retryAfter: null });
    });
    sent.end(body);
  });
}
