/**
 * What every trigger becomes: one internal event in the shape of CloudEvents 1.0, with a key by which the same thing that is told again is known to be
 * the same. A source that tells of several hosts becomes several events, one for each, so that each can be repeated, resolved and explained alone.
 */
import * as z from "zod/mini";
import { labelNameSchema, labelsMatch, labelValueSchema, type Rule, type RuleHost, type TriggerKind } from "./rule.ts";

/** A trigger's body; Alertmanager sends about 1 KiB for each alert. */
export const triggerBodyBytesMax = 256 * 1024;
/** Events of one body: a rack's worth of hosts with several alerts each. */
export const triggerEventsMax = 200;
/** Labels of one event that are kept, as many as a domain's; more are cut off, and matchers do not see them. */
const labelsKeptMax = 32;

export const eventOrigins = ["webhook", "alertmanager", "aws-health", "host-shutdown", "schedule", "person"] as const;

export const triggerEventSchema = z.object({
  specversion: z.literal("1.0"),
  /** Of the occurrence at its source. */
  id: z.string().check(z.maxLength(300)),
  source: z.string().check(z.maxLength(300)),
  type: z.enum(eventOrigins.map((origin) => `dev.vmferry.trigger.${origin}` as const)),
  time: z.string(),
  /** Two events of one rule with the same key are one. Never a secret. */
  dedupkey: z.string().check(z.maxLength(500)),
  data: z.object({
    action: z.enum(["fire", "resolve"]),
    labels: z.record(labelNameSchema, labelValueSchema),
    /** Hosts that a person named; null: the rule's selector says. */
    hosts: z.nullable(z.array(z.string())),
    /** False: the source says that it left something out, so what is absent is no statement. */
    whole: z.boolean(),
    /** When it is too late to begin anything: a host's shutdown goes on then. Absent: never. */
    deadlineAt: z.optional(z.string()),
  }),
});
export type TriggerEvent = z.infer<typeof triggerEventSchema>;

/** Labels as they may be kept: bounded in number and length, texts alone. */
function keptLabels(labels: Readonly<Record<string, unknown>>): Record<string, string> {
  const kept: [string, string][] = [];
  for (const [name, value] of Object.entries(labels)) {
    if (kept.length >= labelsKeptMax) break;
    const text = typeof value === "string" ? value : typeof value === "number" ? String(value) : null;
    if (text !== null && name !== "__proto__" && name !== "" && name.length <= 63 && text.length <= 255)
      kept.push([name, text]);
  }
  return Object.fromEntries(kept);
}

const cut = (text: string, charsMax = 250): string => text.slice(0, charsMax);

/** What each source's body must be. A host's own shutdown has none: its connection tells it. */
export const triggerBodySchema = (kind: Exclude<TriggerKind, "host-shutdown">): z.ZodMiniType =>
  ({ alertmanager: alertmanagerSchema, "aws-health": awsHealthSchema, webhook: webhookSchema })[kind];

export type ReadEvents = { ok: true; events: TriggerEvent[] } | { ok: false; cause: string };
const refused = (cause: string): ReadEvents => ({ ok: false, cause });

/** Decodes a trigger's body, already JSON, of a caller that has proved itself. Keys that are not known are accepted: sources grow. */
export function readTrigger(
  kind: TriggerKind,
  value: unknown,
  context: { rule: Rule; nowMs: number; messageId: string },
): ReadEvents {
  switch (kind) {
    case "alertmanager":
      return readAlertmanager(value);
    case "aws-health":
      return readAwsHealth(value);
    case "webhook":
      return readWebhook(value, context);
    case "host-shutdown":
      return refused("a host's shutdown is told by its shim and by nobody else");
  }
}

const text = z.string();
const labels = z.record(z.string(), z.unknown());

/** Alertmanager's webhook, version 4 (prometheus.io, configuration, webhook_config). */
const alertmanagerSchema = z.object({
  version: z.literal("4"),
  groupKey: text,
  truncatedAlerts: z._default(z.int().check(z.minimum(0)), 0),
  alerts: z
    .array(
      z.object({
        status: z.enum(["firing", "resolved"]),
        labels,
        startsAt: text.check(z.maxLength(64)),
        fingerprint: text.check(z.minLength(1), z.maxLength(128)),
      }),
    )
    .check(z.maxLength(triggerEventsMax)),
});

function readAlertmanager(value: unknown): ReadEvents {
  const read = alertmanagerSchema.safeParse(value);
  if (!read.success) return refused(mismatch("an Alertmanager webhook of version 4", read.error));
  const { alerts, truncatedAlerts, groupKey } = read.data;
  return {
    ok: true,
    events: alerts.map((alert) => ({
      specversion: "1.0",
      id: `${alert.fingerprint} ${alert.startsAt}`,
      source: `alertmanager ${cut(groupKey)}`,
      type: "dev.vmferry.trigger.alertmanager",
      time: alert.startsAt,
      dedupkey: `alertmanager ${alert.fingerprint} ${alert.startsAt}`,
      data: {
        action: alert.status === "firing" ? "fire" : "resolve",
        labels: keptLabels(alert.labels),
        hosts: null,
        whole: truncatedAlerts === 0,
      },
    })),
  };
}

/** An AWS Health event as EventBridge delivers it (docs.aws.amazon.com/health, "EventBridge schema"). */
const awsHealthSchema = z.object({
  id: text.check(z.maxLength(128)),
  source: z.literal("aws.health"),
  "detail-type": text.check(z.maxLength(128)),
  account: text.check(z.maxLength(64)),
  time: text.check(z.maxLength(64)),
  region: z.optional(text),
  detail: z.object({
    eventArn: text.check(z.maxLength(300)),
    service: z.optional(text),
    eventTypeCode: text,
    eventTypeCategory: text,
    eventScopeCode: z.optional(text),
    communicationId: text.check(z.minLength(1), z.maxLength(128)),
    eventRegion: z.optional(text),
    statusCode: z.optional(text),
    affectedAccount: z.optional(text.check(z.maxLength(64))),
    affectedEntities: z._default(
      z.array(z.object({ entityValue: text.check(z.maxLength(255)) })).check(z.maxLength(triggerEventsMax)),
      [],
    ),
    page: z.optional(z.union([text, z.number()])),
    totalPages: z.optional(z.union([text, z.number()])),
  }),
});

function readAwsHealth(value: unknown): ReadEvents {
  const read = awsHealthSchema.safeParse(value);
  if (!read.success) return refused(mismatch("an AWS Health event from EventBridge", read.error));
  const { detail, account, ...event } = read.data;
  const affected = detail.affectedAccount ?? account;
  const common = {
    service: detail.service,
    eventTypeCode: detail.eventTypeCode,
    eventTypeCategory: detail.eventTypeCategory,
    eventScopeCode: detail.eventScopeCode,
    statusCode: detail.statusCode,
    account: affected,
    // `region` is where the event was delivered from; the region that is struck is in the detail.
    region: detail.eventRegion ?? event.region,
  };
  const whole = Number(detail.totalPages ?? 1) <= 1;
  // Of an account and a region as a whole where no entity is named. A page of several that names none says nothing: the others do.
  const entities: (string | null)[] = detail.affectedEntities.map(({ entityValue }) => entityValue);
  if (entities.length === 0 && whole) entities.push(null);
  return {
    ok: true,
    events: entities.map((entity) => ({
      specversion: "1.0",
      id: event.id,
      source: detail.eventArn,
      type: "dev.vmferry.trigger.aws-health",
      time: event.time,
      dedupkey: `aws-health ${detail.communicationId} ${affected}${entity === null ? "" : ` ${entity}`}`,
      data: {
        action: detail.statusCode === "closed" ? "resolve" : "fire",
        labels: keptLabels(entity === null ? common : { ...common, entity }),
        hosts: null,
        whole,
      },
    })),
  };
}

/** Our own form of a Standard Webhook: `{type, timestamp, data: {labels, action?}}`, the shape that the specification proposes. */
const webhookSchema = z.object({
  type: text.check(z.minLength(1), z.maxLength(255)),
  timestamp: z.optional(text.check(z.maxLength(64))),
  data: z.object({
    action: z._default(z.enum(["fire", "resolve"]), "fire"),
    key: z.optional(text.check(z.maxLength(255))),
    labels,
  }),
});

function readWebhook(value: unknown, context: { rule: Rule; nowMs: number; messageId: string }): ReadEvents {
  const read = webhookSchema.safeParse(value);
  if (!read.success) return refused(mismatch("{type, timestamp?, data: {labels, action?, key?}}", read.error));
  const { type, timestamp, data } = read.data;
  return {
    ok: true,
    events: [
      {
        specversion: "1.0",
        id: context.messageId,
        source: `webhook ${context.rule.name}`,
        type: "dev.vmferry.trigger.webhook",
        time: timestamp ?? new Date(context.nowMs).toISOString(),
        // A `resolve` is another message than what it resolves: `key` is what they share.
        dedupkey: `webhook ${data.key === undefined ? `id ${context.messageId}` : `key ${data.key}`}`,
        data: { action: data.action, labels: { ...keptLabels(data.labels), type }, hosts: null, whole: true },
      },
    ],
  };
}

/**
 * The shutdown of a host, as its shim tells it: the connection has proved which host it is. `requestId`: one for each request to shut down, shared with its
 * withdrawal (`resolve`).
 */
export const hostShutdownEvent = (
  host: { id: string; name: string },
  requestId: string,
  at: string,
  more: { action?: "fire" | "resolve"; deadlineAt?: string; kind?: string | null } = {},
): TriggerEvent => ({
  specversion: "1.0",
  id: requestId,
  source: `host ${host.id}`,
  type: "dev.vmferry.trigger.host-shutdown",
  time: at,
  dedupkey: `host-shutdown ${host.id} ${requestId}`,
  data: {
    action: more.action ?? "fire",
    labels: keptLabels({ host: host.name, hostId: host.id, kind: more.kind }),
    hosts: [host.name],
    whole: true,
    ...(more.deadlineAt === undefined ? {} : { deadlineAt: more.deadlineAt }),
  },
});

/** A window of a schedule that has opened. */
export const scheduleEvent = (rule: string, opensAt: string): TriggerEvent => ({
  specversion: "1.0",
  id: opensAt,
  source: `rule ${rule}`,
  type: "dev.vmferry.trigger.schedule",
  time: opensAt,
  dedupkey: `schedule ${opensAt}`,
  data: { action: "fire", labels: {}, hosts: null, whole: true },
});

/** A person who runs a rule by hand. */
export const personEvent = (by: string, id: string, at: string, hosts: readonly string[] | null): TriggerEvent => ({
  specversion: "1.0",
  id,
  source: `person ${by}`,
  type: "dev.vmferry.trigger.person",
  time: at,
  dedupkey: `person ${id}`,
  data: { action: "fire", labels: {}, hosts: hosts === null ? null : [...hosts], whole: true },
});

/** Whether an event is for a rule: its kind and its labels. A person's and a schedule's always are. */
export function isFor(rule: Rule, event: TriggerEvent): boolean {
  if (event.type === "dev.vmferry.trigger.person") return true;
  if (event.type !== `dev.vmferry.trigger.${rule.when.kind}`) return false;
  return rule.when.kind === "schedule" || labelsMatch(rule.when.matchers, event.data.labels);
}

/** An AWS Health event of an account and a region as a whole: it says of no host that it is struck, so no label of it names one. */
export const namesNoEntity = ({ type, data }: TriggerEvent): boolean =>
  type === "dev.vmferry.trigger.aws-health" && !Object.hasOwn(data.labels, "entity");

/** Prometheus' `instance` carries the scraped port. */
const withoutPort = (value: string): string => value.replace(/:\d{1,5}$/, "");

/** Whether a host is the one that an event names by the rule's label. */
export function isNamedBy(
  event: TriggerEvent,
  by: { label: string; hostLabel?: string | undefined },
  host: RuleHost,
): boolean {
  if (event.data.hosts !== null) return event.data.hosts.includes(host.name);
  const value = Object.hasOwn(event.data.labels, by.label) ? event.data.labels[by.label] : undefined;
  if (value === undefined || value === "") return false;
  if (by.hostLabel !== undefined)
    return Object.hasOwn(host.labels, by.hostLabel) && host.labels[by.hostLabel] === value;
  return host.name === value || host.name === withoutPort(value);
}

/** Names the path and the rule, never the value: what was sent may hold anything. */
function mismatch(what: string, error: z.core.$ZodError): string {
  const issue = error.issues[0];
  const path = issue?.path.map(String).join(".") ?? "";
  return `it is not ${what}: ${path === "" ? "its root" : `\`${cut(path, 100)}\``} does not fit (${issue?.code ?? "mismatch"})`;
}
