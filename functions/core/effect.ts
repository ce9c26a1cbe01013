/** What the runner does after a commit. Effects are imperatives; losing one costs time, never correctness: commands are
 *  redelivered from `pending`, and leftovers are found again by the timer. */
import type { Side } from "#protocol/command";
import type { Pending } from "./state.ts";

export type Effect =
  /** Push a pending command to its host; its body is derived from the state (`command.ts`), so every push is the same (I6). */
  | { type: "send"; pending: Pending }
  /** The bucket's bundle is not what was put there: remove it, so that the next export of the same tree is not taken for
   *  present. Only while the source has never been stripped, so its own tree is the complete one (I3). */
  | { type: "discard"; key: string }
  /** The migration has ended: free the domain's lock and the hosts' pointers, but for the host that still owes a sweep. */
  | { type: "release"; keep: Side | null };
