/** Each minute: finds what is overdue and carries on what a function left unfinished. */
import { accountId, createFunction, type FunctionInput, named } from "./function.ts";
import { connectionUse, invocation, objectSweep, policyOf, tableUse, trustOf } from "./permissions.ts";
import type { Sockets } from "./sockets.ts";

type Input = Pick<FunctionInput, "stage" | "storage" | "secrets"> & { sockets: Sockets };
export type Timer = ReturnType<typeof createTimer>;

export function createTimer({ stage, storage, secrets, sockets }: Input) {
  const handler = createFunction({
    kind: "timer",
    stage,
    storage,
    secrets,
    sockets,
    statements: $resolve({ ...storage.arns, stage: sockets.stageArn }).apply((arns) => [
      ...tableUse(arns.table),
      ...objectSweep(arns.bucket),
      ...connectionUse(arns.stage),
    ]),
  });
  const role = new aws.iam.Role("ScheduleRole", {
    name: named("schedule"),
    description: "vmferry: lets the schedule call the timer",
    assumeRolePolicy: accountId().apply((account) => trustOf("scheduler.amazonaws.com", account)),
  });
  const policy = new aws.iam.RolePolicy("SchedulePolicy", {
    role: role.name,
    name: "vmferry",
    policy: handler.arn.apply((arn) => policyOf(invocation(arn))),
  });
  new aws.scheduler.Schedule(
    "EachMinute",
    {
      name: named("timer"),
      description: "vmferry: the timer, each minute",
      scheduleExpression: "rate(1 minute)",
      flexibleTimeWindow: { mode: "OFF" },
      target: {
        arn: handler.arn,
        roleArn: role.arn,
        // A minute that was missed is made up for by the next one.
        retryPolicy: { maximumRetryAttempts: 0, maximumEventAgeInSeconds: 60 },
      },
    },
    { dependsOn: [policy] },
  );
  return { handler };
}
