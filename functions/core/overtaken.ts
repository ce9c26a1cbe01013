/**
 * A host that says that it has finished with a migration, while its record waits for that very host, is right: hosts forget a migration when their
 * last report of it is stored, so the record is older than what happened. That is a table put back from a backup. Nothing is asked of such a
 * host again; what is left of the way is asked of the other, whose journal says how it ended (I7), and then the domain is free.
 *
 * The destination's last step comes after the source's, so a destination that has forgotten means that all is over. Before Perform the source is
 * asked all the same, so that no host's word alone leaves another with what it holds.
 */
import type { Side } from "#protocol/command";
import { change, type Draft, end, enter, fail, failureOf, note } from "./draft.ts";
import { restoreSource, rolledBack, settleDestination, undoDestination } from "./retreat.ts";

/** What follows when the host of that side has forgotten the migration. */
export function overtaken(draft: Draft, side: Side): Draft {
  const { step, touched, flags, failure, receipt } = draft.state;
  const noted = note(draft, {
    side,
    note: `${draft.state[side].name} has finished with this migration already: this record is older than that`,
  });
  if (step === "settling") return end(change(noted, { failure: null }), "completed", "completed before this record");
  // Turned round in this record already: what was left to do is done.
  if (step === "unstaging" && failure?.code !== code) return rolledBack(noted);
  // The source has its word as well, where it may still hold something of the way there: one that is done says that it has forgotten.
  if (side === "destination" && (step === "staging" || step === "preparing"))
    return enter(change(blamed(noted), { epoch: noted.state.epoch + 1 }), "restoring", "restore");
  if (side === "destination") return over(noted);
  switch (step) {
    case "confirming":
      return settleDestination(noted);
    case "abortingConfirm":
      return restoreSource(noted);
    case "restoring":
      return undoDestination(noted);
    default: {
      if (receipt?.outcome === "started") return settleDestination(noted);
      const turned = change(blamed(noted), { epoch: noted.state.epoch + 1 });
      if (receipt?.outcome === "destroyed") return undoDestination(turned);
      // Asked by the kind of command that this record has all for; an active domain is touched by neither (I8).
      if (touched.prepared && flags !== null) return enter(turned, "abortingFinish", "finish");
      return touched.staged ? enter(turned, "unstaging", "unstage") : over(noted);
    }
  }
}

const code = "epoch.stale";

const blamed = (draft: Draft): Draft =>
  fail(
    draft,
    failureOf(
      {
        code,
        cause:
          "The hosts have finished with this migration; its record is older than that, as after a table was put back from a backup.",
        action: "Nothing was touched. See where the domain is: vmferry domains, vmferry drift.",
        retry: "never",
      },
      draft.state.step,
      null,
    ),
  );

/** How it ended is not in the record any more; the hosts know where the domain is. */
const over = (draft: Draft): Draft =>
  end(blamed(draft), "stranded", "over on the hosts; how it ended is not in this record");
