/**
 * Where the control plane wants shims to connect, and how they prove themselves there (`doorPath`, identity.ts). Asked before the first dial and
 * again after every dial that came to nothing: addresses change with a deployment, and a socket that was refused in its request tells no
 * cause, while the door does. A control plane of before doors answers 404 and has its socket beside it.
 *
 * Proofs are stamped with the control plane's own clock, carried on by this host's monotonic one: no host's calendar counts.
 */
import { randomBytes } from "node:crypto";
import * as z from "zod/mini";
import { type FaultBody, faultCodes } from "#protocol/fault";
import {
  type ConnectClaim,
  type ConnectProof,
  connectHeader,
  type Door,
  doorPath,
  doorSchema,
  formatConnectProof,
} from "#protocol/identity";
import type { Clock } from "./clock.ts";
import { HttpBrokenError, httpCall, readText } from "./http-request.ts";
import { socketAddress } from "./socket-address.ts";

/** How a socket is opened this time. */
export interface Dial {
  address: URL;
  headers: Readonly<Record<string, string>>;
  /** What the hello signs; null: the control plane's challenge will say. */
  nonce: string | null;
}

export interface DoorParts {
  origin: URL;
  hostId: string;
  /** Signs a connect proof, base64url. */
  signConnect(claim: ConnectClaim): string;
  clock: Pick<Clock, "monotonicMs">;
  signal: AbortSignal;
}

/** The door could not be asked; the next attempt may be luckier. */
export class DoorUnreachableError extends Error {
  override readonly name = "DoorUnreachableError";
}

const problemSchema = z.object({ code: z.enum(faultCodes), cause: z.string(), action: z.string() });

/** A cold function answers within seconds. */
const silenceMs = 15_000;
/** The door's answer has some 100 bytes; a proxy's error page may be longer. */
const answerBytesMax = 64 * 1024;
const nonceBytes = 32;

export class ControlPlaneDoor {
  readonly #parts: DoorParts;
  #known: { door: Door; atMonotonicMs: number } | null = null;

  constructor(parts: DoorParts) {
    this.#parts = parts;
  }

  /** How to dial now. Throws `DoorUnreachableError`, or `Fault` when the door's answer cannot be followed. */
  async dial(): Promise<Dial> {
    const { origin, hostId } = this.#parts;
    this.#known ??= await this.#asked();
    const { door } = this.#known;
    const address = socketAddress(origin, hostId, door.socket);
    if (door.hello === "challenge") return { address, headers: {}, nonce: null };
    const proof = this.#proof(this.#known);
    return { address, headers: { [connectHeader]: formatConnectProof(proof) }, nonce: proof.nonce };
  }

  /** The last dial came to nothing: what is known of the door may be out of date. */
  forget(): void {
    this.#known = null;
  }

  /** Why the door's socket refuses this host, asked with a proof; null when the door has nothing against it or says nothing. Never rejects. */
  async refusal(): Promise<FaultBody | null> {
    try {
      const known = await this.#asked();
      if (known.door.hello === "challenge") return null;
      const answer = await this.#get({ [connectHeader]: formatConnectProof(this.#proof(known)) });
      const problem = problemSchema.safeParse(parsed(answer.text));
      return answer.status === 401 && problem.success ? { ...problem.data, retry: "person" } : null;
    } catch {
      // Not being told a cause is no cause.
      return null;
    }
  }

  #proof({ door, atMonotonicMs }: { door: Door; atMonotonicMs: number }): ConnectProof {
    const { hostId, clock, signConnect } = this.#parts;
    const atMs = Math.round(door.atMs + clock.monotonicMs() - atMonotonicMs);
    const proof = { hostId, atMs, nonce: randomBytes(nonceBytes).toString("base64url") };
    return { ...proof, signature: signConnect({ ...proof, socket: door.socket ?? "" }) };
  }

  async #asked(): Promise<{ door: Door; atMonotonicMs: number }> {
    const { status, text } = await this.#get({});
    const atMonotonicMs = this.#parts.clock.monotonicMs();
    if (status === 404) return { door: { socket: null, hello: "challenge", atMs: 0 }, atMonotonicMs };
    const door = doorSchema.safeParse(parsed(text));
    if (status === 200 && door.success) return { door: door.data, atMonotonicMs };
    throw new DoorUnreachableError(`the control plane answered HTTP ${status} when it was asked where shims connect`);
  }

  async #get(headers: Record<string, string>): Promise<{ status: number; text: string }> {
    const { origin, hostId, signal } = this.#parts;
    const url = new URL(doorPath, origin);
    url.searchParams.set("host", hostId);
    try {
      const accept = { accept: "application/json", ...headers };
      const answer = await httpCall({ method: "GET", url, headers: accept, silenceMs, signal });
      return { status: answer.status, text: await readText(answer.body, answerBytesMax) };
    } catch (error) {
      if (!(error instanceof HttpBrokenError)) throw error;
      throw new DoorUnreachableError(`the control plane could not be reached: ${error.message}`, { cause: error });
    }
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
