/** Requests to shut hosts down, in memory; they pass the same cases as DynamoDB's (test/contract/shutdowns.test.ts). */
import { type HostShutdown, roomForShutdown } from "#core/host-shutdown";
import type { ShutdownStore } from "#functions/ports";

const keyOf = ({ hostId, requestId }: Pick<HostShutdown, "hostId" | "requestId">) => `${hostId} ${requestId}`;

export class MemoryShutdowns implements ShutdownStore {
  readonly #shutdowns = new Map<string, HostShutdown>();

  async keep(shutdown: HostShutdown): Promise<"new" | "known" | "tooMany"> {
    const standing = this.#shutdowns.get(keyOf(shutdown));
    if (standing !== undefined) {
      if (shutdown.withdrawnAt !== null && standing.withdrawnAt === null)
        this.#shutdowns.set(keyOf(shutdown), structuredClone(shutdown));
      return "known";
    }
    const ofHost = [...this.#shutdowns.values()].filter(({ hostId }) => hostId === shutdown.hostId);
    const { over, hasRoom } = roomForShutdown(ofHost, Date.parse(shutdown.at));
    if (!hasRoom) return "tooMany";
    for (const each of over) await this.forget(each);
    this.#shutdowns.set(keyOf(shutdown), structuredClone(shutdown));
    return "new";
  }

  async list(): Promise<HostShutdown[]> {
    return structuredClone([...this.#shutdowns.values()]);
  }

  async forget(shutdown: Pick<HostShutdown, "hostId" | "requestId">): Promise<void> {
    this.#shutdowns.delete(keyOf(shutdown));
  }
}
