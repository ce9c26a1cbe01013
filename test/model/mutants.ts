/**
 * The model with one rule removed, and the smallest bound that shows it. A checker that finds nothing in these would find
 * nothing in the product.
 */
import { retreat } from "#core/retreat";
import { transition } from "#core/transition";
import { type Exploration, type ExploreOptions, explore } from "./explorer.ts";
import { type Decide, FunctionsSide } from "./functions-side.ts";
import { allRules, type Rules } from "./rules.ts";
import { allFaults, type FaultKind } from "./successors.ts";
import { firstWorld } from "./world.ts";

export interface Mutant {
  name: string;
  removed?: readonly (keyof Rules)[];
  /** The functions with a rule removed. */
  decide?: Decide;
  faults: number;
  kinds?: readonly FaultKind[];
}

/** The functions take a Perform that is silent for long as failed, and go back without asking the destination. */
const givesUpPerform: Decide = (state, event) => {
  if (event.type !== "cancelRequested" || state.step !== "performing") return transition(state, event);
  const next = retreat(
    { state: { ...state, touched: { ...state.touched, prepared: false } }, effects: [], at: event.at },
    { code: "step.overdue", cause: "", action: "", retry: "safe", phase: "performing", side: "source" },
  );
  return { state: next.state, effects: next.effects };
};

/** Going back does not raise the epoch, so that shims cannot tell what was overtaken. */
const turnsWithoutEpoch: Decide = (state, event) => {
  const next = transition(state, event);
  return next.state.epoch > state.epoch ? { ...next, state: { ...next.state, epoch: state.epoch } } : next;
};

/** Each of these breaks an invariant. */
export const mutants: readonly Mutant[] = [
  { name: "silence of the peer means that it has nothing", removed: ["silenceIsNoAnswer"], faults: 0 },
  {
    name: "the source is given up once Perform has succeeded, without a receipt",
    removed: ["confirmsByReceipt"],
    faults: 0,
  },
  { name: "Perform begins without arming the destination", removed: ["armsFirst"], faults: 1 },
  { name: "a lost answer of Finish means destroyed", removed: ["looksAfterLostFinish"], faults: 1 },
  { name: "a destination that has booted says destroyed", removed: ["strandsAfterBoot"], faults: 1 },
  {
    name: "a copy that ended by itself counts as started",
    removed: ["asksAboutOwnEnd"],
    faults: 2,
    kinds: ["incomingDies", "crashDestination"],
  },
  {
    name: "nobody looks at a destination that cannot know",
    removed: ["personLooks"],
    faults: 1,
    kinds: ["powerDestination", "endsAtFinish"],
  },
  { name: "what the destination has stated is not journalled", removed: ["journalsReceipt"], faults: 1 },
  { name: "a command of a lower epoch is carried out", removed: ["checksEpoch"], faults: 1 },
  { name: "an ended migration leaves no tombstone", removed: ["keepsTombstone"], faults: 1 },
  { name: "a command that was cut off is begun anew", removed: ["journalsIntent"], faults: 1 },
  { name: "Perform's success is not journalled", removed: ["journalsResult"], faults: 1 },
  { name: "the functions give up a Perform and ask nobody", decide: givesUpPerform, faults: 1 },
  { name: "turning round does not raise the epoch", decide: turnsWithoutEpoch, faults: 1 },
];

/** Alone these break nothing within the bounds: another rule stands behind each. */
export const backedUp: readonly Mutant[] = [
  { name: "restoring resumes what the migration has paused", removed: ["restoreLeavesPaused"], faults: 1 },
  { name: "the newest decision stands, not the first", removed: ["journalsDecision"], faults: 1 },
  { name: "a source that runs is removed all the same", removed: ["sparesRunning"], faults: 1 },
];

export interface Bound {
  faults: number;
  kinds?: readonly FaultKind[];
  /** Above this many states the exploration is cut. */
  statesMax: number;
}

export function check(bound: Bound, mutant?: Mutant, onLevel?: ExploreOptions["onLevel"]): Exploration {
  const functions = new FunctionsSide(mutant?.decide);
  const rules: Rules = { ...allRules, ...Object.fromEntries((mutant?.removed ?? []).map((rule) => [rule, false])) };
  const model = { functions, rules, faults: new Set(bound.kinds ?? mutant?.kinds ?? allFaults) };
  const options = { statesMax: bound.statesMax, ...(onLevel === undefined ? {} : { onLevel }) };
  return explore(firstWorld(functions.begin(), bound.faults), model, options);
}

/** As lines for a terminal. */
export function tale({ violation }: Exploration): string {
  if (violation === null) return "no invariant is broken, and an end can be reached from every state";
  const story = violation.story.map((line, index) => `  ${index + 1}. ${line}`);
  return [`VIOLATION of ${violation.rule}`, ...story].join("\n");
}
