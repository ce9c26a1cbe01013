/**
 * Whoever was let in and asks for a change is written down before it is done: a change that nobody can be told to have asked for is not made. Only the
 * method and the path are kept; bodies may hold secrets (I9).
 */
import { Fault } from "#protocol/fault";
import { requestReceived } from "../core/chronicle-host.ts";
import type { Ports } from "../ports.ts";

export interface Received {
  method: string;
  /** Without the query. */
  path: string;
  /** Who: a token's name, a rule's trigger. */
  by: string;
  requestId: string;
  admin: boolean;
}

/** Throws `Fault` `store.unreachable`: then nothing is done. */
export async function recordRequest({ chronicle, clock, log }: Ports, received: Received): Promise<void> {
  try {
    await chronicle.append(requestReceived(received, clock.now()));
  } catch (error) {
    if (error instanceof Fault && error.code === "store.unreachable") throw error;
    log.write("error", "a request could not be written down", {
      requestId: received.requestId,
      error: String(error).slice(0, 300),
    });
  }
}
