/**
 * `node test/bench/cloud.ts`: what a migration and a host cost on AWS, and how long a migration takes with warm Lambdas, with Lambdas that are cold
 * each time, and through the Worker, all in turn in each round of one run over the same two hosts and the same guest.
 *
 *   --rounds N   default 5        --idle S   seconds of rest that are counted, default 120        --json   the figures as JSON
 *
 * Counted are the requests that leave the bundles, by what AWS bills: DynamoDB by the units that it says it has consumed, sockets by each 32 KB begun,
 * Lambda by the time of its processes on this machine, which is not AWS's. Prices are list prices of us-east-1 without the free tier.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import * as z from "zod/mini";
import { type Fleet, startFleet } from "#lab/fleet";
import { bootGuest, type Guest } from "#lab/guest";
import { type Lab, startLab } from "#lab/lab";
import { takeBranchingTree } from "#lab/snapshot-tree";
import { look, request } from "../chaos/asking.ts";
import { World } from "../e2e/world.ts";
import { figure, ratio } from "./statistics.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string" }, idle: { type: "string" }, json: { type: "boolean" } },
});
const rounds = Number(values.rounds ?? 5);
const idleSeconds = Number(values.idle ?? 120);
const endMsMax = 180_000;
const program = join(import.meta.dirname, "../e2e/lambda-cloud.ts");
const say = (line: string) => console.error(line);

/** us-east-1, on demand, November 2026; where pages differ, the newer one. */
const prices = {
  dynamodbWriteUnit: 0.625e-6,
  dynamodbReadUnit: 0.125e-6,
  socketMessage: 1e-6,
  socketMinute: 0.25e-6,
  httpRequest: 1e-6,
  lambdaRequest: 0.2e-6,
  /** arm64. */
  lambdaGbSecond: 0.0000133334,
  s3Put: 0.005e-3,
  s3Get: 0.0004e-3,
  schedulerRun: 1e-6,
} as const;
/** As infra/function.ts gives them. */
const memoryGib = { "lambda-http": 1, "lambda-socket": 1, "lambda-timer": 0.5 } as const;
const monthMinutes = 30 * 24 * 60;

const countsSchema = z.object({
  dynamodb: z.object({
    requests: z.record(z.string(), z.number()),
    readUnits: z.number(),
    writeUnits: z.number(),
    sentBytes: z.number(),
    receivedBytes: z.number(),
  }),
  s3: z.record(z.string(), z.number()),
  sockets: z.object({
    messagesIn: z.number(),
    messagesOut: z.number(),
    billed: z.number(),
    bytesIn: z.number(),
    bytesOut: z.number(),
  }),
  functions: z.record(z.string(), z.object({ invocations: z.number(), starts: z.number(), busyMs: z.number() })),
});
type Counts = z.infer<typeof countsSchema>;

/** One flat row of numbers, so that two moments can be taken from each other and be divided. */
type Row = Record<string, number>;

function rowOf(counts: Counts): Row {
  const sum = (record: Record<string, number>) => Object.values(record).reduce((all, each) => all + each, 0);
  const { dynamodb, s3, sockets, functions } = counts;
  const row: Row = {
    dynamodbRequests: sum(dynamodb.requests),
    dynamodbReadUnits: dynamodb.readUnits,
    dynamodbWriteUnits: dynamodb.writeUnits,
    dynamodbBytes: dynamodb.sentBytes + dynamodb.receivedBytes,
    s3Puts: s3.PutObject ?? 0,
    s3Gets: sum(s3) - (s3.PutObject ?? 0),
    socketMessages: sockets.messagesIn + sockets.messagesOut,
    socketBilled: sockets.billed,
    socketBytes: sockets.bytesIn + sockets.bytesOut,
  };
  for (const [name, each] of Object.entries(functions)) {
    row[`${name} invocations`] = each.invocations;
    row[`${name} busyMs`] = each.busyMs;
  }
  return row;
}

const minus = (one: Row, other: Row): Row =>
  Object.fromEntries(Object.entries(one).map(([name, value]) => [name, value - (other[name] ?? 0)]));
const times = (row: Row, factor: number): Row =>
  Object.fromEntries(Object.entries(row).map(([name, value]) => [name, value * factor]));

/** Dollars by service. The connection itself is not in a row: it is billed by the minute. */
function billOf(row: Row): Record<string, number> {
  const at = (name: string) => row[name] ?? 0;
  const lambdas = Object.entries(memoryGib).reduce(
    (all, [name, gib]) =>
      all +
      at(`${name} invocations`) * prices.lambdaRequest +
      (at(`${name} busyMs`) / 1000) * gib * prices.lambdaGbSecond,
    0,
  );
  return {
    DynamoDB: at("dynamodbReadUnits") * prices.dynamodbReadUnit + at("dynamodbWriteUnits") * prices.dynamodbWriteUnit,
    S3: at("s3Puts") * prices.s3Put + at("s3Gets") * prices.s3Get,
    sockets: at("socketBilled") * prices.socketMessage,
    "HTTP API": at("lambda-http invocations") * prices.httpRequest,
    Lambda: lambdas,
  };
}

interface Way {
  name: string;
  program: readonly string[] | null;
  world: World;
  seconds: number[];
}

async function counted({ world }: Way): Promise<Row> {
  const meter = await readFile(join(world.fleet.dir, "data", "meter"), "utf8");
  return rowOf(countsSchema.parse(await (await fetch(meter)).json()));
}

const names = ["Worker", "Lambda, warm", "Lambda, cold each time"] as const;

async function startWays(lab: Lab): Promise<Way[]> {
  const programs = [null, [], ["--cold"]] as const;
  const ways: Way[] = [];
  for (const [index, words] of programs.entries()) {
    const fleet: Fleet = await startFleet({
      hosts: lab.hosts,
      ...(words === null
        ? {}
        : {
            controlPlane: ({ port, data }: { port: number; data: string }) => [
              program,
              ...["--listen", String(port), "--data", data],
              ...words,
            ],
          }),
    });
    ways.push({ name: names[index] ?? "", program: words, world: new World(lab, fleet), seconds: [] });
  }
  return ways;
}

/** The end is asked for once a second, as often as somebody who watches at a terminal makes the functions look. */
const lookMs = 1_000;
/** What hosts say of a domain that has moved comes within this. */
const tellMs = 3_000;

/** Moves the guest once. Returns what it took, without what the hosts would have cost meanwhile; only Lambdas are counted. */
async function move(way: Way, guest: Guest, lab: Lab, idlePerMs: Row = {}): Promise<Row> {
  const from = (await lab.host(0).virsh.domstate(guest.name)) === undefined ? 1 : 0;
  const [source, destination] = [lab.host(from), lab.host(1 - from)];
  await way.world.heardOf(guest.name, [source]);
  const before = way.program === null ? {} : await counted(way);
  const began = performance.now();
  const id = await request(way.world, { domain: guest.uuid, destination: destination.name });
  let migration = await look(way.world, id);
  while (migration === null || migration.endedAt === null) {
    if (performance.now() - began > endMsMax) throw new Error(`${way.name}: ${id} does not end`);
    await sleep(lookMs);
    migration = await look(way.world, id);
  }
  if (migration.status !== "completed")
    throw new Error(`${way.name}: ${migration.status} ${JSON.stringify(migration.error)}`);
  const { createdAt, endedAt } = migration;
  way.seconds.push((Date.parse(endedAt ?? "") - Date.parse(createdAt)) / 1000);
  say(`   ${way.name}: ${way.seconds.at(-1)?.toFixed(2)} s`);
  await sleep(tellMs);
  return way.program === null
    ? {}
    : minus(minus(await counted(way), before), times(idlePerMs, performance.now() - began));
}

const dollars = (value: number) => `$${value.toFixed(4)}`;
const table = (head: readonly string[], rows: readonly (readonly (string | number)[])[]) =>
  [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");

const lab = await startLab({ hosts: 2 });
const ways: Way[] = [];
try {
  const guest = await bootGuest(lab.host(0));
  await takeBranchingTree(lab.host(0), guest);
  ways.push(...(await startWays(lab)));
  const [worker, warm, cold] = ways;
  if (worker === undefined || warm === undefined || cold === undefined) throw new Error("a way is missing");
  for (const way of ways) await move(way, guest, lab);
  for (const way of ways) way.seconds.length = 0;

  say(`idle for ${idleSeconds} s`);
  const restFrom = await counted(warm);
  await sleep(idleSeconds * 1000);
  // Of two hosts; per host and minute.
  const idleRow = minus(await counted(warm), restFrom);
  const perHostMinute = times(idleRow, 60 / idleSeconds / lab.hosts.length);
  const idlePerMs = times(idleRow, 1 / (idleSeconds * 1000));

  const spent: Row[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    say(`round ${round} of ${rounds}`);
    for (const way of ways) {
      const row = await move(way, guest, lab, idlePerMs);
      if (way === warm) spent.push(row);
    }
  }
  const meanRow = times(
    spent.reduce(
      (sum, row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, value + (sum[name] ?? 0)])),
      {},
    ),
    1 / spent.length,
  );
  const perMigration = billOf(meanRow);
  const monthRow = times(perHostMinute, monthMinutes);
  const timerRow = { invocations: monthMinutes };
  const perHostMonth = { ...billOf(monthRow), connection: monthMinutes * prices.socketMinute };
  const total = (bill: Record<string, number>) => Object.values(bill).reduce((sum, each) => sum + each, 0);

  const seconds = Object.fromEntries(ways.map((way) => [way.name, figure(way.seconds)]));
  const against = Object.fromEntries(ways.map((way) => [way.name, ratio(way.seconds, worker.seconds)]));
  if (values.json === true)
    console.log(JSON.stringify({ seconds, against, meanRow, perMigration, perHostMinute, perHostMonth }, null, 2));
  else {
    console.log(
      table(
        ["a migration with 6 snapshots", "rounds", "median", "ratio to the Worker (rounds)"],
        ways.map((way) => {
          const [median, against_] = [seconds[way.name]?.median ?? 0, against[way.name]];
          return [
            way.name,
            way.seconds.length,
            `${median.toFixed(2)} s`,
            `**${against_?.ratio.toFixed(2)}** (${against_?.min.toFixed(2)}–${against_?.max.toFixed(2)})`,
          ];
        }),
      ),
    );
    const count = (row: Row, name: string) => (row[name] ?? 0).toFixed(name.endsWith("Bytes") ? 0 : 1);
    const counts = Object.keys(meanRow).filter((name) => !name.endsWith("busyMs"));
    console.log(
      `\n${table(
        ["counted", "one migration", "one idle host, an hour"],
        counts.map((name) => [name, count(meanRow, name), count(times(perHostMinute, 60), name)]),
      )}`,
    );
    console.log(
      `\n${table(
        ["list price", "1,000 migrations", "one host, a month"],
        [...new Set([...Object.keys(perMigration), ...Object.keys(perHostMonth)])]
          .map((name) => [
            name,
            dollars((perMigration[name as keyof typeof perMigration] ?? 0) * 1000),
            dollars(perHostMonth[name as keyof typeof perHostMonth] ?? 0),
          ])
          .concat([
            ["**together**", `**${dollars(total(perMigration) * 1000)}**`, `**${dollars(total(perHostMonth))}**`],
          ]),
      )}`,
    );
    console.log(
      `\nThe minute's timer is one for all hosts: ${timerRow.invocations} runs a month, ${dollars(
        timerRow.invocations *
          (prices.schedulerRun + prices.lambdaRequest + 0.1 * memoryGib["lambda-timer"] * prices.lambdaGbSecond),
      )} at 100 ms each.`,
    );
  }
} finally {
  await Promise.all(ways.map(({ world }) => world.fleet.stop()));
  await lab.stop();
}
