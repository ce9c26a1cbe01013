/** What both ends of the peer channel bring to TLS, and how the key that the other end has proven is read. */
import { type KeyObject, X509Certificate } from "node:crypto";
import type { TLSSocket } from "node:tls";
import { certificatePem } from "./certificate.ts";
import { publicKeyOf } from "./seal.ts";

/** As node's tls takes it. */
export interface PeerCredentials {
  /** PEM. */
  key: string;
  /** PEM. */
  cert: string;
  minVersion: "TLSv1.3";
  maxVersion: "TLSv1.3";
}

/** Of a private Ed25519 key. */
export const peerCredentials = (key: KeyObject): PeerCredentials => ({
  key: key.export({ type: "pkcs8", format: "pem" }).toString(),
  cert: certificatePem(key),
  minVersion: "TLSv1.3",
  maxVersion: "TLSv1.3",
});

/** The Ed25519 key (raw, base64url) whose possession the other end proved in the handshake, which signs over it in TLS 1.3
 *  (RFC 8446, 4.4.3); null for no certificate and for one of another kind. Only after the handshake. */
export function provenKey(socket: TLSSocket): string | null {
  const certificate = socket.getPeerX509Certificate();
  if (!(certificate instanceof X509Certificate)) return null;
  try {
    return publicKeyOf(certificate.publicKey);
  } catch {
    // Another kind of key, or one that OpenSSL cannot read.
    return null;
  }
}
