/**
 * Faults as RFC 9457 problems: one table from code to status, one shape of body. An error that is not a fault becomes
 * `internal` and says nothing of itself outside; the request's id connects the answer with the log.
 */
import * as z from "zod/mini";
import { Fault, type FaultBody, type FaultCode, faultCodes, type Retry } from "#protocol/fault";
import { retryAfterSeconds } from "./limits.ts";

export const problemMediaType = "application/problem+json";

export const problemSchema = z.object({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  detail: z.string(),
  /** Names this one occurrence; the same id stands in the log. */
  instance: z.string(),
  code: z.enum(faultCodes),
  cause: z.string(),
  action: z.string(),
});
export type Problem = z.infer<typeof problemSchema>;

/** What differs from 409: a refusal by the state of the fleet is a conflict. */
const statuses: Partial<Record<FaultCode, ProblemStatus>> = {
  "request.malformed": 400,
  "message.malformed": 400,
  "request.unauthorised": 401,
  "token.invalid": 401,
  "shim.unauthorised": 401,
  "request.forbidden": 403,
  "domain.absent": 404,
  "host.absent": 404,
  "request.notFound": 404,
  "request.tooLarge": 413,
  "message.tooLarge": 413,
  "bundle.tooLarge": 413,
  "idempotency.mismatch": 422,
  "bundle.malformed": 422,
  "bundle.altered": 422,
  "libvirt.failed": 502,
  "libvirt.unreachable": 502,
  "libvirt.refused": 502,
  "store.unreachable": 503,
  "bundle.unreachable": 503,
  internal: 500,
};
export type ProblemStatus = 400 | 401 | 403 | 404 | 409 | 413 | 422 | 500 | 502 | 503;

/** The HTTP status of a code. */
export const statusOf = (code: FaultCode): ProblemStatus => statuses[code] ?? 409;

/** A fault in one line; `retry` is `never` unless said otherwise. */
export const fault = (code: FaultCode, cause: string, action: string, retry: Retry = "never"): Fault =>
  new Fault({ code, cause, action, retry });

/** "domain.notUnique" -> "Domain not unique": a summary of the kind, not of the occurrence. */
function titleOf(code: FaultCode): string {
  const words = code.replaceAll(".", " ").replaceAll(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** What leaves the process for any thrown value: a fault as it is, everything else as `internal` without its text (I9). */
export function faultOf(error: unknown): FaultBody {
  if (error instanceof Fault && error.code !== "internal") return error.toBody();
  return {
    code: "internal",
    cause: "The control plane failed while it worked on this request.",
    action: "Try again; if it stays, look for the request's instance in the control plane's log.",
    retry: "safe",
  };
}

/** Builds the answer to a failed request. `requestId` is the id under which the log knows it. */
export function problemResponse(body: FaultBody, requestId: string): Response {
  const status = statusOf(body.code);
  const problem: Problem = {
    type: `urn:vmferry:problem:${body.code}`,
    title: titleOf(body.code),
    status,
    detail: `${body.cause} ${body.action}`,
    instance: `urn:vmferry:request:${requestId}`,
    code: body.code,
    cause: body.cause,
    action: body.action,
  };
  const headers = new Headers({ "content-type": problemMediaType });
  if (status === 503) headers.set("retry-after", String(retryAfterSeconds));
  if (status === 401) headers.set("www-authenticate", "Bearer");
  return new Response(JSON.stringify(problem), { status, headers });
}
