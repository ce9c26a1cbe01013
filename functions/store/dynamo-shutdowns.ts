/**
 * Requests to shut hosts down in DynamoDB: an item each, in one partition that is empty nearly always. `ttl` (epoch seconds) is the broom behind the
 * timer that takes them away.
 *
 * Keys (pk / sk):
 *   SHUTDOWNS / hostId#requestId
 */
import { type HostShutdown, hostShutdownSchema, roomForShutdown } from "#core/host-shutdown";
import type { ShutdownStore } from "../ports.ts";
import { type DynamoTable, type Item, itemDoesNotExist } from "./dynamo-table.ts";
import { bodyText, jsonOf } from "./stored-item.ts";

const partition = "SHUTDOWNS";
const keyOf = ({ hostId, requestId }: Pick<HostShutdown, "hostId" | "requestId">) => ({
  pk: partition,
  sk: `${hostId}#${requestId}`,
});
/** The broom comes this long after the time is up: clocks differ. */
const ttlSlackMs = 60 * 60_000;

export class DynamoShutdowns implements ShutdownStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async keep(shutdown: HostShutdown): Promise<"new" | "known" | "tooMany"> {
    const what = `a shutdown of host ${shutdown.hostId}`;
    const item = itemOf(what, shutdown);
    const items = await this.#table.partition(what, partition, `${shutdown.hostId}#`);
    const isKnown = items.some((each) => each.sk?.S === item.sk?.S);
    if (isKnown && shutdown.withdrawnAt === null) return "known";
    if (!isKnown) {
      const standing = items.map((each) => jsonOf(what, hostShutdownSchema, each, "body"));
      const { over, hasRoom } = roomForShutdown(standing, Date.parse(shutdown.at));
      if (!hasRoom) return "tooMany";
      for (const each of over) await this.forget(each);
    }
    if (!isKnown && (await this.#table.put(what, item, itemDoesNotExist)) === "written") return "new";
    if (shutdown.withdrawnAt === null) return "known";
    // Once withdrawn, the first word on when stands. Refused: it was withdrawn before, perhaps by our own first attempt.
    await this.#table.put(what, item, { expression: "attribute_not_exists(withdrawn)" });
    return "known";
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
