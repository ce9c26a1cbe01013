/** Evacuations: plan, begin, list, look, watch, cancel, undo, restore. What the records alone can refuse is refused before anything is made. */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import { Fault, faultCodes } from "#protocol/fault";
import { evacuationRefusal } from "../core/evacuation-new.ts";
import { isEnded } from "../core/evacuation-result.ts";
import {
  type EvacuationPolicy,
  type EvacuationState,
  evacuationIdSchema,
  evacuationPolicyDefault,
  evacuationPolicySchema,
  networkMaxSchema,
} from "../core/evacuation-state.ts";
import { acceptMax } from "../core/limits.ts";
import { freshEvacuation, freshRestore, freshUndo } from "../evacuation-request.ts";
import { hostRefusals } from "../refusals.ts";
import type { Principal } from "./auth.ts";
import { refuse } from "./check.ts";
import type { AppDeps } from "./deps.ts";
import {
  type EvacuationPlan,
  evacuationPlanSchema,
  evacuationResource,
  evacuationRow,
  evacuationRowSchema,
  evacuationSchema,
  type HostNames,
  planResource,
} from "./evacuation-resource.ts";
import { eventStream, seenBy } from "./event-stream.ts";
import { hostNamed } from "./fleet.ts";
import { resourceId } from "./idempotency.ts";
import { evacuationAskMsMax, eventsIdleMs, planAskMsMax } from "./limits.ts";
import { activePage, activePageQuerySchema, pageOf } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Asked, type Route, route } from "./route.ts";

const tag = "evacuations";

/** Hosts named as destinations in one request. */
const destinationsMax = 200;
/** Domains left out of a restore. */
const skipMax = 500;

const { to: _, ...policyShape } = evacuationPolicySchema.shape;
/** What is not said is as in the default (or as in the evacuation that is undone). */
const policyBodySchema = z.partial(
  z.strictObject({
    ...policyShape,
    accept: z.array(z.enum(faultCodes)).check(z.maxLength(acceptMax)),
    // Without the default of what is stored: what is not said must not lift the limit of an evacuation that is undone.
    networkMax: networkMaxSchema,
  }),
);

const deadlineSchema = z.string().check(
  z.maxLength(40),
  // A duration from now (90m, 2h, 1d) or a time (RFC 3339).
  z.regex(/^([1-9]\d{0,5}[smhd]|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d))$/),
);
const unitMs: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

const common = {
  policy: z.optional(policyBodySchema),
  /** After it nothing is started any more: `2h`, or a time. */
  deadline: z.optional(deadlineSchema),
  /** Only plan: 200 with the plan, nothing is changed. */
  dryRun: z._default(z.boolean(), false),
};

interface Common {
  policy?: z.infer<typeof policyBodySchema> | undefined;
  deadline?: string | undefined;
  dryRun: boolean;
}

export function evacuationRoutes(deps: AppDeps): Route[] {
  const { ports, evacuations } = deps;
  const nowMs = () => Date.parse(ports.clock.now());
  const untilMs = (ms: number) => nowMs() + Math.min(ms, deps.answerMsMax ?? ms);

  async function stateOf(id: string): Promise<EvacuationState> {
    const state = evacuationIdSchema.safeParse(id).success ? await ports.evacuations.load(id) : null;
    if (state === null)
      throw fault("request.notFound", "There is no such evacuation.", "Look at: vmferry evacuations.");
    return state;
  }

  const names = async (): Promise<HostNames> => new Map((await ports.hosts.list()).map(({ id, name }) => [id, name]));
  const shown = async (state: EvacuationState) => evacuationResource(state, await names());

  function deadlineMs(text: string | undefined): number | null {
    if (text === undefined) return null;
    const [, digits, unit] = /^(\d+)([smhd])$/.exec(text) ?? [];
    const ms = digits === undefined ? Date.parse(text) - nowMs() : Number(digits) * (unitMs[unit ?? ""] ?? Number.NaN);
    if (ms > 0) return ms;
    throw fault(
      "request.malformed",
      "The deadline has passed already.",
      "Name a later time, or a duration such as 2h.",
    );
  }

  const policyOf = (given: Common["policy"], base: EvacuationPolicy, to: string[] | null): EvacuationPolicy => ({
    ...base,
    // A key that was not sent must not take the place of the default.
    ...Object.fromEntries(Object.entries(given ?? {}).filter(([, value]) => value !== undefined)),
    to,
  });

  const wishOf = (id: string, principal: Principal, body: Common, policy: EvacuationPolicy) => ({
    id,
    origin: { by: principal.name, rule: null, trigger: null },
    policy,
    deadlineMs: deadlineMs(body.deadline),
  });

  const accepted = async (state: EvacuationState) => ({
    status: 202 as const,
    value: await shown(state),
    headers: { location: `/v1/evacuations/${state.id}` },
  });

  /** Plans or begins; a repeated key finds what its first request began. */
  async function ask<B extends Common>(asked: Asked<B, unknown>, make: (id: string) => Promise<EvacuationState>) {
    const dryRun = asked.body.dryRun;
    const fresh = `e_${ports.ids.ulid()}`;
    const id = dryRun ? fresh : await resourceId(deps, asked, fresh);
    const known = id === fresh ? null : await ports.evacuations.load(id);
    if (known !== null) return accepted(known);
    const state = await make(id);
    const refusal = evacuationRefusal(state);
    if (refusal !== null) throw new Fault(refusal);
    if (!dryRun) return accepted(await evacuations.request(state, untilMs(evacuationAskMsMax)));
    const { plan, seen } = await evacuations.plan(state, untilMs(planAskMsMax));
    const value: EvacuationPlan = planResource(state, plan, seen);
    return Response.json(value);
  }

  const replies = {
    reply: { status: 202 as const, description: "It runs; Location names it", schema: evacuationSchema },
    otherReplies: [
      { status: 200 as const, description: "The plan of a dry run; nothing was changed", schema: evacuationPlanSchema },
    ],
  };

  return [
    route({
      method: "POST",
      path: "/v1/evacuations",
      tag,
      summary: "Empty a host: every domain moves to where the planner puts it; with `dryRun` only the plan",
      access: "token",
      idempotent: true,
      body: z.strictObject({
        /** Name or id. */
        host: nameSchema,
        /** Names or ids of the only hosts that may receive. */
        to: z.optional(z.array(nameSchema).check(z.minLength(1), z.maxLength(destinationsMax))),
        ...common,
      }),
      ...replies,
      changes: ({ body }) => !body.dryRun,
      faults: ["host.absent", "host.offline", "shim.incompatible", "destination.sameHost", "request.conflict"],
      async handle(asked) {
        const { body, principal } = asked;
        return ask(asked, async (id) => {
          const host = await hostNamed(ports, body.host);
          const to = body.to === undefined ? null : await destinationIds(body.to, host.id);
          if (!body.dryRun) refuse(hostRefusals(host, "source", ports));
          const policy = policyOf(body.policy, evacuationPolicyDefault, to);
          return freshEvacuation(ports, host, wishOf(id, principal, body, policy));
        });
      },
    }),
    route({
      method: "GET",
      path: "/v1/evacuations",
      tag,
      summary: "Evacuations, undos and restores, newest first",
      access: "token",
      query: activePageQuerySchema,
      reply: { status: 200, description: "A page of evacuations", schema: pageOf(evacuationRowSchema) },
      async handle({ query }) {
        const page = await ports.evacuations.list(activePage(query));
        return { value: { items: page.items.map(evacuationRow), cursor: page.cursor } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/evacuations/:id",
      tag,
      summary: "One evacuation with every domain of it and its story",
      access: "token",
      reply: { status: 200, description: "The evacuation", schema: evacuationSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        return { value: await shown(await stateOf(param("id"))) };
      },
    }),
    route({
      method: "GET",
      path: "/v1/evacuations/:id/events",
      tag,
      summary:
        "Server-sent events: `evacuation` (id: its version; data: the resource), and `ended` last. Resume with Last-Event-ID",
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
        const known = await names();
        return new Response(
          eventStream({
            ports,
            watched: {
              name: "evacuation",
              load: (id) => ports.evacuations.load(id),
              resource: (each: EvacuationState) => evacuationResource(each, known),
            },
            state,
            seen,
            idleMs: deps.eventsIdleMs ?? eventsIdleMs,
            carrier: deps.eventsCarrier,
          }),
          { headers: { "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no" } },
        );
      },
    }),
    route({
      method: "POST",
      path: "/v1/evacuations/:id/cancel",
      tag,
      summary: "Start nothing more; what is moving is let end, and what has moved stays where it is",
      access: "token",
      reply: { status: 202, description: "It ends when the last running migration has", schema: evacuationSchema },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, principal }) {
        const { id } = await stateOf(param("id"));
        return { status: 202, value: await shown(await evacuations.cancel(id, principal.name)) };
      },
    }),
    route({
      method: "POST",
      path: "/v1/evacuations/:id/undo",
      tag,
      summary: "Bring back what it moved and what still is where it brought it",
      access: "token",
      idempotent: true,
      body: z.strictObject(common),
      ...replies,
      changes: ({ body }) => !body.dryRun,
      faults: ["request.notFound", "request.conflict", "host.absent", "host.offline", "shim.incompatible"],
      async handle(asked) {
        const { param, body, principal } = asked;
        return ask(asked, async (id) => {
          const of = await stateOf(param("id"));
          if (!isEnded(of))
            throw fault(
              "request.conflict",
              `Evacuation ${of.id} has not ended.`,
              `Cancel it first (vmferry evacuation cancel ${of.id}) or wait for its end.`,
              "safe",
            );
          await returnable(await hostNamed(ports, of.host.id), body.dryRun);
          return freshUndo(ports, of, wishOf(id, principal, body, policyOf(body.policy, of.policy, null)));
        });
      },
    }),
    route({
      method: "POST",
      path: "/v1/hosts/:host/restore",
      tag,
      summary: "Bring home what evacuations have taken from this host, unless a person has moved it since",
      access: "token",
      idempotent: true,
      body: z.strictObject({
        /** Names or UUIDs of domains that stay where they are. */
        skip: z._default(z.array(nameSchema).check(z.maxLength(skipMax)), []),
        ...common,
      }),
      ...replies,
      changes: ({ body }) => !body.dryRun,
      faults: ["host.absent", "host.offline", "shim.incompatible", "request.conflict"],
      async handle(asked) {
        const { param, body, principal } = asked;
        return ask(asked, async (id) => {
          const host = await hostNamed(ports, param("host"));
          await returnable(host, body.dryRun);
          const wish = wishOf(id, principal, body, policyOf(body.policy, evacuationPolicyDefault, null));
          return freshRestore(ports, host, { ...wish, skip: body.skip });
        });
      },
    }),
  ];

  async function destinationIds(given: readonly string[], sourceId: string): Promise<string[]> {
    const hosts = await Promise.all(given.map((name) => hostNamed(ports, name)));
    const source = hosts.find(({ id }) => id === sourceId);
    if (source !== undefined)
      throw fault(
        "destination.sameHost",
        `${source.name} is the host that is to be emptied.`,
        "Name other hosts as destinations.",
      );
    return [...new Set(hosts.map(({ id }) => id))];
  }

  /** A cordon is no obstacle to what comes home: it is opened for that. */
  async function returnable(host: Parameters<typeof hostRefusals>[0], dryRun: boolean): Promise<void> {
    if (!dryRun) refuse(hostRefusals(host, "destination", ports).filter(({ code }) => code !== "host.cordoned"));
  }
}
