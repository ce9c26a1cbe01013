/** Outgoing webhooks: where events are posted, tried, paused, delivered once more, and their secrets, each of which is shown once (I9). */
import * as z from "zod/mini";
import { chronicleKeptMs } from "../core/limits.ts";
import {
  overlapMsDefault,
  overlapMsMax,
  type WebhookRecord,
  webhookNameSchema,
  webhookSchema,
} from "../core/webhook.ts";
import type { WebhookFace } from "../webhook-face.ts";
import type { AppDeps } from "./deps.ts";
import { pageOf, pageQuerySchema } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Route, route } from "./route.ts";
import {
  webhookRow,
  webhookRowSchema,
  webhookSecretMadeSchema,
  webhookTestedSchema,
  webhookWrittenSchema,
} from "./webhook-resource.ts";

const tag = "webhooks";

function webhookFace(deps: AppDeps): WebhookFace {
  if (deps.webhooks === undefined)
    throw fault("request.notFound", "This control plane posts to no webhooks.", "Use one of a version that does.");
  return deps.webhooks;
}

export function webhookRoutes(deps: AppDeps): Route[] {
  const { ports } = deps;
  const nowMs = () => Date.parse(ports.clock.now());
  const face = () => webhookFace(deps);
  const row = async (record: WebhookRecord) => webhookRow(record, await face().webhooks.delivery(record.id), nowMs());
  const said = (message: string, name: string, by: string) => ports.log.write("info", message, { webhook: name, by });

  return [
    route({
      method: "PUT",
      path: "/v1/webhooks/:name",
      tag,
      summary:
        "Post events to a URL from now on, as CloudEvents signed by Standard Webhooks; the secret is shown once. Again: change the URL or the types",
      access: "token",
      body: webhookSchema,
      reply: { status: 201, description: "It was made; here is its secret", schema: webhookWrittenSchema },
      otherReplies: [{ status: 200, description: "It was there, and is so now", schema: webhookWrittenSchema }],
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, body, principal }) {
        const name = param("name");
        const { book, soon } = face();
        if (!webhookNameSchema.safeParse(name).success)
          throw fault(
            "request.malformed",
            "A webhook's name is 1 to 63 of a-z, 0-9 and -, not beginning or ending with -.",
            "Give it another name.",
          );
        const { record, secret, changed } = await book.put(name, body, principal.name);
        if (changed) said("webhook written", name, principal.name);
        soon();
        return { status: secret === null ? 200 : 201, value: { ...(await row(record)), changed, secret } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/webhooks",
      tag,
      summary: "List webhooks by name, with how their deliveries stand",
      access: "token",
      query: pageQuerySchema,
      reply: { status: 200, description: "A page of webhooks", schema: pageOf(webhookRowSchema) },
      faults: ["request.notFound"],
      async handle({ query }) {
        const { webhooks } = face();
        const [records, deliveries] = await Promise.all([webhooks.list(), webhooks.deliveries()]);
        const after = query.cursor ?? "";
        const all = records.filter(({ name }) => name > after);
        const items = all
          .slice(0, query.limit)
          .map((record) =>
            webhookRow(record, deliveries.find(({ webhook }) => webhook === record.id) ?? null, nowMs()),
          );
        return { value: { items, cursor: all.length > items.length ? (items.at(-1)?.name ?? null) : null } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/webhooks/:name",
      tag,
      summary: "One webhook with how its delivery stands",
      access: "token",
      reply: { status: 200, description: "The webhook", schema: webhookRowSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        return { value: await row(await face().book.load(param("name"))) };
      },
    }),
    route({
      method: "DELETE",
      path: "/v1/webhooks/:name",
      tag,
      summary: "Delete a webhook and its secrets; what was not delivered is not",
      access: "token",
      reply: { status: 204, description: "Deleted" },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, principal }) {
        await face().book.remove(param("name"));
        said("webhook deleted", param("name"), principal.name);
        return new Response(null, { status: 204 });
      },
    }),
    route({
      method: "POST",
      path: "/v1/webhooks/:name/test",
      tag,
      summary: "Post a `dev.vmferry.webhook.test` now and say what the receiver answered; nothing else changes",
      access: "token",
      reply: { status: 200, description: "What came of it", schema: webhookTestedSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        const { book, runner } = face();
        const { status, ...tested } = await runner.test(await book.load(param("name")));
        return { value: { ...tested, status, taken: status !== null && status >= 200 && status < 300 } };
      },
    }),
    route({
      method: "POST",
      path: "/v1/webhooks/:name/secret",
      tag,
      summary: "Rotate the secret: both sign for `overlapMs`, then the new one alone; it is shown once",
      access: "token",
      body: z.strictObject({
        /** How long the former secret signs as well; 0: no longer. */
        overlapMs: z._default(z.int().check(z.minimum(0), z.maximum(overlapMsMax)), overlapMsDefault),
      }),
      reply: { status: 201, description: "The webhook and its new secret", schema: webhookSecretMadeSchema },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, body, principal }) {
        const { record, secret } = await face().book.rotate(param("name"), body.overlapMs, principal.name);
        said("webhook's secret rotated", record.name, principal.name);
        return { status: 201, value: { ...(await row(record)), secret } };
      },
    }),
    route({
      method: "POST",
      path: "/v1/webhooks/:name/replay",
      tag,
      summary: "Deliver once more whatever was written down since a time, or leave out what lies before a later one",
      access: "token",
      body: z.strictObject({ since: z.iso.datetime({ offset: true }) }),
      reply: { status: 200, description: "The webhook", schema: webhookRowSchema },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, body, principal }) {
        const { book, soon } = face();
        const sinceMs = Date.parse(body.since);
        if (!(sinceMs <= nowMs() && sinceMs >= nowMs() - chronicleKeptMs))
          throw fault(
            "request.malformed",
            "`since` is in the future, or so long ago that nothing of it is kept.",
            "Give a time of the last 400 days, such as 2026-11-23T08:00:00Z.",
          );
        const record = await book.replay(param("name"), sinceMs);
        said("webhook delivers from another time on", record.name, principal.name);
        soon();
        return { value: await row(record) };
      },
    }),
    ...(["pause", "resume"] as const).map((word) =>
      route({
        method: "POST",
        path: `/v1/webhooks/:name/${word}`,
        tag,
        summary:
          word === "pause"
            ? "Deliver nothing until it is resumed; nothing is lost"
            : "Deliver what happened meanwhile, and try at once what waits",
        access: "token",
        reply: { status: 200, description: "The webhook", schema: webhookRowSchema },
        faults: ["request.notFound", "request.conflict"],
        async handle({ param, principal }) {
          const { book, soon } = face();
          const record = await book[word](param("name"), principal.name);
          said(`webhook ${word}d`, record.name, principal.name);
          if (word === "resume") soon();
          return { value: await row(record) };
        },
      }),
    ),
  ];
}
