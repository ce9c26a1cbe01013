/**
 * What API Gateway's websocket API hands to a Lambda, decoded: a proxy event of the routes $connect, $disconnect and $default. Names of
 * headers come as the client wrote them, so they are compared without case.
 */
import * as z from "zod/mini";
import { connectHeader } from "#protocol/identity";
import type { SocketEvent } from "../socket/api-gateway-handler.ts";

const textsSchema = z.optional(z.nullable(z.record(z.string(), z.optional(z.nullable(z.string())))));

const socketEventSchema = z.object({
  requestContext: z.object({
    eventType: z.enum(["CONNECT", "DISCONNECT", "MESSAGE"]),
    connectionId: z.string().check(z.minLength(1), z.maxLength(128)),
    /** Unix time in ms: of the connection, and of this event as the carrier received it. */
    connectedAt: z.number(),
    requestTimeEpoch: z.number(),
  }),
  headers: textsSchema,
  queryStringParameters: textsSchema,
  body: z.optional(z.nullable(z.string())),
  isBase64Encoded: z.optional(z.boolean()),
});

/** Throws an error of the schema when it is no such event: the function was wired to something else. */
export function decodeSocketEvent(value: unknown): SocketEvent {
  const { requestContext, headers, queryStringParameters, body, isBase64Encoded } = socketEventSchema.parse(value);
  const { eventType, connectionId, connectedAt, requestTimeEpoch } = requestContext;
  switch (eventType) {
    case "CONNECT":
      return {
        type: "connect",
        connectionId,
        connectedAtMs: connectedAt,
        proof: Object.entries(headers ?? {}).find(([name]) => name.toLowerCase() === connectHeader)?.[1] ?? null,
        hostId: queryStringParameters?.host ?? null,
      };
    case "DISCONNECT":
      return { type: "disconnect", connectionId };
    case "MESSAGE":
      return {
        type: "message",
        connectionId,
        atMs: requestTimeEpoch,
        text: isBase64Encoded === true ? null : (body ?? ""),
      };
  }
}
