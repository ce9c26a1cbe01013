/**
 * What a stage's name and the environment decide: which cloud, what is kept, which options. Pure, so that the rules are
 * tested without a cloud. A stage is kept unless its name says that it may be thrown away: forgetting a word must never
 * cost a table (I3).
 */

export type Cloud = "aws" | "cloudflare";

export interface Stage {
  name: string;
  cloud: Cloud;
  /** Removal is refused, the table and the bucket outlive the stack. */
  kept: boolean;
  /** How long logs are kept. */
  logDays: 14 | 90;
}

/** The stage's name is part of the names of functions and roles; AWS allows them 64 characters. */
const stageCharsMax = 32;

/** `production-edge` runs on Cloudflare, `production` on AWS: two stages, two tables, nothing shared. */
const edgeSuffix = "-edge";

/** Names of stages that may be thrown away with all they hold. */
const passing = /^(?:dev|test|pr)(?:-|$)/;

/** Throws an error that says what to type when the name does not fit. */
export function stageOf(name: string): Stage {
  if (!/^[a-z](?:[a-z0-9]|-(?=[a-z0-9]))*$/.test(name) || name.length > stageCharsMax)
    throw new Error(
      `The stage name ${JSON.stringify(name)} does not fit: lower-case letters, digits and single hyphens, at most ` +
        `${stageCharsMax} characters, for example: npx sst deploy --stage production`,
    );
  const kept = !passing.test(name);
  return { name, cloud: name.endsWith(edgeSuffix) ? "cloudflare" : "aws", kept, logDays: kept ? 90 : 14 };
}

/** Options that differ between users, from the environment or `.env.<stage>`. None is needed. */
export interface Settings {
  /** `gateway`: API Gateway, where event streams end after 29 s. `function-url`: the function's own address, which streams. */
  door: "gateway" | "function-url";
  /** Where clients and shims reach the functions. On AWS `zoneId` names the Route 53 zone that holds the domain. */
  domain: { name: string; zoneId: string | null } | null;
  /** Who is told when an alarm rings. AWS asks this address to confirm once. */
  alarmEmail: string | null;
  /** A table that is there already, in place of the stage's own: one that was put back from a backup. */
  table: string | null;
}

const domainPattern = /^(?=.{4,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$/;

/** An empty value counts as none. Throws an error that names the variable and what it must hold. */
export function settingsOf(cloud: Cloud, env: Readonly<Record<string, string | undefined>>): Settings {
  const door = env.VMFERRY_DOOR || "gateway";
  const name = env.VMFERRY_DOMAIN || null;
  const zoneId = env.VMFERRY_ZONE_ID || null;
  const alarmEmail = env.VMFERRY_ALARM_EMAIL || null;
  const table = env.VMFERRY_TABLE || null;
  if (door !== "gateway" && door !== "function-url")
    throw new Error(`VMFERRY_DOOR is ${JSON.stringify(door)}; it must be "gateway" or "function-url".`);
  if (door === "function-url" && cloud === "cloudflare")
    throw new Error("VMFERRY_DOOR is for AWS; the Worker on Cloudflare streams in any case.");
  if (name !== null && !domainPattern.test(name))
    throw new Error(`VMFERRY_DOMAIN is ${JSON.stringify(name)}; it must be a domain like ferry.example.com.`);
  if (name !== null && cloud === "aws" && zoneId === null)
    throw new Error(`VMFERRY_DOMAIN needs VMFERRY_ZONE_ID, the id of the Route 53 zone that holds ${name}.`);
  if (name !== null && door === "function-url")
    throw new Error("VMFERRY_DOMAIN and VMFERRY_DOOR=function-url exclude each other: a function URL takes no domain.");
  if (alarmEmail !== null && !/^[^\s@]+@[^\s@]+$/.test(alarmEmail))
    throw new Error(`VMFERRY_ALARM_EMAIL is ${JSON.stringify(alarmEmail)}; it must be an e-mail address.`);
  if (table !== null && !/^[\w.-]{3,255}$/.test(table))
    throw new Error(`VMFERRY_TABLE is ${JSON.stringify(table)}; it must be the name of a DynamoDB table.`);
  return { door, domain: name === null ? null : { name, zoneId }, alarmEmail, table };
}
