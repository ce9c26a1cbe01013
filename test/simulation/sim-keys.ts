/** Keys of simulated hosts and of the control plane: the same in every run, so that every signature is. */
import { createPrivateKey, type KeyObject } from "node:crypto";
import { publicKeyOf, signText } from "#shim/peer/seal";
import type { Seal } from "#shim/ports";
import { type SideName, sides } from "./fault-plan.ts";

/** PKCS#8 of an Ed25519 key before its 32 bytes (RFC 8410). */
const pkcs8Head = Buffer.from("302e020100300506032b657004220420", "hex");

const keyOf = (byte: number): KeyObject =>
  createPrivateKey({ key: Buffer.concat([pkcs8Head, Buffer.alloc(32, byte)]), format: "der", type: "pkcs8" });

const keys = { source: keyOf(1), destination: keyOf(2), control: keyOf(3) };
const publicKeys = {
  source: publicKeyOf(keys.source),
  destination: publicKeyOf(keys.destination),
  control: publicKeyOf(keys.control),
};

export const hosts = {
  source: { id: "h_01JD000000000000000000000A", name: "alpha", publicKey: publicKeys.source },
  destination: { id: "h_01JD000000000000000000000B", name: "beta", publicKey: publicKeys.destination },
} as const;

export const sideOf = (hostId: string): SideName => sides.find((side) => hosts[side].id === hostId) ?? "source";

/** Signatures are deterministic (RFC 8032) and cost more than all the rest of a run, so each is made once. */
const signed = new Map<string, string>();

const sign = (who: keyof typeof keys, text: string): string => {
  const at = `${who}\n${text}`;
  const known = signed.get(at);
  if (known !== undefined) return known;
  const signature = signText(keys[who], text);
  if (signed.size > 20_000) signed.clear();
  signed.set(at, signature);
  return signature;
};

export const sealOf = (side: SideName): Seal => ({
  hostId: hosts[side].id,
  publicKey: publicKeys[side],
  bootId: "boot 1",
  sign: (text) => sign(side, text),
  controlKey: () => publicKeys.control,
  peerAddress: () => ({ hosts: [hosts[side].name], port: 16_515 }),
});

export const ticketSigner = {
  publicKey: async () => publicKeys.control,
  sign: async (text: string) => sign("control", text),
};
