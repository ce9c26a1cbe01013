/** Join tokens and API tokens: made, listed, revoked by the admin token. A secret is shown once, in the answer that made it. */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import type { TokenRecord } from "../ports.ts";
import type { AppDeps } from "./deps.ts";
import { resourceId } from "./idempotency.ts";
import { apiTokenMsDefault, apiTokenMsMax, joinTokenMsDefault, joinTokenMsMax, joinTokenUsesMax } from "./limits.ts";
import { pageOf, pageQuerySchema } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Asked, type Route, route } from "./route.ts";
import { mintToken } from "./token.ts";
import { mintedTokenSchema, tokenResource, tokenSchema } from "./token-resource.ts";

const ttl = (max: number, fallback: number) => z._default(z.int().check(z.minimum(1_000), z.maximum(max)), fallback);

export function tokenRoutes(deps: AppDeps): Route[] {
  const { ports } = deps;

  /** Makes a token, or shows the one that this Idempotency-Key made, then without its secret. */
  async function mint(
    asked: Asked<unknown, unknown>,
    want: { kind: TokenRecord["kind"]; name: string | null; usesLeft: number | null; ttlMs: number },
  ) {
    const id = await resourceId(deps, asked, ports.ids.ulid());
    const known = await ports.tokens.byId(id);
    if (known !== null) return { status: 201 as const, value: { ...tokenResource(known), token: null } };
    const { text, record } = await mintToken(ports.ids, { ...want, id, at: ports.clock.now() });
    await ports.tokens.create(record);
    // Of two requests with one key that come at once one record stands, and only its secret opens anything.
    const standing = asked.context.req.header("idempotency-key") === undefined ? record : await ports.tokens.byId(id);
    if (standing !== null && standing.secretSha256 !== record.secretSha256)
      return { status: 201 as const, value: { ...tokenResource(standing), token: null } };
    ports.log.write("info", "token made", { kind: want.kind, token: id, by: asked.principal.name });
    return { status: 201 as const, value: { ...tokenResource(record), token: text } };
  }

  function kindRoutes(kind: TokenRecord["kind"], path: string, tag: string): Route[] {
    return [
      route({
        method: "GET",
        path,
        tag,
        summary: `List ${tag}, newest first, without their secrets`,
        access: "admin",
        query: pageQuerySchema,
        reply: { status: 200, description: "A page of tokens", schema: pageOf(tokenSchema) },
        async handle({ query }) {
          const tokens = (await ports.tokens.list(kind)).sort((one, other) => (one.id > other.id ? -1 : 1));
          const before = query.cursor;
          const rest = before === undefined ? tokens : tokens.filter(({ id }) => id < before);
          const items = rest.slice(0, query.limit).map(tokenResource);
          return { value: { items, cursor: rest.length > items.length ? (items.at(-1)?.id ?? null) : null } };
        },
      }),
      route({
        method: "GET",
        path: `${path}/:id`,
        tag,
        summary: "One token without its secret",
        access: "admin",
        reply: { status: 200, description: "The token", schema: tokenSchema },
        faults: ["request.notFound"],
        async handle({ param }) {
          return { value: tokenResource(await tokenOf(param("id"))) };
        },
      }),
      route({
        method: "DELETE",
        path: `${path}/:id`,
        tag,
        summary: "Revoke a token at once",
        access: "admin",
        reply: { status: 204, description: "Revoked" },
        faults: ["request.notFound"],
        async handle({ param, principal }) {
          const token = await tokenOf(param("id"));
          await ports.tokens.remove(token.id);
          ports.log.write("info", "token revoked", { kind, token: token.id, by: principal.name });
          return new Response(null, { status: 204 });
        },
      }),
    ];

    async function tokenOf(id: string): Promise<TokenRecord> {
      const token = await ports.tokens.byId(id);
      if (token === null || token.kind !== kind)
        throw fault("request.notFound", `There is no such ${kind} token.`, `List them: GET ${path}.`);
      return token;
    }
  }

  return [
    route({
      method: "POST",
      path: "/v1/join-tokens",
      tag: "join tokens",
      summary: "Make a token that enrols hosts and does nothing else",
      access: "admin",
      idempotent: true,
      body: z.strictObject({
        uses: z._default(z.int().check(z.minimum(1), z.maximum(joinTokenUsesMax)), 1),
        ttlMs: ttl(joinTokenMsMax, joinTokenMsDefault),
        name: z.optional(nameSchema),
      }),
      reply: { status: 201, description: "The token, shown once", schema: mintedTokenSchema },
      handle: (asked) =>
        mint(asked, {
          kind: "join",
          name: asked.body.name ?? null,
          usesLeft: asked.body.uses,
          ttlMs: asked.body.ttlMs,
        }),
    }),
    ...kindRoutes("join", "/v1/join-tokens", "join tokens"),
    route({
      method: "POST",
      path: "/v1/api-tokens",
      tag: "API tokens",
      summary: "Make a token for the API; it always expires and cannot manage tokens",
      access: "admin",
      idempotent: true,
      body: z.strictObject({ name: nameSchema, ttlMs: ttl(apiTokenMsMax, apiTokenMsDefault) }),
      reply: { status: 201, description: "The token, shown once", schema: mintedTokenSchema },
      handle: (asked) => mint(asked, { kind: "api", name: asked.body.name, usesLeft: null, ttlMs: asked.body.ttlMs }),
    }),
    ...kindRoutes("api", "/v1/api-tokens", "API tokens"),
  ];
}
