/** Bounds of the HTTP face, each with its unit and its reason. */

/** A request body. The largest real one is a bundle restore of about 1 KiB; 64 KiB leave room and stop nonsense early. */
export const bodyBytesMax = 64 * 1024;

/** An Idempotency-Key: a UUID or a build URL fits; it becomes part of a stored key. */
export const idempotencyKeyCharsMax = 255;

/** How long a check waits for one shim: inspection is a handful of reads, and a person is looking at the terminal. */
export const checkWaitMs = 20_000;

/** How long `domain show` waits for a live snapshot tree before it answers from the inventory. */
export const describeWaitMs = 10_000;

/** Shims asked at once when a check names no destination: their answers pass through one isolate's memory. */
export const checkHostsAtOnce = 8;

/** How long the hosts are asked before a dry run answers with what is known: every domain against many hosts, and a person waits. */
export const planAskMsMax = 60_000;
/** How long the answer to an evacuation's request is held up by asking; what is not known by then is asked by the timer. */
export const evacuationAskMsMax = 10_000;

/** An event stream looks into the store at least this often: the feed may lose a wake-up, the store does not. Also keeps
 *  proxies from closing the stream (their usual idle limit is 60 s). */
export const eventsIdleMs = 5_000;

/** How often a stream of all events looks into the store: a person sees a step begin within about a second, for three requests each time. */
export const eventsPollMs = 1_000;
/** Looks of one such stream, before it ends in good order and is resumed: Cloudflare lets one request make 1,000 others, and a look makes three. */
export const eventsReadsMax = 300;
/** Pages of a long past that such a stream reads in one look: at most 500 lines or 4 MB, for an answer that is given whole may have 6 MB (AWS: Lambda quotas). */
export const eventPagesMax = 5;
/** Lines looked at for one page of events that only few of them fit: ten requests to the store. */
export const eventLinesMax = 1_000;

/** How soon a client asks again where an answer is delivered whole: what happens within this is told in one answer. */
export const longPollRetryMs = 500;

/** Life of a join token when none is asked for, and at most: it enrols hosts, so it should be used at once. */
export const joinTokenMsDefault = 24 * 60 * 60_000;
export const joinTokenMsMax = 30 * 24 * 60 * 60_000;
/** Uses of one join token: a rack's worth of hosts by one script. */
export const joinTokenUsesMax = 1_000;

/** Life of an API token: expiry is mandatory, a year is the longest that people can be trusted to remember. */
export const apiTokenMsDefault = 90 * 24 * 60 * 60_000;
export const apiTokenMsMax = 366 * 24 * 60 * 60_000;

/** Seconds in `Retry-After` when the store does not answer: DynamoDB's throttles pass within this. */
export const retryAfterSeconds = 2;
