/**
 * Requests to shut hosts down in DynamoDB: an item each, in one partition that is empty nearly always. `ttl` (epoch seconds) is the broom behind the
 * timer that takes them away.
 *
 * Keys (pk / sk):
 *   SHUTDOWNS / hostId#requestId
 */
import { type HostShutdown, hostShutdownSchema, roomForShutdown } from "#core/host-shutdown";
import type { ShutdownStore } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist } from "./dynamo-table.ts";
import { bodyText, jsonOf } from "./stored-item.ts";

const partition = "SHUTDOWNS";
const keyOf = ({ hostId, requestId }: Pick<HostShutdown, "hostId" | "requestId">) => ({
  pk: partition,
  sk: `${hostId}#${requestId}`,
});
const isNotWithdrawn: Condition = { expression: "attribute_not_exists(withdrawn)" };
/** The broom comes this long after the time is up: clocks differ. */
const ttlSlackMs = 60 * 60_000;

export class DynamoShutdowns implements ShutdownStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async keep(shutdown: HostShutdown): Promise<HostShutdown[] | null> {
    const what = `a shutdown of host ${shutdown.hostId}`;
    const { requestId, withdrawnAt } = shutdown;
    const standing = await this.#of(shutdown.hostId);
    const known = standing.find((each) => each.requestId === requestId);
    const isDoubted = known?.doubtedAt !== undefined;
    if (known !== undefined && (known.withdrawnAt !== null || (withdrawnAt === null && !isDoubted))) return standing;
    if (known === undefined) {
      const { over, hasRoom } = roomForShutdown(standing, Date.parse(shutdown.at));
      if (!hasRoom) return null;
      for (const each of over) await this.forget(each);
    }
    const item = itemOf(what, shutdown);
    // Refused: somebody has said the same, or withdrawn it, between the look and this; the first word on each stands.
    const condition = withdrawnAt === null && !isDoubted ? itemDoesNotExist : isNotWithdrawn;
    await this.#table.put(what, item, condition);
    return this.#of(shutdown.hostId);
  }

  async #of(hostId: string): Promise<HostShutdown[]> {
    const what = `the shutdowns of host ${hostId}`;
    const items = await this.#table.partition(what, partition, `${hostId}#`);
    return items.map((item) => jsonOf(what, hostShutdownSchema, item, "body"));
  }

  async doubt(hostId: string, at: string): Promise<void> {
    const what = `the shutdowns of host ${hostId}`;
    // Refused: it was withdrawn at this moment.
    for (const each of await this.#of(hostId))
      if (each.withdrawnAt === null && each.doubtedAt === undefined)
        await this.#table.put(what, itemOf(what, { ...each, doubtedAt: at }), isNotWithdrawn);
  }

  async list(): Promise<HostShutdown[]> {
    const what = "the shutdowns of hosts";
    return (await this.#table.partition(what, partition, "")).map((item) =>
      jsonOf(what, hostShutdownSchema, item, "body"),
    );
  }

  async forget(shutdown: Pick<HostShutdown, "hostId" | "requestId">): Promise<void> {
    await this.#table.delete(`a shutdown of host ${shutdown.hostId}`, keyOf(shutdown), {
      expression: "attribute_exists(pk) OR attribute_not_exists(pk)",
    });
  }
}

function itemOf(what: string, shutdown: HostShutdown): Item {
  const { pk, sk } = keyOf(shutdown);
  return {
    pk: { S: pk },
    sk: { S: sk },
    body: { S: bodyText(what, shutdown) },
    ttl: { N: String(Math.ceil((Date.parse(shutdown.deadlineAt) + ttlSlackMs) / 1000)) },
    ...(shutdown.withdrawnAt === null ? {} : { withdrawn: { BOOL: true } }),
  };
}
