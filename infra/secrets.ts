/**
 * The two secrets of a control plane, kept encrypted by SST and set once before the first deployment (`sst secret set`).
 * Their shape is checked, so that a token that was pasted in place of its digest never reaches an environment (I9).
 */

export type Secrets = ReturnType<typeof createSecrets>;

/** DER's opening bytes of every Ed25519 private key in PKCS#8 (RFC 8410, section 7), in base64: 48 bytes in all. */
const ticketKeyPattern = /^MC4CAQAwBQYDK2VwBCIEI[A-Za-z0-9+/]{43}$/;

export function createSecrets() {
  const adminTokenSha256 = new sst.Secret("AdminTokenSha256");
  const ticketKey = new sst.Secret("TicketKey");
  return {
    /** SHA-256 of the first admin token, in hex. */
    adminTokenSha256: checked(
      adminTokenSha256,
      /^[0-9a-f]{64}$/,
      "AdminTokenSha256 must be the SHA-256 of the admin token: 64 lower-case hex digits, not the token itself.",
    ),
    /** The control key. Hosts pin its public half, so it must never change. */
    ticketKey: checked(
      ticketKey,
      ticketKeyPattern,
      "TicketKey must be an Ed25519 private key: PKCS#8 DER in base64, 64 characters.",
    ),
  };
}

const checked = (secret: sst.Secret, pattern: RegExp, refusal: string) =>
  secret.value.apply((given) => {
    // `sst secret set NAME < FILE` keeps the end of the file's line.
    const value = given.trim();
    if (pattern.test(value)) return value;
    // Never with the value: it may be the secret itself.
    throw new Error(`${refusal} Set it again: npx sst secret set ${refusal.split(" ")[0]} VALUE --stage ${$app.stage}`);
  });
