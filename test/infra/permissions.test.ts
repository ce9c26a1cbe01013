/** Least privilege: every policy of every kind of stage, statement by statement. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Plan } from "../../infra/check/resources.ts";
import {
  connectionUse,
  invocation,
  logUse,
  objectSweep,
  objectUse,
  type Statement,
  tableUse,
} from "../../infra/permissions.ts";
import { ofType, one, type PolicyDocument, planned, policies } from "./plan.ts";

const plans: Record<string, Plan> = {
  "AWS behind API Gateway": planned("production"),
  "AWS behind a function URL": planned("dev-x", { VMFERRY_DOOR: "function-url" }),
  Cloudflare: planned("production-edge"),
};

/** What infra/permissions.ts can grant, by the name of the statement. */
const written = new Map<string, Statement>(
  [tableUse("t"), objectUse("b"), objectSweep("b"), connectionUse("s"), logUse("l"), invocation("f")]
    .flat()
    .map((statement) => [statement.sid, statement]),
);

/** What is wrong with a document, in words. */
function faults(document: PolicyDocument): string[] {
  return document.Statement.filter(({ Effect }) => Effect === "Allow").flatMap((statement) => {
    const { Sid = "(none)", Action, Resource, Principal } = statement;
    const reason = written.get(Sid);
    const isTrust = Principal !== undefined && Action.every((action) => action === "sts:AssumeRole");
    return [
      ...Action.filter((action) => action.includes("*")).map((action) => `${Sid} allows ${action}`),
      ...("NotAction" in statement || "NotResource" in statement ? [`${Sid} allows all but something`] : []),
      ...(isTrust || reason !== undefined ? [] : [`${Sid} is not in infra/permissions.ts`]),
      ...(reason === undefined || reason.why.length > 10 ? [] : [`${Sid} has no reason`]),
      ...Resource.filter((resource) => resource === "*").map(() => `${Sid} is for every resource there is`),
      ...Resource.filter((resource) => resource.includes("*") && (reason?.wildcard ?? "").length < 10).map(
        (resource) => `${Sid} is for ${resource} without a written reason`,
      ),
    ];
  });
}

describe("permissions", () => {
  for (const [title, plan] of Object.entries(plans))
    test(`${title}: no action with a star, no wider resource without a written reason`, () => {
      const found = policies(plan);
      // One for each function and its trust, the schedule's, or the Worker's user, and the bucket's.
      assert.ok(found.length >= (title === "Cloudflare" ? 2 : 9), `${found.length} documents`);
      assert.deepEqual(
        found.flatMap(({ where, document }) => faults(document).map((fault) => `${where}: ${fault}`)),
        [],
      );
    });

  test("the walk finds what is too wide", () => {
    const allow = (Sid: string, Action: string[], Resource: string[]) =>
      faults({ Version: "2012-10-17", Statement: [{ Sid, Effect: "Allow", Action, Resource }] }).length;
    assert.equal(allow("TableItems", ["dynamodb:GetItem"], ["arn:aws:dynamodb:::table/t"]), 0);
    assert.ok(allow("TableItems", ["dynamodb:*"], ["arn:aws:dynamodb:::table/t"]) > 0);
    assert.ok(allow("TableItems", ["dynamodb:GetItem"], ["*"]) > 0);
    assert.ok(allow("TableItems", ["dynamodb:GetItem"], ["arn:aws:dynamodb:::table/*"]) > 0);
    assert.ok(allow("Unknown", ["dynamodb:GetItem"], ["arn:aws:dynamodb:::table/t"]) > 0);
  });

  test("no managed policy and no role of somebody else's is attached", () => {
    for (const plan of Object.values(plans)) {
      assert.deepEqual(ofType(plan, "olicyAttachment"), []);
      for (const { name, inputs } of ofType(plan, "iam/role:Role")) {
        assert.equal(inputs.managedPolicyArns, undefined, name);
        assert.equal(inputs.inlinePolicies, undefined, name);
      }
    }
  });

  test("each function has a role of its own, for its own log", () => {
    const plan = plans["AWS behind API Gateway"];
    assert.ok(plan);
    const functions = ofType(plan, "lambda/function:Function");
    assert.equal(new Set(functions.map(({ inputs }) => inputs.role)).size, 3);
    for (const kind of ["Http", "Socket", "Timer"]) {
      const policy: string = String(one(plan, "iam/rolePolicy:RolePolicy", `${kind}Policy`).policy);
      assert.match(policy, new RegExp(`/aws/lambda/vmferry-production-${kind.toLowerCase()}:\\*`));
      assert.equal(policy.match(/\/aws\/lambda\//g)?.length, 1);
    }
  });

  test("the timer signs no uploads, and only a schedule of this account calls it", () => {
    const plan = plans["AWS behind API Gateway"];
    assert.ok(plan);
    assert.doesNotMatch(String(one(plan, "iam/rolePolicy:RolePolicy", "TimerPolicy").policy), /PutObject/);
    assert.match(
      String(one(plan, "iam/role:Role", "ScheduleRole").assumeRolePolicy),
      /"aws:SourceAccount":"123456789012"/,
    );
  });

  test("only API Gateway of this deployment may invoke, but for the function URL, which is for everybody", () => {
    for (const [title, plan] of Object.entries(plans))
      for (const { name, inputs } of ofType(plan, "lambda/permission:Permission")) {
        if (name.startsWith("HttpUrl")) {
          assert.equal(title, "AWS behind a function URL");
          assert.ok(inputs.functionUrlAuthType === "NONE" || inputs.invokedViaFunctionUrl === true, name);
          continue;
        }
        assert.equal(inputs.principal, "apigateway.amazonaws.com", name);
        assert.match(String(inputs.sourceArn), /^arn:aws:execute-api:[^:]+:\d{12}:(?:http|sockets)\//, name);
      }
  });
});
