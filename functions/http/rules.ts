/** Rules: written as versions, shown with their next windows and their runs, run and approved by hand; and the credentials of their triggers. */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import { type Rule, ruleNamesMax, ruleSchema } from "../core/rule.ts";
import { credentialsMax, type RuleCredential, type RuleRecord } from "../core/rule-state.ts";
import { noSuchRule, sha256Hex } from "../rule-book.ts";
import { placeOf } from "../trigger-desk.ts";
import { publicKeyBytes, secretBytes } from "../trigger-signature.ts";
import type { AppDeps, RuleFace } from "./deps.ts";
import { resourceId } from "./idempotency.ts";
import { pageOf, pageQuerySchema } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Route, route } from "./route.ts";
import {
  decisionResource,
  mintedCredentialSchema,
  ruleDetail,
  ruleDetailSchema,
  ruleRow,
  ruleRowSchema,
  ruleRunReplySchema,
  ruleVersion,
  ruleVersionSchema,
  ruleWrittenSchema,
} from "./rule-resource.ts";

const tag = "rules";
/** 256 bits. */
const secretBytesMade = 32;
const flag = z.optional(z.enum(["true", "false"]));

/** The rules' side of a deployment. Throws `request.notFound` where there is none. */
export function ruleFace(deps: AppDeps): RuleFace {
  if (deps.rules === undefined)
    throw fault("request.notFound", "This control plane runs no rules.", "Use one of a version that does.");
  return deps.rules;
}

export function ruleRoutes(deps: AppDeps): Route[] {
  const { ports } = deps;
  const nowMs = () => Date.parse(ports.clock.now());
  const row = (record: RuleRecord) => ruleRow(record, nowMs(), ruleFace(deps).cron);

  async function detail(record: RuleRecord) {
    const { rules } = ruleFace(deps);
    const [state, credentials] = await Promise.all([rules.state(record.name), rules.credentials(record.name)]);
    return ruleDetail(row(record), state, credentials);
  }

  /** What a run would do now; null where only the trigger knows the hosts. */
  async function now(rule: Rule, by: string) {
    if (rule.which.fromTrigger !== undefined) return null;
    return decisionResource(await ruleFace(deps).runner.preview(rule, { by, hosts: null }));
  }

  async function decide(name: string, runId: string, approved: boolean, by: string) {
    const { book, runner } = ruleFace(deps);
    const record = await book.load(name);
    await runner.decide(record, { runId, approved, by });
    ports.log.write("info", approved ? "a run was approved" : "a run was refused", { rule: name, run: runId, by });
    return { value: await detail(record) };
  }

  return [
    route({
      method: "PUT",
      path: "/v1/rules/:name",
      tag,
      summary:
        "Write a rule; each change is a new version. With `dryRun` it is checked and shown, and nothing is stored",
      access: "token",
      query: z.strictObject({
        /** Only over this version; 0: only if there is no such rule. */
        version: z.optional(z.coerce.number().check(z.multipleOf(1), z.minimum(0))),
        dryRun: flag,
      }),
      body: ruleSchema,
      changes: ({ query }) => query.dryRun !== "true",
      reply: { status: 200, description: "The rule as it stands", schema: ruleWrittenSchema },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, body, query, principal }) {
        const { book, rules } = ruleFace(deps);
        if (body.name !== param("name"))
          throw fault(
            "request.malformed",
            `The rule is named \`${body.name}\` in its body and otherwise in the path.`,
            "Give it one name.",
          );
        book.check(body);
        if (query.dryRun === "true") {
          const before = await rules.load(body.name);
          const standing = before === null || before.deleted ? null : before;
          const changed = JSON.stringify(standing?.rule ?? null) !== JSON.stringify(body);
          const record: RuleRecord = {
            name: body.name,
            version: (before?.version ?? 0) + (changed ? 1 : 0),
            previousSha256: null,
            sha256: "",
            at: ports.clock.now(),
            by: principal.name,
            paused: standing?.paused ?? false,
            deleted: false,
            rule: body,
          };
          return { value: { ...row(record), changed, dryRun: true, now: await now(body, principal.name) } };
        }
        const { record, changed } = await book.put(body, principal.name, query.version ?? null);
        if (changed)
          ports.log.write("info", "rule written", {
            rule: record.name,
            version: record.version,
            by: principal.name,
          });
        return { value: { ...row(record), changed, dryRun: false, now: await now(body, principal.name) } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/rules",
      tag,
      summary: "List rules by name",
      access: "token",
      query: pageQuerySchema,
      reply: { status: 200, description: "A page of rules", schema: pageOf(ruleRowSchema) },
      faults: ["request.notFound"],
      async handle({ query }) {
        const after = query.cursor ?? "";
        const all = (await ruleFace(deps).rules.list()).filter(({ deleted, name }) => !deleted && name > after);
        const items = all.slice(0, query.limit).map(row);
        return { value: { items, cursor: all.length > items.length ? (items.at(-1)?.name ?? null) : null } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/rules/:name",
      tag,
      summary: "One rule with its next windows, its runs, and why events started nothing",
      access: "token",
      reply: { status: 200, description: "The rule", schema: ruleDetailSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        return { value: await detail(await ruleFace(deps).book.load(param("name"))) };
      },
    }),
    route({
      method: "GET",
      path: "/v1/rules/:name/versions",
      tag,
      summary: "Every version of a rule, newest first, with who wrote it",
      access: "token",
      query: pageQuerySchema,
      reply: { status: 200, description: "A page of versions", schema: pageOf(ruleVersionSchema) },
      faults: ["request.notFound"],
      async handle({ param, query }) {
        const before = Number(query.cursor ?? Number.POSITIVE_INFINITY);
        // Also of a rule that was deleted: who did what stays to be read.
        const known = await ruleFace(deps).rules.versions(param("name"));
        if (known.length === 0) throw noSuchRule();
        const all = known.filter(({ version }) => version < before);
        const items = all.slice(0, query.limit).map(ruleVersion);
        const last = items.at(-1);
        return { value: { items, cursor: all.length > items.length && last ? String(last.version) : null } };
      },
    }),
    route({
      method: "PATCH",
      path: "/v1/rules/:name",
      tag,
      summary: "Pause a rule or let it go on; what runs is not touched",
      access: "token",
      body: z.strictObject({ paused: z.boolean() }),
      reply: { status: 200, description: "The rule", schema: ruleRowSchema },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, body, principal }) {
        const record = await ruleFace(deps).book.change(param("name"), principal.name, { paused: body.paused });
        return { value: row(record) };
      },
    }),
    route({
      method: "DELETE",
      path: "/v1/rules/:name",
      tag,
      summary: "Delete a rule and its credentials; its versions stay, and an evacuation that runs goes on",
      access: "token",
      reply: { status: 204, description: "Deleted" },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, principal }) {
        const { book, rules, runner } = ruleFace(deps);
        const { name } = await book.load(param("name"));
        // First, so that a rule that is made anew under this name never takes what the old one took.
        for (const { id } of await rules.credentials(name)) await rules.removeCredential(name, id);
        const record = await book.change(name, principal.name, { deleted: true });
        await runner.step(record);
        ports.log.write("info", "rule deleted", { rule: name, by: principal.name });
        return new Response(null, { status: 204 });
      },
    }),
    route({
      method: "POST",
      path: "/v1/rules/:name/run",
      tag,
      summary: "Run a rule now: neither window, approval nor cool-down holds, for a person has decided",
      access: "token",
      idempotent: true,
      body: z.strictObject({
        /** Only these of the rule's hosts; needed where its trigger names them. */
        hosts: z.optional(z.array(nameSchema).check(z.minLength(1), z.maxLength(ruleNamesMax))),
        dryRun: z._default(z.boolean(), false),
      }),
      changes: ({ body }) => !body.dryRun,
      reply: { status: 202, description: "What is evacuated and what is not", schema: ruleRunReplySchema },
      faults: ["request.notFound", "request.conflict"],
      async handle(asked) {
        const { book, runner, rules } = ruleFace(deps);
        const record = await book.load(asked.param("name"));
        const hosts = asked.body.hosts ?? null;
        const by = asked.principal.name;
        if (asked.body.dryRun) {
          const decision = await runner.preview(record.rule, { by, hosts });
          return { status: 202, value: { dryRun: true, ...decisionResource(decision), run: null } };
        }
        const id = await resourceId(deps, asked, ports.ids.ulid());
        const decision = await runner.run(record, { by, id, hosts });
        const state = await rules.state(record.name);
        return { status: 202, value: { dryRun: false, ...decisionResource(decision), run: state?.run ?? null } };
      },
    }),
    ...([true, false] as const).map((approved) =>
      route({
        method: "POST",
        path: `/v1/rules/:name/runs/:id/${approved ? "approve" : "refuse"}`,
        tag,
        summary: approved ? "Approve what waits for it in this run" : "Refuse what waits for approval in this run",
        access: "token",
        reply: { status: 200, description: "The rule with its run", schema: ruleDetailSchema },
        faults: ["request.notFound", "request.conflict"],
        handle: ({ param, principal }) => decide(param("name"), param("id"), approved, principal.name),
      }),
    ),
    route({
      method: "POST",
      path: "/v1/rules/:name/credentials",
      tag,
      summary: "Make or bring what a trigger's sender proves itself by; a made one is shown once",
      access: "token",
      body: z.strictObject({
        /** A webhook's shared secret (`whsec_...`) or the sender's public key (`whpk_...`); absent: one is made. */
        value: z.optional(z.string().check(z.minLength(1), z.maxLength(200))),
      }),
      reply: { status: 201, description: "The credential", schema: mintedCredentialSchema },
      faults: ["request.notFound", "request.conflict"],
      async handle({ param, body, principal }) {
        const { book, rules } = ruleFace(deps);
        const { name, rule } = await book.load(param("name"));
        if ((await rules.credentials(name)).length >= credentialsMax)
          throw fault(
            "request.conflict",
            `The rule has ${credentialsMax} credentials already.`,
            "Remove one that no sender uses any more.",
          );
        const { credential, shown } = await credentialFor(rule, body.value, principal.name);
        await rules.addCredential(credential);
        ports.log.write("info", "credential added", { rule: name, credential: credential.id, by: principal.name });
        const { id, kind, createdAt, by } = credential;
        return { status: 201, value: { id, kind, createdAt, by, value: shown } };
      },
    }),
    route({
      method: "DELETE",
      path: "/v1/rules/:name/credentials/:id",
      tag,
      summary: "Remove a credential at once",
      access: "token",
      reply: { status: 204, description: "Removed" },
      faults: ["request.notFound"],
      async handle({ param, principal }) {
        const { book, rules } = ruleFace(deps);
        const { name } = await book.load(param("name"));
        if (!(await rules.removeCredential(name, param("id"))))
          throw fault("request.notFound", "The rule has no such credential.", `Look at: GET /v1/rules/${name}.`);
        ports.log.write("info", "credential removed", { rule: name, credential: param("id"), by: principal.name });
        return new Response(null, { status: 204 });
      },
    }),
  ];

  /** The credential of the rule's kind: sealed, digested or public (I9), and what is shown of it this once. */
  async function credentialFor(
    rule: Rule,
    value: string | undefined,
    by: string,
  ): Promise<{ credential: RuleCredential; shown: string | null }> {
    const { kind } = rule.when;
    const head = { id: ports.ids.ulid(), rule: rule.name, createdAt: ports.clock.now(), by };
    if (kind === "alertmanager" || kind === "aws-health") {
      if (value !== undefined)
        throw fault("request.malformed", "`value`: the token of this trigger is made here.", "Leave it out.");
      const token = `vmt_${ports.ids.secret(secretBytesMade)}`;
      return { credential: { ...head, kind: "token", value: await sha256Hex(token) }, shown: token };
    }
    if (kind !== "webhook")
      throw fault("request.conflict", `A rule of kind ${kind} is called by nobody.`, "It needs no credential.");
    if (value !== undefined && publicKeyBytes(value) !== null)
      return { credential: { ...head, kind: "publicKey", value }, shown: null };
    if (value !== undefined && secretBytes(value) === null)
      throw fault(
        "request.malformed",
        "`value` is neither `whsec_` with 24 to 64 bytes in base64 nor `whpk_` with 32.",
        "Leave it out to have one made, or bring the sender's.",
      );
    const secret = value ?? `whsec_${Buffer.from(ports.ids.secret(secretBytesMade), "base64url").toString("base64")}`;
    const sealed = await ruleFace(deps).seal.seal(secret, placeOf(head));
    return { credential: { ...head, kind: "secret", value: sealed }, shown: value === undefined ? secret : null };
  }
}
