/**
 * The certificate that TLS wants around a shim's Ed25519 key: self-signed, X.509 v3 (RFC 5280) with an Ed25519 key and
 * signature (RFC 8410), written here so that no dependency and no openssl is needed on a host.
 *
 * It states nothing but the key. Names and times are the same for everybody and nobody looks at them: who the other side is
 * follows from the key alone, which enrolment bound to its host, and clocks of two hosts may differ as they like. The same key
 * always gives the same bytes, for Ed25519 signatures have no chance in them.
 */
import { createHash, createPublicKey, type KeyObject, sign } from "node:crypto";

/** ASN.1 tags that are used (X.690). */
const tag = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  oid: 0x06,
  utf8String: 0x0c,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
  /** EXPLICIT [0]: the version of a TBSCertificate. */
  version: 0xa0,
  /** EXPLICIT [3]: its extensions. */
  extensions: 0xa3,
} as const;

/** One DER value: tag, shortest form of the length, content. */
function der(kind: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts);
  return Buffer.concat([Uint8Array.of(kind), derLength(content.byteLength), content]);
}

function derLength(bytes: number): Uint8Array {
  if (bytes < 0x80) return Uint8Array.of(bytes);
  const digits: number[] = [];
  for (let rest = bytes; rest > 0; rest = Math.floor(rest / 256)) digits.unshift(rest % 256);
  return Uint8Array.of(0x80 | digits.length, ...digits);
}

const ascii = (kind: number, text: string): Buffer => der(kind, Buffer.from(text, "ascii"));
/** The first octet of a BIT STRING counts the unused bits of its last one. */
const bitString = (bytes: Uint8Array): Buffer => der(tag.bitString, Uint8Array.of(0), bytes);

/** id-Ed25519, 1.3.101.112; its parameters are absent (RFC 8410, section 3). */
const ed25519 = der(tag.sequence, der(tag.oid, Uint8Array.of(0x2b, 0x65, 0x70)));

/** id-at-commonName, 2.5.4.3. */
const commonName = der(tag.oid, Uint8Array.of(0x55, 0x04, 0x03));
const name = der(
  tag.sequence,
  der(tag.set, der(tag.sequence, commonName, der(tag.utf8String, Buffer.from("vmferry shim", "utf8")))),
);

/** From the beginning of time to "no well-defined expiration date" (RFC 5280, 4.1.2.5). */
const validity = der(tag.sequence, ascii(tag.utcTime, "700101000000Z"), ascii(tag.generalizedTime, "99991231235959Z"));

/** id-ce-basicConstraints, 2.5.29.19, critical, cA false by default: nothing may be signed below this certificate. */
const notAnAuthority = der(
  tag.extensions,
  der(
    tag.sequence,
    der(
      tag.sequence,
      der(tag.oid, Uint8Array.of(0x55, 0x1d, 0x13)),
      der(tag.boolean, Uint8Array.of(0xff)),
      der(tag.octetString, der(tag.sequence)),
    ),
  ),
);

/** The certificate of a private Ed25519 key, DER. */
export function certificateDer(key: KeyObject): Buffer {
  if (key.asymmetricKeyType !== "ed25519" || key.type !== "private")
    throw new TypeError("a private Ed25519 key is needed");
  const publicKeyInfo = createPublicKey(key).export({ type: "spki", format: "der" });
  // Positive, not zero, at most 20 octets (RFC 5280, 4.1.2.2); of the key, so that two keys never share issuer and number.
  const serial = createHash("sha256").update(publicKeyInfo).digest().subarray(0, 16);
  serial[0] = ((serial[0] ?? 0) & 0x3f) | 0x40;
  const stated = der(
    tag.sequence,
    der(tag.version, der(tag.integer, Uint8Array.of(2))),
    der(tag.integer, serial),
    ed25519,
    name,
    validity,
    name,
    publicKeyInfo,
    notAnAuthority,
  );
  return der(tag.sequence, stated, ed25519, bitString(sign(null, stated, key)));
}

/** The same in PEM (RFC 7468), as node's tls takes it. */
export function certificatePem(key: KeyObject): string {
  const lines =
    certificateDer(key)
      .toString("base64")
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}
