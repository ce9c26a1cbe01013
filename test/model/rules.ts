/** The rules of the real shims (and of the people they ask), each of which can be removed: the checker must then find a broken invariant. */
export interface Rules {
  /** No answer of the peer is no answer (I2). Without: silence after Perform means that the destination has nothing. */
  silenceIsNoAnswer: boolean;
  /** Perform begins only when the destination has kept the ticket (I10 without a control plane). */
  armsFirst: boolean;
  /** The source gives its copy up only by a receipt (I8). Without: when Perform has succeeded, it is given up. */
  confirmsByReceipt: boolean;
  /** What Finish did is read from the domain when its answer is lost (I1). Without: a lost answer means destroyed, as libvirt's own client reads it. */
  looksAfterLostFinish: boolean;
  /** A destination that has booted since it decided to go states nothing of a domain that is off (I1): a person looks. Without:
   *  off means destroyed. */
  strandsAfterBoot: boolean;
  /** libvirt says that the domain has ended by itself: a person is asked (I1, I8). Without: it has run, so it was started. */
  asksAboutOwnEnd: boolean;
  /** A person whom the destination asks looks where the guest ran last, and starts or undefines it there (I10). */
  personLooks: boolean;
  /** A command of a lower epoch is refused (I5). */
  checksEpoch: boolean;
  /** Restoring leaves a domain paused that the migration has paused (I2). Without: it is resumed. */
  restoreLeavesPaused: boolean;
  /** An ended migration leaves a tombstone. Without: a late command begins it again. */
  keepsTombstone: boolean;
  /** How Perform ended is journalled before anybody is told. Without: a crash forgets that it has succeeded. */
  journalsResult: boolean;
  /** The first decision stands, and it is in the journal before Finish is called (I7). Without: the newest wish is carried out and stated. */
  journalsDecision: boolean;
  /** What the destination has stated is in its journal (I7). Without: it looks again each time it is asked. */
  journalsReceipt: boolean;
  /** Intents are journalled before they begin (I6). Without: a command that was cut off is begun anew, as if it had never been. */
  journalsIntent: boolean;
  /** An outgoing copy that runs is never removed (I1, I8). */
  sparesRunning: boolean;
}

export const allRules: Rules = {
  silenceIsNoAnswer: true,
  armsFirst: true,
  confirmsByReceipt: true,
  looksAfterLostFinish: true,
  strandsAfterBoot: true,
  asksAboutOwnEnd: true,
  personLooks: true,
  checksEpoch: true,
  restoreLeavesPaused: true,
  keepsTombstone: true,
  journalsResult: true,
  journalsDecision: true,
  journalsReceipt: true,
  journalsIntent: true,
  sparesRunning: true,
};
