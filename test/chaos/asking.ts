/** What chaos asks of the API: a migration, its end, whether another one would be allowed. A control plane that is away is asked again. */
import { setTimeout as sleep } from "node:timers/promises";
import * as z from "zod/mini";
import { type Migration, migrationSchema } from "../../functions/http/migration-resource.ts";
import { problemSchema } from "../../functions/http/problem.ts";
import type { World } from "../e2e/world.ts";

/** Inventory, hearts and sockets are back within a heartbeat of ten seconds; a lock that is not free by then is not freed. */
const readyMsMax = 60_000;
const pollMs = 100;
/** One answer; a process that is killed while it answers may leave the connection open. */
const answerMsMax = 10_000;

interface Wish {
  domain: string;
  destination: string;
  bandwidthMiBps?: number;
}

/** Asks for a migration until it is taken; returns its id. Throws with the last refusal. */
export async function request(world: World, wish: Wish): Promise<string> {
  let refusal = "no answer";
  for (const untilMs = performance.now() + readyMsMax; performance.now() < untilMs; await sleep(pollMs)) {
    const answer = await post(world, "/v1/migrations", wish);
    if (answer === null) continue;
    if (answer.status === 202) return migrationSchema.parse(answer.value).id;
    const problem = problemSchema.safeParse(answer.value);
    refusal = problem.success ? `${problem.data.code}: ${problem.data.cause}` : `status ${answer.status}`;
  }
  throw new Error(`no migration can be started: ${refusal}`);
}

/** The migration once it has ended; null when it has not after `msMax`, or when it is `hopeless`. */
export async function endOf(
  world: World,
  id: string,
  msMax: number,
  hopeless: () => boolean = () => false,
): Promise<Migration | null> {
  for (const untilMs = performance.now() + msMax; performance.now() < untilMs && !hopeless(); await sleep(pollMs)) {
    const migration = await look(world, id);
    if (migration !== null && migration.status !== "running") return migration;
  }
  return null;
}

/** The migration as it is now; null when nobody can tell. */
export async function look(world: World, id: string): Promise<Migration | null> {
  try {
    const response = await world.ask(`/v1/migrations/${id}`, { signal: AbortSignal.timeout(answerMsMax) });
    return response.status === 200 ? migrationSchema.parse(await response.json()) : null;
  } catch {
    return null;
  }
}

const checkSchema = z.object({
  allowed: z.boolean(),
  blockers: z.array(z.object({ code: z.string(), cause: z.string() })),
});

/** Null as soon as a check allows the migration: no lock is held and no host is away. Else what stands in the way. */
export async function allowedFault(world: World, wish: Wish): Promise<string | null> {
  let blockers = "no answer";
  for (const untilMs = performance.now() + readyMsMax; performance.now() < untilMs; await sleep(pollMs)) {
    const check = checkSchema.safeParse((await post(world, "/v1/checks", wish))?.value);
    if (!check.success) continue;
    if (check.data.allowed) return null;
    blockers = check.data.blockers.map(({ code, cause }) => `${code} ${cause}`).join(", ");
  }
  return `the next migration is not allowed: ${blockers}`;
}

async function post(world: World, path: string, wish: Wish): Promise<{ status: number; value: unknown } | null> {
  try {
    const response = await world.ask(path, {
      method: "POST",
      body: JSON.stringify(wish),
      headers: { "content-type": "application/json" },
      signal: AbortSignal.timeout(answerMsMax),
    });
    return { status: response.status, value: await response.json() };
  } catch {
    return null;
  }
}
