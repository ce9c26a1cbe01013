/**
 * Says at the pace of the welcome that this host lives, and once a minute how much room it has. The first beat comes at a drawn instant of the first
 * interval: a fleet that has come back at once would else beat at once from then on, some thousand requests to the store in one second of every ten.
 */
import type { HostFacts, UpMessage } from "#protocol/message";
import { canonical } from "./canonical.ts";
import type { Clock } from "./clock.ts";

/** Free memory changes all the time; placement needs it no fresher than this. */
const factsEveryMs = 60_000;

export interface HeartbeatParts {
  send(message: UpMessage): boolean;
  facts(): Promise<HostFacts>;
  clock: Pick<Clock, "random">;
}

/** Starts; returns what ends it. */
export function startHeartbeat({ send, facts, clock }: HeartbeatParts, everyMs: number): () => void {
  let last = "";
  const beatsPerFacts = Math.max(1, Math.round(factsEveryMs / everyMs));
  let beats = Math.floor(clock.random() * beatsPerFacts);
  const beat = () => {
    beats += 1;
    if (beats % beatsPerFacts !== 0) {
      send({ type: "heartbeat" });
      return;
    }
    void facts().then((found) => {
      const changed = canonical(found) !== last;
      if (send(changed ? { type: "heartbeat", facts: found } : { type: "heartbeat" })) last = canonical(found);
    });
  };
  let timer: NodeJS.Timeout = setTimeout(() => {
    beat();
    timer = setInterval(beat, everyMs);
  }, clock.random() * everyMs);
  return () => clearInterval(timer);
}
