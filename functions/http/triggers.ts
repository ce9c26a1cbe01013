/**
 * The doors of triggers, open to everybody and of use to nobody who cannot prove himself: a body's size is looked at first, whoever sends it; then the
 * desk decides over its bytes as they came, and refuses all in the same words.
 */
import { triggerBodyBytesMax, triggerBodySchema } from "../core/trigger-event.ts";
import type { TriggerRequest } from "../trigger-desk.ts";
import { recordRequest } from "./audit.ts";
import type { AppDeps } from "./deps.ts";
import { fault } from "./problem.ts";
import { type RawBody, type Route, route } from "./route.ts";
import { triggeredSchema } from "./rule-resource.ts";
import { ruleFace } from "./rules.ts";

/** Reads a body whole, as it came. Throws `request.tooLarge` as soon as it is over the bound. */
async function bytesOf(request: Request): Promise<Uint8Array> {
  const tooLarge = () =>
    fault(
      "request.tooLarge",
      `The request body is over the limit of ${triggerBodyBytesMax} bytes.`,
      "Send less at once.",
    );
  if (Number(request.headers.get("content-length") ?? 0) > triggerBodyBytesMax) throw tooLarge();
  if (request.body === null) return new Uint8Array();
  const parts: Uint8Array[] = [];
  let bytes = 0;
  const reader = request.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return Buffer.concat(parts);
    bytes += value.byteLength;
    if (bytes > triggerBodyBytesMax) {
      await reader.cancel();
      throw tooLarge();
    }
    parts.push(value);
  }
}

const token = "The rule's token proves the sender: `Authorization: Bearer vmt_...` (vmferry rule credential add).";
const proofs: Record<TriggerRequest["kind"], Pick<RawBody, "proof" | "headers">> = {
  alertmanager: { proof: token, headers: [] },
  "aws-health": { proof: token, headers: [] },
  webhook: {
    proof: "A signature over these very bytes proves the sender, as Standard Webhooks say.",
    headers: [
      { name: "webhook-id", description: "Of the message; the same again is heard once." },
      { name: "webhook-timestamp", description: "Unix time in seconds; not more than 5 minutes away." },
      {
        name: "webhook-signature",
        description: "`v1,` (HMAC-SHA256) or `v1a,` (Ed25519) and base64; several are separated by spaces.",
      },
    ],
  },
};

export function triggerRoutes(deps: AppDeps): Route[] {
  const door = (kind: TriggerRequest["kind"], path: string, summary: string): Route =>
    route({
      method: "POST",
      path,
      tag: "triggers",
      summary,
      access: "open",
      rawBody: { schema: triggerBodySchema(kind), bytesMax: triggerBodyBytesMax, ...proofs[kind] },
      reply: { status: 202, description: "What came of it", schema: triggeredSchema },
      faults: ["request.unauthorised", "request.malformed", "request.tooLarge", "request.notFound"],
      async handle({ param, context }) {
        const body = await bytesOf(context.req.raw);
        const request: TriggerRequest = {
          kind,
          rule: param("rule"),
          header: (name) => context.req.header(name),
          body,
          proved: (by) =>
            recordRequest(deps.ports, {
              method: "POST",
              path: context.req.path,
              by,
              requestId: context.get("requestId"),
              admin: false,
            }),
        };
        const { accepted, repeated, ignored } = await ruleFace(deps).desk.take(request);
        return { status: 202, value: { accepted, repeated, ignored } };
      },
    });
  return [
    door(
      "webhook",
      "/v1/triggers/:rule",
      "A Standard Webhook: `{type, timestamp, data: {labels, action?, key?}}`, signed",
    ),
    door("alertmanager", "/v1/triggers/:rule/alertmanager", "Alertmanager's webhook, version 4, with the rule's token"),
    door("aws-health", "/v1/triggers/:rule/aws-health", "An AWS Health event from EventBridge, with the rule's token"),
  ];
}
