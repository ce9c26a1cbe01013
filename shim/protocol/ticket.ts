/**
 * The pre-authorised Finish, and what the two shims say to each other by it. The functions sign a ticket before Perform;
 * both shims keep it; from then on the migration ends by the two of them, however far away the functions are.
 *
 * Signed things travel as the exact text that was signed: whoever verifies first and decodes then never disagrees with the
 * signer about white space or the order of keys. Each kind of text begins with a line of its own, so that no signature
 * can be used for anything else. All keys are Ed25519 (RFC 8032), raw 32 bytes, base64url.
 */
import * as z from "zod/mini";
import { sha256Schema } from "./blob.ts";
import {
  domainRefSchema,
  migrateOptionsSchema,
  migrationIdSchema,
  nameSchema,
  type Receipt,
  receiptSchema,
} from "./command.ts";
import { faultSchema } from "./fault.ts";
import { hostIdSchema } from "./identity.ts";
import { cookieBytesMax } from "./limits.ts";
import { peerAddressSchema } from "./peer-address.ts";
import { publicKeySchema, signedTextSchema } from "./signed.ts";

/** The shim at the other end: where it is, and the key that it must prove. */
export const peerSchema = z.object({
  hostId: hostIdSchema,
  /** For people. */
  name: nameSchema,
  publicKey: publicKeySchema,
  address: peerAddressSchema,
});
export type Peer = z.infer<typeof peerSchema>;

/** What the functions allow: this Finish, of this domain, between these two hosts, for the Prepare that made this cookie B. */
export const ticketSchema = z.object({
  version: z.literal(1),
  migrationId: migrationIdSchema,
  epoch: z.int().check(z.minimum(1)),
  domain: domainRefSchema,
  source: z.object({ hostId: hostIdSchema, publicKey: publicKeySchema }),
  destination: peerSchema,
  options: migrateOptionsSchema,
  flags: z.int(),
  /** Of cookie B: the ticket is worth nothing for another Prepare. */
  cookieSha256: sha256Schema,
  /** Until then it may be armed; an armed one holds until the migration's end, however long Perform takes. */
  expiresAt: z.string(),
});
export type Ticket = z.infer<typeof ticketSchema>;

/** How Perform ended, as the source states it; `failed` asks for the other copy's end. */
export const performResultSchema = z.object({
  migrationId: migrationIdSchema,
  epoch: z.int(),
  ticketSha256: sha256Schema,
  outcome: z.enum(["performed", "failed"]),
  /** Of cookie C; null where Perform failed. */
  cookieSha256: z.nullable(sha256Schema),
});
export type PerformResult = z.infer<typeof performResultSchema>;

const base64Cookie = z
  .string()
  .check(z.maxLength(Math.ceil(cookieBytesMax / 3) * 4), z.regex(/^[A-Za-z0-9+/]*={0,2}$/));

/** From the source's shim to the destination's. */
export const peerRequestSchema = z.discriminatedUnion("type", [
  /** Is there a way, and does the right key answer? Asked by a check, before anything is begun. */
  z.object({ type: z.literal("greet") }),
  /** Keep this ticket, and prove by the answer that this channel carries. */
  z.object({ type: z.literal("arm"), ticket: signedTextSchema }),
  /** Perform has ended: decide, call Finish, and say how it ended. May be repeated; the answer is always the same (I7). */
  z.object({
    type: z.literal("handOver"),
    ticket: signedTextSchema,
    /** JSON of a `PerformResult`, signed by the source over `resultSignedText`. */
    result: signedTextSchema,
    /** Cookie C, standard base64; null where Perform failed. */
    cookie: z.nullable(base64Cookie),
  }),
]);
export type PeerRequest = z.infer<typeof peerRequestSchema>;

export const peerReplySchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("greeted") }),
  z.object({ type: z.literal("armed") }),
  z.object({
    type: z.literal("finished"),
    receipt: receiptSchema,
    /** Cookie D, standard base64; it only carries figures, so its absence is no failure. */
    cookie: z.nullable(base64Cookie),
    /** Why Finish did not start the domain. */
    fault: z.nullable(faultSchema),
  }),
  z.object({ type: z.literal("refused"), fault: faultSchema }),
]);
export type PeerReply = z.infer<typeof peerReplySchema>;

export const ticketSignedText = (text: string): string => `vmferry ticket 1\n${text}`;
export const resultSignedText = (text: string): string => `vmferry result 1\n${text}`;

/** What the destination signs (or the control plane, where a person stated that the destination is fenced). */
export const receiptSignedText = (of: {
  migrationId: string;
  domainUuid: string;
  receipt: Omit<Receipt, "signature">;
}): string =>
  `vmferry receipt 1\n${of.migrationId}\n${of.domainUuid}\n${of.receipt.outcome}\n${of.receipt.evidence}\n${of.receipt.at}`;

/** Commands that a shim makes itself, by its ticket, have names of their own, so no two bodies ever share an id (I6). */
const ticketNames = { ticketFinish: "finish", ticketConfirm: "confirm" } as const;
export type TicketKind = (typeof ticketNames)[keyof typeof ticketNames];

export const ticketCommandId = (migrationId: string, kind: TicketKind, attempt: number): string =>
  `${migrationId}:${kind === "finish" ? "ticketFinish" : "ticketConfirm"}:${attempt}`;

/** What a command made by a ticket does; null for a command of the functions. */
export function ticketKindOf(commandId: string): TicketKind | null {
  const name = commandId.split(":")[1];
  return name === "ticketFinish" || name === "ticketConfirm" ? ticketNames[name] : null;
}
