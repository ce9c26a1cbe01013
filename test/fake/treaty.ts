/** Three parties with keys of their own, for tests of what is signed: the control plane, a source and a destination. */
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import type { CommandOf, Receipt } from "#protocol/command";
import type { SignedText } from "#protocol/signed";
import { type PeerRequest, receiptSignedText, type Ticket, ticketSignedText } from "#protocol/ticket";
import { publicKeyOf, signText } from "#shim/peer/seal";
import type { Peers, Seal } from "#shim/ports";

const key = (): KeyObject => generateKeyPairSync("ed25519").privateKey;
const keys = { control: key(), source: key(), destination: key() };
export const hostIds = {
  source: "h_01JD0000000000000000000001",
  destination: "h_01JD0000000000000000000002",
} as const;

export const sealOf = (side: "source" | "destination"): Seal => ({
  hostId: hostIds[side],
  publicKey: publicKeyOf(keys[side]),
  bootId: "boot 1",
  sign: (text) => signText(keys[side], text),
  controlKey: () => publicKeyOf(keys.control),
  peerAddress: () => ({ hosts: ["127.0.0.1"], port: 16_515 }),
});

/** As the control plane would make it for these two, with whatever a test wants otherwise. */
export function ticketFor(
  command: Pick<CommandOf<"perform">, "migrationId" | "epoch" | "domain" | "options" | "flags" | "cookie">,
  other: Partial<Ticket> = {},
): SignedText {
  const { migrationId, epoch, domain, options, flags, cookie } = command;
  const ticket: Ticket = {
    version: 1,
    migrationId,
    epoch,
    domain,
    source: { hostId: hostIds.source, publicKey: publicKeyOf(keys.source) },
    destination: {
      hostId: hostIds.destination,
      name: "beta",
      publicKey: publicKeyOf(keys.destination),
      address: { hosts: ["127.0.0.1"], port: 16_515 },
    },
    options,
    flags,
    cookieSha256: cookie.sha256,
    expiresAt: "2126-01-01T00:00:00.000Z",
    ...other,
  };
  return signedByControl(JSON.stringify(ticket));
}

export const signedByControl = (text: string): SignedText => ({
  text,
  signature: signText(keys.control, ticketSignedText(text)),
});

/** The receipt with the signature of whoever may give it. */
export function signedReceipt(
  receipt: Omit<Receipt, "signature">,
  of: { migrationId: string; domain: { uuid: string } },
  by: keyof typeof keys = receipt.evidence === "fenced" ? "control" : "destination",
): Receipt {
  const text = receiptSignedText({ migrationId: of.migrationId, domainUuid: of.domain.uuid, receipt });
  return { ...receipt, signature: signText(keys[by], text) };
}

/** A destination that lets itself be armed and has nothing to say after: what follows is the functions' relay. */
export class SilentPeers implements Peers {
  readonly asked: PeerRequest["type"][] = [];

  async ask(_: unknown, request: PeerRequest): ReturnType<Peers["ask"]> {
    this.asked.push(request.type);
    if (request.type === "arm") return { type: "armed" };
    return { type: "refused", fault: { code: "destination.lost", cause: "Gone.", action: "Wait.", retry: "safe" } };
  }

  hold(): () => void {
    return () => {};
  }
}
