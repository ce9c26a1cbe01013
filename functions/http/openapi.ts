/**
 * The OpenAPI 3.1 document, written from the routes themselves: the schemas that decode a request are the schemas that
 * describe it. Each refusal is listed under its status with the codes it may have.
 */
import * as z from "zod/mini";
import type { FaultCode } from "#protocol/fault";
import { bodyBytesMax, idempotencyKeyCharsMax } from "./limits.ts";
import { problemMediaType, problemSchema, statusOf } from "./problem.ts";
import { commonFaults, type Reply, type Route } from "./route.ts";

type Json = Record<string, unknown>;

/** A path parameter in OpenAPI's form. */
const openApiPath = (path: string) => path.replaceAll(/:([a-z]+)/g, "{$1}");

function jsonSchema(schema: z.ZodMiniType, io: "input" | "output"): Json {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: "any" });
  return rest;
}

function successOf(reply: Reply): Json {
  if (reply.schema === null && reply.mediaType === undefined) return { description: reply.description };
  const mediaType = reply.mediaType ?? "application/json";
  const schema = reply.schema === null ? { type: "string" } : jsonSchema(reply.schema, "output");
  return { description: reply.description, content: { [mediaType]: { schema } } };
}

/** By status; what is answered in two media types is one answer. */
function successesOf(replies: readonly Reply[]): Json {
  const responses: Record<string, Json & { content?: unknown }> = {};
  for (const reply of replies) {
    const status = String(reply.status);
    const [known, success] = [responses[status], successOf(reply)];
    responses[status] =
      known === undefined
        ? success
        : {
            description: `${known.description}; ${success.description}`,
            content: { ...Object(known.content), ...Object(success.content) },
          };
  }
  return responses;
}

/** The codes of a route by their status. */
export function faultsByStatus(route: Route): Map<number, FaultCode[]> {
  const byStatus = new Map<number, FaultCode[]>();
  for (const code of new Set([...commonFaults(route), ...route.faults])) {
    const status = statusOf(code);
    byStatus.set(status, [...(byStatus.get(status) ?? []), code]);
  }
  return byStatus;
}

function problemsOf(route: Route): Json {
  const responses: Json = {};
  for (const [status, codes] of faultsByStatus(route))
    responses[String(status)] = {
      description: `Refused: ${codes.join(", ")}`,
      content: {
        [problemMediaType]: {
          schema: {
            allOf: [{ $ref: "#/components/schemas/Problem" }, { properties: { code: { enum: codes } } }],
          },
        },
      },
    };
  return responses;
}

function parametersOf(route: Route): Json[] {
  const parameters: Json[] = [...route.path.matchAll(/:([a-z]+)/g)].map(([, name]) => ({
    name,
    in: "path",
    required: true,
    schema: { type: "string" },
  }));
  if (route.query !== null) {
    const schema = jsonSchema(route.query, "input");
    const properties = z.record(z.string(), z.unknown()).parse(schema.properties ?? {});
    const required = z.array(z.string()).parse(schema.required ?? []);
    for (const [name, property] of Object.entries(properties))
      parameters.push({ name, in: "query", required: required.includes(name), schema: property });
  }
  if (route.idempotent)
    parameters.push({
      name: "Idempotency-Key",
      in: "header",
      required: false,
      description:
        "The same key with the same body returns the same resource, with another body 422. It belongs to the token that sent it.",
      schema: { type: "string", maxLength: idempotencyKeyCharsMax },
    });
  if (route.path.endsWith("/events"))
    parameters.push({
      name: "Last-Event-ID",
      in: "header",
      required: false,
      description: "The id of the event that was seen last.",
      schema: { type: "string" },
    });
  for (const { name, description } of route.rawBody?.headers ?? [])
    parameters.push({ name, in: "header", required: true, description, schema: { type: "string" } });
  return parameters;
}

/** What is sent. A body that the handler decodes itself is told as it is read there: keys that are not known are no matter. */
function requestBodyOf({ body, rawBody }: Route): Json {
  const content = (schema: z.ZodMiniType) => ({ "application/json": { schema: jsonSchema(schema, "input") } });
  if (rawBody !== null)
    return {
      requestBody: {
        required: true,
        description: `At most ${rawBody.bytesMax} bytes. ${rawBody.proof} Until then nothing is said of the body. Unknown keys are no matter.`,
        content: content(rawBody.schema),
      },
    };
  if (body === null) return {};
  const description = `At most ${bodyBytesMax} bytes. Unknown keys are refused.`;
  return { requestBody: { required: true, description, content: content(body) } };
}

function operationOf(route: Route): Json {
  return {
    tags: [route.tag],
    summary: route.summary,
    operationId: `${route.method.toLowerCase()}${route.path.replaceAll(/[^a-zA-Z]+(.)?/g, (_, next: string | undefined) => (next ?? "").toUpperCase())}`,
    security: route.access === "open" ? [] : [{ bearer: [] }],
    ...(route.access === "admin" ? { description: "Only with the admin token." } : {}),
    parameters: parametersOf(route),
    ...requestBodyOf(route),
    responses: {
      ...successesOf(route.replies),
      ...problemsOf(route),
    },
  };
}

/** Builds the document for these routes. */
export function openApiDocument(routes: readonly Route[], version: string): Json {
  const paths: Record<string, Json> = {};
  for (const route of routes) {
    const path = openApiPath(route.path);
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operationOf(route) };
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "vmferry",
      version,
      description:
        "Moves running libvirt/QEMU domains between hosts with their snapshot tree. Times are RFC 3339 UTC, durations in ms, sizes in bytes.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    paths,
    components: {
      securitySchemes: { bearer: { type: "http", scheme: "bearer" } },
      schemas: { Problem: jsonSchema(problemSchema, "output") },
    },
  };
}
