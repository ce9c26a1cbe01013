/**
 * Errors that the type check must find. If SST's types are ever not found, everything becomes `any`, nothing is wrong any
 * more and the check would pass without having checked; then these lines have nothing to expect and fail.
 */

// @ts-expect-error: the fields of a table are an object.
export const component = (): unknown => new sst.aws.Dynamo("Planted", { fields: 3 });

// @ts-expect-error: the memory of a function is a number.
export const resource = (): unknown => new aws.lambda.Function("Planted", { role: "r", memorySize: "much" });

// @ts-expect-error: a schedule is an object with a cron expression.
export const edge = (): unknown => new cloudflare.WorkersCronTrigger("Planted", { scriptName: "s", schedules: [1] });

// @ts-expect-error: an output is not the value that it will have.
export const output = (): string => aws.getRegionOutput({}).region;
