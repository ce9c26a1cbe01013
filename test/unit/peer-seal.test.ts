/** Signatures over the texts that shims and functions give each other: what holds, and that nothing else does. */
import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { describe, test } from "node:test";
import fc from "fast-check";
import { publicKeySchema, signatureSchema } from "#protocol/signed";
import { publicKeyOf, signText, verifyText } from "#shim/peer/seal";

const { privateKey, publicKey } = generateKeyPairSync("ed25519");
const raw = publicKeyOf(privateKey);

describe("seal", () => {
  test("the known answer of RFC 8032, 7.1, test 1 verifies", () => {
    const key = Buffer.from("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "hex").toString(
      "base64url",
    );
    const signature = Buffer.from(
      "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
      "hex",
    ).toString("base64url");
    assert.equal(verifyText(key, "", signature), true);
    assert.equal(verifyText(key, " ", signature), false);
  });

  test("both halves of a key name the same public key, in the treaty's form", () => {
    assert.equal(publicKeyOf(publicKey), raw);
    assert.ok(publicKeySchema.safeParse(raw).success);
  });

  test("another kind of key is refused", () => {
    assert.throws(() => publicKeyOf(generateKeyPairSync("x25519").privateKey), TypeError);
  });

  test("holds for the text that was signed and for no other", () => {
    // Well-formed: a lone surrogate has no UTF-8 and becomes U+FFFD like every other.
    const text = fc.string({ unit: "grapheme" });
    fc.assert(
      fc.property(text, text, (signed, other) => {
        const signature = signText(privateKey, signed);
        assert.ok(signatureSchema.safeParse(signature).success);
        assert.equal(verifyText(raw, signed, signature), true);
        assert.equal(verifyText(raw, other, signature), other === signed);
      }),
    );
  });

  test("holds for no other key", () => {
    const other = publicKeyOf(generateKeyPairSync("ed25519").publicKey);
    assert.equal(verifyText(other, "text", signText(privateKey, "text")), false);
  });

  test("a signature has one spelling", () => {
    const signature = signText(privateKey, "text");
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const valid = [...alphabet].filter((last) => verifyText(raw, "text", `${signature.slice(0, -1)}${last}`));
    assert.deepEqual(valid, [signature.at(-1)]);
  });

  test("never throws", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.string(), (key, text, signature) => {
        assert.equal(verifyText(key, text, signature), false);
      }),
    );
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 32, maxLength: 32 }), (bytes) => {
        const key = Buffer.from(bytes).toString("base64url");
        assert.equal(verifyText(key, "text", signText(privateKey, "text")), key === raw);
      }),
    );
  });
});
