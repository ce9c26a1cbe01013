/**
 * A route as data: path, who may call it, what it takes, what it answers and with which codes it refuses. The app serves
 * it and the OpenAPI document is written from it, so the two cannot drift.
 */
import type { Context } from "hono";
import type * as z from "zod/mini";
import type { FaultCode } from "#protocol/fault";
import type { Principal } from "./auth.ts";

export type Method = "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
/** `open`: no token. `token`: API or admin token. `admin`: the admin token. */
export type Access = "open" | "token" | "admin";
export type SuccessStatus = 200 | 201 | 202 | 204 | 302;

export interface Variables {
  requestId: string;
}
export type AppContext = Context<{ Variables: Variables }>;

/** A request that was let in: authenticated, decoded. */
export interface Asked<B, Q> {
  context: AppContext;
  principal: Principal;
  body: B;
  query: Q;
  /** A path parameter, decoded. */
  param(name: string): string;
}

/** A value to send as JSON, or a whole response where the answer is no JSON. */
export type Answered<R> = { value: R; status?: SuccessStatus; headers?: Record<string, string> } | Response;

export interface Reply {
  status: SuccessStatus;
  description: string;
  schema: z.ZodMiniType | null;
  /** Absent: application/json when there is a schema. */
  mediaType?: string;
}

/** A body that the handler decodes itself, once its sender has proved himself by the body's own bytes: for the document alone. */
export interface RawBody {
  schema: z.ZodMiniType;
  bytesMax: number;
  /** How the sender proves himself, for people. */
  proof: string;
  /** Headers that this takes, beside Authorization. */
  headers: readonly { name: string; description: string }[];
}

export interface Route {
  method: Method;
  /** In Hono's form: `/v1/hosts/:host`. */
  path: string;
  tag: string;
  summary: string;
  access: Access;
  /** Takes an Idempotency-Key. */
  idempotent: boolean;
  query: z.ZodMiniType | null;
  body: z.ZodMiniType | null;
  /** Null: `body` says all. */
  rawBody: RawBody | null;
  replies: readonly Reply[];
  /** Codes beyond those that every route of its kind has (`commonFaults`). */
  faults: readonly FaultCode[];
  /** Whether this request asks for a change, which is written down before it is done. */
  changes(asked: { body: unknown; query: unknown }): boolean;
  handle(asked: Asked<unknown, unknown>): Promise<Answered<unknown>>;
}

/** Declares a route; the handler's types follow from its schemas. The app decodes by these very schemas before it calls `handle`. */
export function route<B = null, Q = null, R = null>(spec: {
  method: Method;
  path: string;
  tag: string;
  summary: string;
  access: Access;
  idempotent?: boolean;
  query?: z.ZodMiniType<Q>;
  body?: z.ZodMiniType<B>;
  rawBody?: RawBody;
  reply: { status: SuccessStatus; description: string; schema?: z.ZodMiniType<R>; mediaType?: string };
  otherReplies?: readonly Reply[];
  faults?: readonly FaultCode[];
  /** Absent: whatever is no GET. */
  changes?: boolean | ((asked: { body: B; query: Q }) => boolean);
  handle(asked: Asked<B, Q>): Promise<Answered<R>>;
}): Route {
  const { schema, ...reply } = spec.reply;
  const { changes = spec.method !== "GET" } = spec;
  return {
    method: spec.method,
    path: spec.path,
    tag: spec.tag,
    summary: spec.summary,
    access: spec.access,
    idempotent: spec.idempotent ?? false,
    query: spec.query ?? null,
    body: spec.body ?? null,
    rawBody: spec.rawBody ?? null,
    replies: [{ ...reply, schema: schema ?? null }, ...(spec.otherReplies ?? [])],
    faults: spec.faults ?? [],
    // Sound, as below.
    changes: typeof changes === "boolean" ? () => changes : (changes as Route["changes"]),
    // Sound: the app passes what `spec.body` and `spec.query` decoded, and null where there is none.
    handle: spec.handle as Route["handle"],
  };
}

/** The codes that a route may refuse with by its kind alone. */
export function commonFaults(of: Route): FaultCode[] {
  const codes: FaultCode[] = ["internal"];
  if (of.path.startsWith("/v1/") && of.path !== "/v1/openapi.json") codes.push("store.unreachable");
  if (of.access !== "open") codes.push("request.unauthorised", "request.forbidden");
  if (of.query !== null || of.body !== null || of.idempotent) codes.push("request.malformed");
  if (of.body !== null) codes.push("request.tooLarge");
  if (of.idempotent) codes.push("idempotency.mismatch");
  return codes;
}
