/**
 * Every bound of the treaty, with its unit and its reason. Both sides enforce them: a sender so that its peer never has
 * to refuse, a receiver because a sender may be wrong or hostile.
 */

/** Above this a payload goes to the bucket and the message carries a reference: 24 KiB in base64 plus the envelope
 *  still fits one 32 KB frame of API Gateway (AWS: websocket quotas). */
export const inlineBytesMax = 24 * 1024;

/** A whole websocket message as text. API Gateway refuses more than 128 KB (AWS: websocket quotas). */
export const messageBytesMax = 128 * 1024;

/** One websocket frame. API Gateway closes the socket (1009) on a larger one; a longer message is sent in several (AWS: websocket quotas). */
export const frameBytesMax = 32 * 1024;

/** libvirt's own limit of one cookie (remote_protocol.x, REMOTE_MIGRATE_COOKIE_MAX). */
export const cookieBytesMax = 4 * 1024 * 1024;

/** libvirt's own limit of one string, so of one XML (remote_protocol.x, REMOTE_STRING_MAX). */
export const xmlBytesMax = 4 * 1024 * 1024;

/** libvirt's own limit of a snapshot list (remote_protocol.x, REMOTE_DOMAIN_SNAPSHOT_LIST_MAX). */
export const snapshotsMax = 16_384;

/** libvirt's own limit of a checkpoint list (remote_protocol.x, REMOTE_DOMAIN_CHECKPOINT_LIST_MAX). */
export const checkpointsMax = 16_384;

/** A bundle as stored. 16,384 snapshots of 64 KiB XML are 1 GiB plain and compress at least 10 to 1; more is a mistake
 *  or an attack, and one PUT to S3 may carry 5 GiB, so 1 GiB leaves room without parts. */
export const bundleBytesMax = 1024 * 1024 * 1024;

/** A bundle's plain bytes: what a reader is willing to inflate (a bomb stops here). 16,384 snapshots of 1 MiB each. */
export const bundlePlainBytesMax = 16 * 1024 * 1024 * 1024;

/** Domains in one inventory message: 200 entries of about 400 bytes stay below `messageBytesMax`. */
export const inventoryDomainsMax = 200;

/** Open journals that one message names: 200 of 50 bytes. A host moves a handful at once; more would be left over, and those
 *  that are named say so. */
export const journalsMax = 200;

/** Time between two heartbeats of a shim. Liveness is the last heartbeat, so this bounds how late a lost push is repaired. */
export const heartbeatMs = 10_000;

/** Life of a presigned URL: long enough for a bundle over a slow line to *start* (S3 checks at the start), short enough to be worthless when leaked. */
export const grantMsMax = 5 * 60_000;

/** Text of a cause or action: what fits a terminal and a log line. */
export const textCharsMax = 2_000;

/** A name that people give: hosts, domains, snapshots. libvirt's file names end at 255 bytes. */
export const nameCharsMax = 255;
