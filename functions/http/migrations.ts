/** Migrations: request, list, look, watch, cancel, resolve. What the records alone can refuse is refused before anything is made. */
import * as z from "zod/mini";
import { migrationIdSchema, nameSchema } from "#protocol/command";
import type { HostRef, MigrationState } from "../core/state.ts";
import type { HostRecord } from "../ports.ts";
import { busyRefusal, hostRefusals, pairRefusals } from "../refusals.ts";
import { partedRefusal, refuse } from "./check.ts";
import { acceptSchema } from "./checks.ts";
import type { AppDeps } from "./deps.ts";
import { eventStream, seenBy, watchedMigrations } from "./event-stream.ts";
import { hostNamed, placeDomain } from "./fleet.ts";
import { resourceId } from "./idempotency.ts";
import { eventsIdleMs } from "./limits.ts";
import { migrationResource, migrationRow, migrationSchema, migrationSummarySchema } from "./migration-resource.ts";
import { activePage, activePageQuerySchema, pageOf } from "./page-query.ts";
import { fault } from "./problem.ts";
import { fencedSide } from "./resolution.ts";
import { type Route, route } from "./route.ts";

const tag = "migrations";

/** What a person writes into the story for those who ask later why. */
const reasonCharsMax = 500;

const migrationBodySchema = z.strictObject({
  /** Name or UUID; a name that is not unique over the fleet needs `source`. */
  domain: nameSchema,
  source: z.optional(nameSchema),
  destination: nameSchema,
  accept: acceptSchema,
  autoConverge: z._default(z.boolean(), false),
  bandwidthMiBps: z.optional(z.int().check(z.minimum(1), z.maximum(1_000_000))),
});

const refOf = ({ id, name, publicKey }: HostRecord): HostRef => ({ id, name, publicKey });

export function migrationRoutes(deps: AppDeps): Route[] {
  const { ports, runner } = deps;

  async function stateOf(id: string): Promise<MigrationState> {
    const state = migrationIdSchema.safeParse(id).success ? await ports.migrations.load(id) : null;
    if (state === null) throw fault("request.notFound", "There is no such migration.", "Look at: vmferry migrations.");
    return state;
  }

  const accepted = (state: MigrationState) => ({
    status: 202 as const,
    value: migrationResource(state, null),
    headers: { location: `/v1/migrations/${state.id}` },
  });

  return [
    route({
      method: "POST",
      path: "/v1/migrations",
      tag,
      summary: "Request a migration",
      access: "token",
      idempotent: true,
      body: migrationBodySchema,
      reply: { status: 202, description: "It runs; Location names it", schema: migrationSchema },
      faults: [
        "domain.absent",
        "domain.notUnique",
        "domain.busy",
        "host.absent",
        "host.offline",
        "host.cordoned",
        "destination.sameHost",
        "destination.duplicateUuid",
        "shim.incompatible",
        "peer.unreachable",
        "request.conflict",
      ],
      async handle(asked) {
        const { body } = asked;
        const fresh = `m_${ports.ids.ulid()}`;
        const id = await resourceId(deps, asked, fresh);
        // A repeated key finds its migration whatever has become of the hosts since; one that was cut short between its
        // creation and its first command is gone on with.
        const known = id === fresh ? null : await ports.migrations.load(id);
        if (known !== null) return accepted(known.timeline.length > 0 ? known : await runner.request(known));

        const destination = await hostNamed(ports, body.destination);
        const from = body.source === undefined ? null : await hostNamed(ports, body.source);
        const { domain, host: source } = await placeDomain(ports, body.domain, from);
        refuse(pairRefusals(source, destination));
        refuse(hostRefusals(source, "source", ports));
        refuse(hostRefusals(destination, "destination", ports));
        const busy = await busyRefusal(ports, domain, id);
        refuse(busy === null ? [] : [busy]);
        // A domain that is not running needs no ticket.
        const parted = domain.state === "shutoff" ? null : await partedRefusal(ports, source, destination);
        refuse(parted === null ? [] : [parted]);

        const state = await runner.request({
          id,
          domain: { uuid: domain.uuid, name: domain.name },
          // With their keys, as enrolled now: the ticket names them.
          source: refOf(source),
          destination: refOf(destination),
          // `offline` and `unsafe` follow from what the inspections find.
          options: {
            offline: false,
            unsafe: false,
            autoConverge: body.autoConverge,
            bandwidthMiBps: body.bandwidthMiBps ?? null,
          },
          accept: body.accept,
          origin: { by: asked.principal.name, evacuation: null, rule: null },
        });
        return accepted(state);
      },
    }),
    route({
      method: "GET",
      path: "/v1/migrations",
      tag,
      summary: "Migrations, newest first",
      access: "token",
      query: activePageQuerySchema,
      reply: { status: 200, description: "A page of migrations", schema: pageOf(migrationSummarySchema) },
      async handle({ query }) {
        const page = await ports.migrations.list(activePage(query));
        return { value: { items: page.items.map(migrationRow), cursor: page.cursor } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/migrations/:id",
      tag,
      summary: "One migration with its whole story",
      access: "token",
      reply: { status: 200, description: "The migration", schema: migrationSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        const state = await stateOf(param("id"));
        // Progress is decoration: a socket that cannot be asked must not hide the migration.
        const progress =
          state.endedAt !== null ? null : await ports.sockets.progress(state.source.id, state.id).catch(() => null);
        return { value: migrationResource(state, progress) };
      },
    }),
    route({
      method: "GET",
      path: "/v1/migrations/:id/events",
      tag,
      summary:
        "Server-sent events: `migration` (id: its version; data: the resource), `progress`, and `ended` last. Resume with Last-Event-ID",
      access: "token",
      reply: { status: 200, description: "The stream", mediaType: "text/event-stream" },
      otherReplies: [
        { status: 204, description: "It has ended and Last-Event-ID saw its end: do not reconnect", schema: null },
      ],
      faults: ["request.notFound"],
      async handle({ param, context }) {
        const state = await stateOf(param("id"));
        const seen = seenBy(context.req.header("last-event-id"));
        if (state.endedAt !== null && seen.version >= state.version) return new Response(null, { status: 204 });
        return new Response(
          eventStream({
            ports,
            watched: watchedMigrations(ports),
            state,
            seen,
            idleMs: deps.eventsIdleMs ?? eventsIdleMs,
            carrier: deps.eventsCarrier,
          }),
          {
            headers: { "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no" },
          },
        );
      },
    }),
    route({
      method: "POST",
      path: "/v1/migrations/:id/cancel",
      tag,
      summary:
        "Cancel: before the destination has decided to start the domain it stays on its source; later it is too late. `cancel.outcome` says which",
      access: "token",
      reply: {
        status: 202,
        description: "The wish is recorded; its outcome is known when the migration has ended",
        schema: migrationSchema,
      },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, principal }) {
        const { id } = await stateOf(param("id"));
        return { status: 202, value: migrationResource(await runner.cancel(id, principal.name), null) };
      },
    }),
    route({
      method: "POST",
      path: "/v1/migrations/:id/resolve",
      tag,
      summary:
        "State that a host that stays away is fenced (runs nothing and will not by itself), so that the migration can end without it",
      access: "token",
      body: z.strictObject({
        /** Name or id of the migration's source or destination. */
        fenced: nameSchema,
        reason: z.string().check(z.minLength(1), z.maxLength(reasonCharsMax)),
      }),
      reply: { status: 202, description: "It goes on without that host", schema: migrationSchema },
      faults: ["request.notFound", "request.conflict", "host.absent"],
      async handle({ param, body, principal }) {
        const state = await stateOf(param("id"));
        const fenced = await fencedSide(ports, state, body.fenced);
        return {
          status: 202,
          value: migrationResource(
            await runner.resolve(state.id, { by: principal.name, reason: body.reason, fenced }),
            null,
          ),
        };
      },
    }),
  ];
}
