/**
 * Says which migrations have a journal open on this host: at each session's begin and once a minute. The functions compare
 * it with their records, so that a journal which nobody will ever close is found (I4). Only said to functions that know it.
 */
import { journalsMax } from "#protocol/limits";
import type { OpenJournal, offeredFeatures, UpMessage } from "#protocol/message";

/** A journal that was left over is as old as the migration's end; a minute finds it soon enough. */
const everyMs = 60_000;

const feature: (typeof offeredFeatures)[number] = "journals.1";

export interface OpenJournalsParts {
  send(message: UpMessage): boolean;
  /** Of the executor: every migration that is not over here. */
  records(): readonly { migrationId: string; epoch: number }[];
}

/** The oldest first: what was left over is older than what is under way. */
export function openJournals(records: ReturnType<OpenJournalsParts["records"]>): OpenJournal[] {
  const journals = records.map(({ migrationId, epoch }) => ({ id: migrationId, epoch }));
  return journals.sort((one, other) => (one.id.slice(2) < other.id.slice(2) ? -1 : 1)).slice(0, journalsMax);
}

/** Starts for one session; returns what ends it. `features` are the welcome's. */
export function sayOpenJournals({ send, records }: OpenJournalsParts, features: readonly string[]): () => void {
  if (!features.includes(feature)) return () => {};
  let saidNone = false;
  const say = () => {
    const migrations = openJournals(records());
    // None, again: nothing new, and nothing hangs on how fresh it is.
    if (migrations.length === 0 && saidNone) return;
    if (send({ type: "journals", migrations })) saidNone = migrations.length === 0;
  };
  say();
  const timer = setInterval(say, everyMs);
  return () => clearInterval(timer);
}
