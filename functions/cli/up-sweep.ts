/**
 * The broom of the embedded store. DynamoDB itself removes items that are past their `ttl`; dynalite does not, and the chronicle alone would grow for ever. A sweep
 * is a few requests, begins at the start and comes again each hour; one that fails is made up for by the next.
 */
import { chronicleKeptMs } from "#core/limits";
import { ids } from "../entry/runtime-ports.ts";
import { DynamoChronicle } from "../store/dynamo-chronicle.ts";
import type { DynamoTable } from "../store/dynamo-table.ts";

const sweepEveryMs = 60 * 60_000;
/** Requests of one sweep, of 100 lines each: what an hour of a busy fleet writes is far less. */
const roundsMax = 50;

/** Begins; what is returned ends it. `failed`: told of a sweep that could not be done. */
export function sweepHourly(table: DynamoTable, failed: (error: unknown) => void): () => Promise<void> {
  let isOver = false;
  const chronicle = new DynamoChronicle(table, ids);
  const sweep = async () => {
    for (let round = 0; round < roundsMax && !isOver; round += 1)
      if ((await chronicle.sweep(Date.now() - chronicleKeptMs)) === 0) return;
  };
  let running = sweep().catch(failed);
  const timer = setInterval(() => {
    running = running.then(sweep).catch(failed);
  }, sweepEveryMs);
  return async () => {
    isOver = true;
    clearInterval(timer);
    await running;
  };
}
