/** Requests to shut hosts down, in memory; they pass the same cases as DynamoDB's (test/contract/shutdowns.test.ts). */
import { type HostShutdown, roomForShutdown } from "#core/host-shutdown";
import type { ShutdownStore } from "#functions/ports";

const keyOf = ({ hostId, requestId }: Pick<HostShutdown, "hostId" | "requestId">) => `${hostId} ${requestId}`;

export class MemoryShutdowns implements ShutdownStore {
  readonly #shutdowns = new Map<string, HostShutdown>();

  async keep(shutdown: HostShutdown): Promise<HostShutdown[] | null> {
    const known = this.#shutdowns.get(keyOf(shutdown));
    if (known === undefined) {
      const { over, hasRoom } = roomForShutdown(this.#of(shutdown), Date.parse(shutdown.at));
      if (!hasRoom) return null;
      for (const each of over) await this.forget(each);
    }
    const isNews = shutdown.withdrawnAt !== null || known?.doubtedAt !== undefined;
    if (known === undefined || (isNews && known.withdrawnAt === null))
      this.#shutdowns.set(keyOf(shutdown), structuredClone(shutdown));
    return structuredClone(this.#of(shutdown));
  }

  #of({ hostId }: HostShutdown): HostShutdown[] {
    return [...this.#shutdowns.values()].filter((each) => each.hostId === hostId);
  }

  async doubt(hostId: string, at: string): Promise<void> {
    for (const [key, each] of this.#shutdowns)
      if (each.hostId === hostId && each.withdrawnAt === null && each.doubtedAt === undefined)
        this.#shutdowns.set(key, { ...each, doubtedAt: at });
  }

  async list(): Promise<HostShutdown[]> {
    return structuredClone([...this.#shutdowns.values()]);
  }

  async forget(shutdown: Pick<HostShutdown, "hostId" | "requestId">): Promise<void> {
    this.#shutdowns.delete(keyOf(shutdown));
  }
}
