/** Says at the pace of the welcome that this host lives, and once a minute how much room it has. */
import type { HostFacts, UpMessage } from "#protocol/message";
import { canonical } from "./canonical.ts";

/** Free memory changes all the time; placement needs it no fresher than this. */
const factsEveryMs = 60_000;

export interface HeartbeatParts {
  send(message: UpMessage): boolean;
  facts(): Promise<HostFacts>;
}

/** Starts; returns what ends it. `sent` are the facts of the hello. */
export function startHeartbeat({ send, facts }: HeartbeatParts, everyMs: number): () => void {
  let last = "";
  let beats = 0;
  const beatsPerFacts = Math.max(1, Math.round(factsEveryMs / everyMs));
  const timer = setInterval(() => {
    beats += 1;
    if (beats % beatsPerFacts !== 0) {
      send({ type: "heartbeat" });
      return;
    }
    void facts().then((found) => {
      const changed = canonical(found) !== last;
      if (send(changed ? { type: "heartbeat", facts: found } : { type: "heartbeat" })) last = canonical(found);
    });
  }, everyMs);
  return () => clearInterval(timer);
}
