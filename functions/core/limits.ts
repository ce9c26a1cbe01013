/** Bounds of the decisions, each with its unit and its reason. */

/** A step before Perform that has not reported by then is given up and rolled back: nothing was moved yet, so giving up
 *  costs only the attempt. Staging 16,384 snapshots takes about 20 s; ten minutes cover a slow bucket and a short outage. */
export const stepMsMax = 10 * 60_000;

/** Inspecting is a handful of reads; a shim that takes longer is not able to migrate anything now. */
export const inspectMsMax = 60_000;

/** After Perform nothing is given up; a side that stays silent for this long makes the migration `stranded` so that a
 *  person learns of it. Its commands stay pending and a later report still moves it on (I10). */
export const strandedAfterMs = 15 * 60_000;

/** A host that is away for this long while a step after Perform waits for it: the guest may be standing still, so a person is told
 *  soon. Longer than a restart of a shim or of its daemon; nothing is given up by telling. */
export const awayMsMax = 60_000;

/** Rounds of load -> transition -> commit before a conflict is given back to the caller: each conflict means that another
 *  writer made progress, and at most two shims, a timer and a person write to one migration. */
export const commitAttemptsMax = 8;

/** Until when a ticket may be armed: it is armed seconds after Prepare. Longer than the clocks of well-kept hosts disagree. */
export const ticketMsMax = 15 * 60_000;

/** Tries of a sweep that keeps failing on a host that has come back; each follows a heartbeat. Then a person is told. */
export const sweepAttemptsMax = 30;

/** Entries of a timeline and characters of one: a migration makes about 25, and a stuck one must not grow its item beyond
 *  DynamoDB's 400 KB. 150 * 300 characters of at most 4 bytes are 180 KB. */
export const timelineEntriesMax = 150;
export const noteCharsMax = 300;

/** Findings kept of one migration and characters of each text: 60 * 2 * 300 characters of at most 4 bytes are 144 KB. The
 *  first of every code is always among them. */
export const findingsMax = 60;
export const findingCharsMax = 300;

/** A request is started within seconds; one without a lock after this long died on the way. */
export const startMsMax = 60_000;

/** Longest pause between two tries of a step that keeps failing. The first tries follow each minute's timer. */
export const retryMsMax = 15 * 60_000;

/** Accepted risk codes of one request. */
export const acceptMax = 20;

/** One person's migrations and lists: rows per page. */
export const pageRowsMax = 200;

/** From the moment in which a line is given its place to the last in which it is sent: three tries, or a stand in line before the embedded store. */
export const chronicleAppendMsMax = 10_000;

/**
 * What is older than this has been joined by all before it: a line reaches its table within `chronicleAppendMsMax` or not at all, an index of DynamoDB follows
 * its table within about a second, and writers' clocks differ by less than the rest.
 */
export const chronicleSettleMs = 15_000;

/** How long a line of the chronicle is kept: a year and the month in which somebody looks back at it. */
export const chronicleKeptMs = 400 * 24 * 60 * 60_000;

/** Lines of the chronicle in one reading: at 8 KiB each less than the 1 MiB that DynamoDB reads at once. */
export const chronicleRowsMax = 100;
