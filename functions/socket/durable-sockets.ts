/** The host sockets over Durable Objects: each call goes to the object of that host, wherever it runs. */
import type { Answer, DownMessage, Progress, Query } from "#protocol/message";
import type { HostSockets, Log } from "../ports.ts";
import type { HostSocketStub } from "./host-socket.ts";
import { type ObjectNamespace, objectOf } from "./object-namespace.ts";

export class DurableSockets implements HostSockets {
  readonly #namespace: ObjectNamespace<HostSocketStub>;
  readonly #log: Log;

  constructor(namespace: ObjectNamespace<HostSocketStub>, log: Log) {
    this.#namespace = namespace;
    this.#log = log;
  }

  async push(hostId: string, message: DownMessage): Promise<boolean> {
    return this.#ask(hostId, "push", false, (stub) => stub.push(message));
  }

  async query(hostId: string, query: Query, waitMs: number): Promise<Answer | null> {
    return this.#ask(hostId, "query", null, (stub) => stub.query(query, waitMs));
  }

  async progress(hostId: string, migrationId: string): Promise<Progress | null> {
    return this.#ask(hostId, "progress", null, (stub) => stub.progress(migrationId));
  }

  async drop(hostId: string, cause: string): Promise<void> {
    return this.#ask(hostId, "drop", undefined, (stub) => stub.drop(cause));
  }

  /** An object that cannot be reached is like a host that is away: nothing was said, nothing is concluded (I2). */
  async #ask<T>(hostId: string, call: string, away: T, ask: (stub: HostSocketStub) => Promise<T>): Promise<T> {
    try {
      return await ask(objectOf(this.#namespace, hostId));
    } catch (error) {
      this.#log.write("warn", "a host's socket object could not be reached", {
        host: hostId,
        call,
        error: String(error),
      });
      return away;
    }
  }
}
