/**
 * Whether the proof that came with a request for a websocket holds: the host is enrolled, the signature is of its key, and it
 * was made lately by the control plane's own clock. Whether its nonce was used before is the caller's to ask, of a store; the
 * door asks the rest alone, so that a shim whose socket was refused without a word learns why.
 */
import type { FaultBody } from "#protocol/fault";
import { type ConnectProof, connectMsMax, connectSignedText, parseConnectProof } from "#protocol/identity";
import type { HostRecord, Ports } from "./ports.ts";
import { enrolAgain, proves } from "./session.ts";

export type CheckedProof = { ok: true; host: HostRecord; proof: ConnectProof } | { ok: false; fault: FaultBody };

const refused = (cause: string, action: string, retry: FaultBody["retry"] = "person"): CheckedProof => ({
  ok: false,
  fault: { code: "shim.unauthorised", cause, action, retry },
});

/**
 * Checks the text of the header `connectHeader`; undefined or null: it was not sent. `hostId` is whom the request itself names,
 * where it names somebody; `socket` is the address that the door tells. Never throws for what a caller sent; a store that fails throws as it does.
 */
export async function checkConnectProof(
  { hosts, clock, socket }: { hosts: Pick<Ports["hosts"], "byId">; clock: Ports["clock"]; socket: string },
  header: string | null | undefined,
  hostId?: string | null,
): Promise<CheckedProof> {
  if (header === undefined || header === null || header === "")
    return refused("The request for the socket brings no proof of a host.", "Update the shim.");
  const proof = parseConnectProof(header);
  if (proof === null) return refused("The proof in the request for the socket is malformed.", "Update the shim.");
  if (hostId !== undefined && hostId !== null && hostId !== proof.hostId)
    return refused("The proof is of another host than the request names.", "Update the shim.");
  const offMs = Date.parse(clock.now()) - proof.atMs;
  if (Math.abs(offMs) > connectMsMax)
    return refused(
      `The proof was made ${Math.round(Math.abs(offMs) / 1000)} s ${offMs > 0 ? "ago" : "in the future"}; it holds for ${connectMsMax / 1000} s.`,
      "The shim asks the door for the time and tries again by itself.",
      "safe",
    );
  const host = await hosts.byId(proof.hostId);
  if (host === null) return refused("This host is not enrolled here, or was removed.", enrolAgain);
  if (!(await proves(host.publicKey, connectSignedText({ ...proof, socket }), proof.signature)))
    return refused(
      "The signature is not of the key that this host enrolled with, or was made for another address.",
      enrolAgain,
    );
  return { ok: true, host, proof };
}
