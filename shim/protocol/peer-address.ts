/** Where a shim's peer channel listens. */
import * as z from "zod/mini";

/** Ways to one shim, the likeliest first: all are tried, and only the one that proves the right key counts. */
export const peerAddressSchema = z.object({
  hosts: z.array(z.string().check(z.minLength(1), z.maxLength(255))).check(z.minLength(1), z.maxLength(16)),
  port: z.int().check(z.minimum(1), z.maximum(65_535)),
});
export type PeerAddress = z.infer<typeof peerAddressSchema>;
