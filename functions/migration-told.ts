/** Tells the chronicle of a migration's end, for whoever is about to let go of what the timer finds it by. */
import { migrationEnded, migrationStarted, migrationStranded } from "./core/chronicle-migration.ts";
import type { MigrationState } from "./core/state.ts";
import type { Tell } from "./teller.ts";

/** Of one that has ended, or waits for its fenced host. One that ended before it began is told as begun as well: whoever counts what runs sees both. */
export async function tellEnd(tell: Tell, state: MigrationState): Promise<void> {
  if (state.attempts.inspectSource === undefined) await tell(migrationStarted(state));
  await tell(migrationEnded(state) ?? migrationStranded(state));
}
