/**
 * A stage's plan for the tests of the infrastructure, and how to look things up in it. The plan is made in a process of
 * its own (infra/check/resources.ts), with secrets that no other value can be mistaken for.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as z from "zod/mini";
import { root } from "../../infra/check/platform.ts";
import { type Plan, planSchema, type Resource, secretKey } from "../../infra/check/resources.ts";
import { lambdaNames } from "../../infra/lambda-build.ts";

/** What is to appear nowhere in clear. */
export const secretValues = {
  AdminTokenSha256: "ab".repeat(32),
  TicketKey: `MC4CAQAwBQYDK2VwBCIEI${"Q".repeat(43)}`,
  /** The mocks' key of the Worker's IAM user. */
  accessKey: "the-secret-of-the-key",
} as const;

const planMsMax = 120_000;

/** Plans `stage`, with the options of `env`. Throws with the program's words when the configuration refuses. */
export function planned(stage: string, env: Record<string, string> = {}): Plan {
  const dist = mkdtempSync(join(tmpdir(), "vmferry-dist-"));
  for (const name of ["worker", ...lambdaNames]) writeFileSync(join(dist, `${name}.mjs`), "export {};\n");
  // Nothing of the caller's own options or accounts may leak in.
  const own = Object.entries(process.env).filter(([name]) => !/^(?:VMFERRY_|AWS_|CLOUDFLARE_|SST_)/.test(name));
  try {
    const text = execFileSync(process.execPath, [join(root, "infra/check/resources.ts"), stage], {
      cwd: root,
      encoding: "utf8",
      timeout: planMsMax,
      maxBuffer: 64 * 1024 * 1024,
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...Object.fromEntries(own),
        SST_SECRET_AdminTokenSha256: secretValues.AdminTokenSha256,
        SST_SECRET_TicketKey: secretValues.TicketKey,
        VMFERRY_DIST: dist,
        ...env,
      },
    });
    return planSchema.parse(JSON.parse(text));
  } finally {
    rmSync(dist, { recursive: true });
  }
}

/** All resources of a type, by the end of its name: `lambda/function:Function`. */
export const ofType = ({ resources }: Plan, type: string): Resource[] =>
  resources.filter((resource) => resource.type.endsWith(type));

/** The only resource of a type, or the one of that name. */
export function one(plan: Plan, type: string, name?: string): Resource["inputs"] {
  const found = ofType(plan, type).filter((resource) => name === undefined || resource.name === name);
  const [only] = found;
  assert.ok(only !== undefined && found.length === 1, `${found.length} of ${type} ${name ?? ""}`);
  return only.inputs;
}

/** What is under Pulumi's encryption; fails where a value is not. */
export const decrypted = (value: unknown): unknown => z.object({ [secretKey]: z.unknown() }).parse(value)[secretKey];

/** Every text in a value with the path that leads to it; `secret` when it lies under encryption. */
export function texts(value: unknown, path = "", secret = false): { path: string; text: string; secret: boolean }[] {
  if (typeof value === "string") return [{ path, text: value, secret }];
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, inner]) => texts(inner, `${path}/${key}`, secret || key === secretKey));
}

const words = z.pipe(
  z.optional(z.union([z.string(), z.array(z.string())])),
  z.transform((given) => (given === undefined ? [] : [given].flat())),
);
const documentSchema = z.object({
  Version: z.literal("2012-10-17"),
  Statement: z.array(
    z.looseObject({
      Sid: z.optional(z.string()),
      Effect: z.enum(["Allow", "Deny"]),
      Action: words,
      Resource: words,
      Principal: z.optional(z.unknown()),
      Condition: z.optional(z.unknown()),
    }),
  ),
});
export type PolicyDocument = z.infer<typeof documentSchema>;

/** Every IAM document in any property of any resource: whatever names a version of the policy language. */
export function policies({ resources }: Plan): { where: string; document: PolicyDocument }[] {
  return resources.flatMap(({ type, name, inputs }) =>
    texts(inputs)
      .filter(({ text }) => text.startsWith("{") && text.includes('"Statement"'))
      .map(({ path, text }) => ({
        where: `${type} ${name}${path}`,
        document: documentSchema.parse(JSON.parse(text)),
      })),
  );
}
