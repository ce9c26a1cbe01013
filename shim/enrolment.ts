/**
 * Who this host is: an Ed25519 key that is made here and never leaves, and the id that the control plane gave for its
 * public half against a join token. The token is used once and kept nowhere (I9). An enrolment whose answer was lost is
 * repeated with the same key, and finds its host again.
 */
import { createPrivateKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import { Fault, faultCodes } from "#protocol/fault";
import { type ConnectClaim, connectSignedText, enrolmentPath, helloSignedText, hostIdSchema } from "#protocol/identity";
import { publicKeySchema } from "#protocol/signed";
import { replaceFile } from "./durable-file.ts";
import { HttpBrokenError, httpCall, readText } from "./http-request.ts";
import { publicKeyOf } from "./peer/seal.ts";

/** `controlKey` is absent in what a shim or a control plane of before tickets has written; the first welcome that names one is kept. */
const enrolledSchema = z.object({ hostId: hostIdSchema, name: nameSchema, controlKey: z.optional(publicKeySchema) });
const hostSchema = z.object({ ...enrolledSchema.shape, url: z.string() });
const problemSchema = z.object({ code: z.enum(faultCodes), cause: z.string(), action: z.string() });

/** An answer of a few hundred bytes is expected; a proxy's error page may be longer. */
const answerBytesMax = 64 * 1024;
const silenceMs = 15_000;

export class Identity {
  readonly hostId: string;
  readonly name: string;
  /** The public half of `key`: raw 32 bytes, base64url. */
  readonly publicKey: string;
  readonly #key: KeyObject;
  readonly #hostPath: string;
  #host: z.infer<typeof hostSchema>;
  #pinning: Promise<unknown> = Promise.resolve();

  /** Use `identify`. `host` is what stands in `hostPath`. */
  constructor(hostPath: string, host: z.infer<typeof hostSchema>, key: KeyObject) {
    this.hostId = host.hostId;
    this.name = host.name;
    this.publicKey = publicKeyOf(key);
    this.#key = key;
    this.#hostPath = hostPath;
    this.#host = host;
  }

  /** The host's private key, for the peer channel's proofs. It never leaves this process. */
  get key(): KeyObject {
    return this.#key;
  }

  /** The one key whose tickets this host obeys; null until a control plane named one. */
  get controlKey(): string | null {
    return this.#host.controlKey ?? null;
  }

  /**
   * Keeps the first control key that a welcome names, on disk before it counts. Throws `Fault` `ticket.refused` for any
   * other than the one that is kept: whoever could replace it could sign tickets.
   */
  pinControlKey(key: string): Promise<void> {
    const pinned = this.#pinning.then(async () => {
      if (this.controlKey === key) return;
      if (this.controlKey !== null) throw this.#otherControlKey(key);
      const host = { ...this.#host, controlKey: key };
      await replaceFile(this.#hostPath, `${JSON.stringify(host)}\n`);
      this.#host = host;
    });
    // One at a time; the caller of this one is told, the next one is judged on its own.
    this.#pinning = pinned.catch(() => {});
    return pinned;
  }

  #otherControlKey(key: string): Fault {
    return new Fault({
      code: "ticket.refused",
      cause: `The control plane signs with another key (${key}) than the one that this host keeps since its enrolment (${this.controlKey}); its tickets are refused, so no migration of this host can perform.`,
      action: `Restore the control plane's ticket-key (in the data folder of \`vmferry up\`) from a backup and restart it. If the key is lost: end this host's migrations, \`vmferry host remove ${this.name}\`, empty the shim's state directory and enrol again.`,
      retry: "person",
    });
  }

  /** The signature of a hello over the challenge's nonce, base64url. */
  sign(nonce: string): string {
    const text = helloSignedText({ hostId: this.hostId, nonce });
    return sign(null, Buffer.from(text, "utf8"), this.#key).toString("base64url");
  }

  /** The signature of a connect proof, base64url. */
  signConnect(claim: ConnectClaim): string {
    return sign(null, Buffer.from(connectSignedText(claim), "utf8"), this.#key).toString("base64url");
  }
}

export interface Enrolment {
  stateDirectory: string;
  origin: URL;
  joinToken: string | undefined;
  name: string;
}

/** The identity on disk, or a new one by the join token. Throws `Fault` `token.invalid`, `host.nameTaken`, ... */
export async function identify(enrolment: Enrolment): Promise<Identity> {
  const { stateDirectory, joinToken } = enrolment;
  const hostPath = join(stateDirectory, "host.json");
  const keyPath = join(stateDirectory, "host-key.pem");
  const text = await readIfThere(hostPath);
  if (text !== null) {
    const host = parseHost(hostPath, text);
    const key = await readIfThere(keyPath);
    if (key === null)
      throw damaged(keyPath, "it is gone, so this host cannot prove that it is the one that was enrolled");
    return new Identity(hostPath, host, parseKey(keyPath, key));
  }
  if (joinToken === undefined)
    throw new Fault({
      code: "token.invalid",
      cause: `This host is not enrolled: there is no ${hostPath}.`,
      action: "Make a join token with `vmferry join-token create`, then start the shim with --join TOKEN once.",
      retry: "person",
    });
  const key = await keyOnDisk(keyPath);
  const enrolled = await enrol({ ...enrolment, joinToken }, key);
  const host = { ...enrolled, url: enrolment.origin.origin };
  await replaceFile(hostPath, `${JSON.stringify(host)}\n`);
  return new Identity(hostPath, host, key);
}

async function keyOnDisk(path: string): Promise<KeyObject> {
  const text = await readIfThere(path);
  if (text !== null) return parseKey(path, text);
  const { privateKey } = generateKeyPairSync("ed25519");
  await replaceFile(path, privateKey.export({ type: "pkcs8", format: "pem" }).toString());
  return privateKey;
}

async function enrol(
  { origin, joinToken, name }: Enrolment & { joinToken: string },
  key: KeyObject,
): Promise<z.infer<typeof enrolledSchema>> {
  const body = Buffer.from(JSON.stringify({ token: joinToken, name, publicKey: publicKeyOf(key) }), "utf8");
  let status: number;
  let text: string;
  try {
    const answer = await httpCall({
      method: "POST",
      url: new URL(enrolmentPath, origin),
      headers: { "content-type": "application/json", accept: "application/json" },
      body: { bytes: body.byteLength, stream: Readable.from([body], { objectMode: false }) },
      silenceMs,
    });
    status = answer.status;
    text = await readText(answer.body, answerBytesMax);
  } catch (error) {
    if (!(error instanceof HttpBrokenError)) throw error;
    throw new Fault(
      {
        code: "host.offline",
        cause: `The control plane at ${origin.origin} could not be reached: ${error.message}.`,
        action: "Look at --url and at the way there, then start the shim again with the same token.",
        retry: "safe",
      },
      { cause: error },
    );
  }
  const value = parseJson(text);
  const enrolled = enrolledSchema.safeParse(value);
  if (status === 201 && enrolled.success) return enrolled.data;
  const problem = problemSchema.safeParse(value);
  if (problem.success) throw new Fault({ ...problem.data, retry: "person" });
  throw new Fault({
    code: "request.malformed",
    cause: `The control plane at ${origin.origin} answered the enrolment with HTTP ${status} and nothing that a shim understands.`,
    action: "Look whether --url leads to a vmferry control plane (GET /healthz) of this version.",
    retry: "person",
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function parseHost(path: string, text: string): z.infer<typeof hostSchema> {
  const result = hostSchema.safeParse(parseJson(text));
  if (!result.success) throw damaged(path, "it does not name a host");
  return result.data;
}

function parseKey(path: string, text: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(text);
  } catch (error) {
    throw damaged(path, "it holds no private key", error);
  }
  if (key.asymmetricKeyType !== "ed25519") throw damaged(path, "its key is not of the kind Ed25519");
  return key;
}

const damaged = (path: string, why: string, cause?: unknown) =>
  new Fault(
    {
      code: "shim.unauthorised",
      cause: `The file ${path} cannot be used: ${why}.`,
      action:
        "Restore it from a backup; or remove the host (`vmferry host remove`), empty the state directory and enrol again.",
      retry: "person",
    },
    { cause },
  );

async function readIfThere(path: string): Promise<string | null> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw error;
  }
}
