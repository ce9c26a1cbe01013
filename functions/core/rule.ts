/**
 * A rule: when a host is to be emptied, which, how, and what comes after. Written by people as YAML or JSON, kept in git by them and in versions by
 * us; so it holds no secret (those are credentials of their own, I9) and every key of it is checked: what is not known is refused, never ignored.
 */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import {
  type EvacuationPolicy,
  evacuationPolicyDefault,
  evacuationPolicySchema,
  networkMaxSchema,
} from "./evacuation-state.ts";

/** Hosts that a rule names; a rule for more selects them by labels. */
export const ruleNamesMax = 500;
/** Labels in a selector or matchers in a trigger: more says less, and each is a line that a person must read. */
const labelsMax = 16;
const matcherValuesMax = 50;
/** Excluded days and ranges: ten years of public holidays. */
export const exclusionsMax = 200;

export const ruleNameSchema = z.string().check(z.regex(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/));

/** `90m`, `3h`, `2d`: whole minutes, for the timer that looks at rules comes once a minute. */
export const durationSchema = z.string().check(z.regex(/^[1-9][0-9]{0,4}[mhd]$/));
const unitMs: Readonly<Record<string, number>> = { m: 60_000, h: 3_600_000, d: 86_400_000 };
/** A duration of a rule in ms. The text has passed `durationSchema`. */
export const durationMs = (text: string): number => Number(text.slice(0, -1)) * (unitMs[text.slice(-1)] ?? 0);

/** As the inventory's labels: 63 and 255 characters. */
export const labelNameSchema = z.string().check(z.minLength(1), z.maxLength(63));
export const labelValueSchema = z.string().check(z.maxLength(255));
const labelsSchema = z.record(labelNameSchema, labelValueSchema);

const dateSchema = z.string().check(z.regex(/^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$/));

const scheduleSchema = z.strictObject({
  kind: z.literal("schedule"),
  /** Five fields; `SUN#1` is the first Sunday of a month, `L` its last day. */
  cron: z.string().check(z.maxLength(200), z.regex(/^[0-9A-Za-z*,/#?+-]+(?: [0-9A-Za-z*,/#?+-]+){4}$/)),
  /** IANA: Europe/Berlin. The hour is the one on the wall there, summer and winter. */
  timeZone: z.string().check(z.maxLength(64), z.regex(/^[A-Za-z][A-Za-z0-9_+/-]*$/)),
  /** How long the window is open after the cron's instant, in time that passes ... */
  window: z.optional(durationSchema),
  /** ... or until when by the clock on the wall, the next time it shows this. One of the two. */
  until: z.optional(z.string().check(z.regex(/^(?:[01]\d|2[0-3]):[0-5]\d$/))),
  /** Local days on which nothing is started. */
  exclude: z._default(
    z.strictObject({
      dates: z._default(z.array(dateSchema).check(z.maxLength(exclusionsMax)), []),
      /** Both days belong to it. */
      ranges: z._default(
        z.array(z.strictObject({ from: dateSchema, to: dateSchema })).check(z.maxLength(exclusionsMax)),
        [],
      ),
    }),
    { dates: [], ranges: [] },
  ),
});
export type Schedule = z.infer<typeof scheduleSchema>;

export const triggerKinds = ["webhook", "alertmanager", "aws-health", "host-shutdown"] as const;
export type TriggerKind = (typeof triggerKinds)[number];

/** Every label must have the value, or one of the values. No patterns: a matcher that takes long, or that matches more than was meant, has no place here. */
const matchersSchema = z._default(
  z.record(
    labelNameSchema,
    z.union([labelValueSchema, z.array(labelValueSchema).check(z.minLength(1), z.maxLength(matcherValuesMax))]),
  ),
  {},
);
const trigger = <K extends TriggerKind>(kind: K) => z.strictObject({ kind: z.literal(kind), matchers: matchersSchema });

export const ruleSchema = z.strictObject({
  name: ruleNameSchema,
  description: z._default(z.string().check(z.maxLength(500)), ""),
  when: z.discriminatedUnion("kind", [
    scheduleSchema,
    trigger("webhook"),
    trigger("alertmanager"),
    trigger("aws-health"),
    trigger("host-shutdown"),
  ]),
  /** Each of these narrows; at least one is needed, so that no rule means every host by a line that was forgotten. */
  which: z.strictObject({
    names: z.optional(z.array(nameSchema).check(z.minLength(1), z.maxLength(ruleNamesMax))),
    labels: z.optional(labelsSchema),
    /** The trigger's label that names the host: by the host's name, or by what the host's own label `hostLabel` says. */
    fromTrigger: z.optional(z.strictObject({ label: labelNameSchema, hostLabel: z.optional(labelNameSchema) })),
  }),
  how: z._default(
    z.strictObject({
      /** Parts of an evacuation's policy; what is absent is its default. */
      policy: z._default(
        z.partial(
          z.strictObject({
            accept: evacuationPolicySchema.shape.accept,
            vcpusPerCpuMax: evacuationPolicySchema.shape.vcpusPerCpuMax,
            memoryReserveKiB: evacuationPolicySchema.shape.memoryReserveKiB,
            outMax: evacuationPolicySchema.shape.outMax,
            inMax: evacuationPolicySchema.shape.inMax,
            fleetMax: evacuationPolicySchema.shape.fleetMax,
            networkMax: networkMaxSchema,
            bandwidthMiBps: evacuationPolicySchema.shape.bandwidthMiBps,
            attemptsMax: evacuationPolicySchema.shape.attemptsMax,
            breakerFailures: evacuationPolicySchema.shape.breakerFailures,
          }),
        ),
        {},
      ),
      /** After this no migration of an evacuation is started; absent: the window's end, or none. */
      deadline: z.optional(durationSchema),
      /** Where domains may go; absent: to every host that takes domains. */
      to: z.optional(
        z.strictObject({
          names: z.optional(z.array(nameSchema).check(z.minLength(1), z.maxLength(ruleNamesMax))),
          labels: z.optional(labelsSchema),
        }),
      ),
      approval: z._default(z.enum(["needed", "not"]), "not"),
      /** The same host is not evacuated again by this rule before this has passed since the last start. */
      coolDown: z._default(durationSchema, "1h"),
      /** Hosts of one run that are emptied at once. */
      hostsAtOnce: z._default(z.int().check(z.minimum(1), z.maximum(20)), 1),
    }),
    { policy: {}, approval: "not", coolDown: "1h", hostsAtOnce: 1 },
  ),
  after: z._default(z.strictObject({ restore: z.enum(["whenBack", "never"]) }), { restore: "never" }),
});
export type Rule = z.infer<typeof ruleSchema>;

/** What a rule sees of a host. */
export interface RuleHost {
  id: string;
  name: string;
  labels: Readonly<Record<string, string>>;
  /** It spoke lately. A silent host is never evacuated. */
  connected: boolean;
  cordoned: boolean;
  /** It has said that it shuts down. Absent: it has not. */
  shutting?: boolean;
}

export const labelsMatch = (
  wanted: Readonly<Record<string, string | readonly string[]>>,
  labels: Readonly<Record<string, string>>,
): boolean =>
  Object.entries(wanted).every(([label, values]) => {
    const value = Object.hasOwn(labels, label) ? labels[label] : undefined;
    return value !== undefined && (typeof values === "string" ? values === value : values.includes(value));
  });

/** Whether a host is of those that a rule or its destinations select; absent selectors take all. */
export const isSelected = (
  selector: { names?: readonly string[] | undefined; labels?: Readonly<Record<string, string>> | undefined },
  host: RuleHost,
): boolean =>
  (selector.names === undefined || selector.names.includes(host.name)) &&
  (selector.labels === undefined || labelsMatch(selector.labels, host.labels));

/** The policy of a rule's evacuations: the default, the rule's parts, its destinations among the hosts that there are now. */
export function policyOf(rule: Rule, hosts: readonly RuleHost[]): EvacuationPolicy {
  const { to, policy } = rule.how;
  const parts = Object.fromEntries(Object.entries(policy).filter(([, value]) => value !== undefined));
  return evacuationPolicySchema.parse({
    ...evacuationPolicyDefault,
    ...parts,
    to: to === undefined ? null : hosts.filter((host) => isSelected(to, host)).map(({ id }) => id),
  });
}

/** What the schema cannot say of a rule: keys that belong together. Each problem names its path. The schedule's own are in schedule.ts. */
export function ruleProblems(rule: Rule): string[] {
  const problems: string[] = [];
  const { which, when, how } = rule;
  if (which.names === undefined && which.labels === undefined && which.fromTrigger === undefined)
    problems.push("`which` selects nothing: give `names`, `labels` or `fromTrigger`");
  if (which.fromTrigger !== undefined && when.kind === "schedule")
    problems.push("`which.fromTrigger`: a schedule has no trigger whose label could name a host");
  const selectors = [
    ["which.labels", which.labels],
    ["how.to.labels", how.to?.labels],
    ["when.matchers", when.kind === "schedule" ? undefined : when.matchers],
  ] as const;
  for (const [path, labels] of selectors) {
    const count = labels === undefined ? 0 : Object.keys(labels).length;
    if (count > labelsMax) problems.push(`\`${path}\` has ${count} labels, over the limit of ${labelsMax}`);
    // An empty set of labels matches every host, which is never said by nothing.
    if (labels !== undefined && count === 0 && path !== "when.matchers") problems.push(`\`${path}\` is empty`);
  }
  if (how.to !== undefined && how.to.names === undefined && how.to.labels === undefined)
    problems.push("`how.to` selects nothing: give `names` or `labels`, or leave it out");
  return problems;
}
