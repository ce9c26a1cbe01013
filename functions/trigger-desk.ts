/**
 * Takes a trigger's request: who asks is proved before a byte of the body is understood, and whoever cannot prove it is told the same, after the same work,
 * whether there is such a rule or not. What is let in becomes events and goes to the rule runner.
 */
import { Fault } from "#protocol/fault";
import type { TriggerKind } from "./core/rule.ts";
import { ruleNameSchema } from "./core/rule.ts";
import { credentialsMax, type RuleCredential } from "./core/rule-state.ts";
import { readTrigger } from "./core/trigger-event.ts";
import type { Clock, Log, RuleStore } from "./ports.ts";
import { sha256Hex } from "./rule-book.ts";
import type { RuleRunner, Triggered } from "./rule-runner.ts";
import type { SecretSeal } from "./secret-seal.ts";
import { isSignedBy, isTimely, publicKeyBytes, secretBytes, type TriedKey } from "./trigger-signature.ts";

export interface TriggerRequest {
  rule: string;
  kind: Exclude<TriggerKind, "host-shutdown">;
  header(name: string): string | undefined;
  body: Uint8Array;
  /** Told of a caller who has proved itself and says something that can be read, before it has any effect; what it throws is thrown. */
  proved?(by: string): Promise<void>;
}

/** Nobody's: tried where a rule has fewer credentials, or where there is no rule, so that the work is the same. What they find counts for nothing. */
const nobodysKey = new Uint8Array(32);
const nobodysSealed = `${"A".repeat(16)}.${"A".repeat(86)}`;

export interface TriggerDesk {
  /** Throws `request.unauthorised` (one and the same for all), `request.malformed` (only to who has proved itself). */
  take(request: TriggerRequest): Promise<Triggered>;
}

export function createTriggerDesk(ports: {
  clock: Clock;
  log: Log;
  rules: RuleStore;
  seal: SecretSeal;
  runner: Pick<RuleRunner, "triggered">;
}): TriggerDesk {
  const { clock, log, rules, seal, runner } = ports;

  async function isProved(request: TriggerRequest, credentials: readonly RuleCredential[], nowMs: number) {
    if (request.kind !== "webhook") {
      const [, text = ""] = /^Bearer +([\x21-\x7e]{1,512})$/i.exec(request.header("authorization") ?? "") ?? [];
      const digest = await sha256Hex(text);
      let valid = false;
      for (let slot = 0; slot < credentialsMax; slot += 1) {
        const credential = credentials[slot];
        const value = credential?.kind === "token" ? credential.value : "0".repeat(64);
        if (sameText(digest, value)) valid = true;
      }
      return valid;
    }
    const keys: TriedKey[] = [];
    for (let slot = 0; slot < credentialsMax; slot += 1) {
      const credential = credentials[slot];
      const sealed = credential?.kind === "secret" ? credential : null;
      const opened = await seal.open(sealed?.value ?? nobodysSealed, sealed === null ? "" : placeOf(sealed));
      const secret = opened === null ? null : secretBytes(opened);
      keys.push({ kind: "secret", bytes: secret ?? nobodysKey, counts: secret !== null });
      const publicKey = credential?.kind === "publicKey" ? publicKeyBytes(credential.value) : null;
      keys.push({ kind: "publicKey", bytes: publicKey ?? nobodysKey, counts: publicKey !== null });
    }
    const message = {
      id: request.header("webhook-id") ?? "",
      timestamp: request.header("webhook-timestamp") ?? "",
      signature: request.header("webhook-signature") ?? "",
      body: request.body,
    };
    // Both are always found out: neither is quicker to be refused for.
    const signed = await isSignedBy(message, keys);
    return isTimely(message, nowMs) && signed;
  }

  return {
    async take(request) {
      const nowMs = Date.parse(clock.now());
      // A name that no rule can have is looked up as well, under one that none has.
      const name = ruleNameSchema.safeParse(request.rule).success ? request.rule : "-";
      const [record, credentials] = await Promise.all([rules.load(name), rules.credentials(name)]);
      const standing = record !== null && !record.deleted && record.rule.when.kind === request.kind ? record : null;
      const proved = await isProved(request, standing === null ? [] : credentials, nowMs);
      if (standing === null || !proved)
        throw new Fault({
          code: "request.unauthorised",
          cause: "This trigger does not take this request.",
          action: "Look at the rule's name, its kind and the credential that the sender has.",
          retry: "never",
        });
      const value = json(request.body);
      const read = readTrigger(request.kind, value, {
        rule: standing.rule,
        nowMs,
        messageId: request.header("webhook-id") ?? "",
      });
      if (!read.ok)
        throw new Fault({
          code: "request.malformed",
          cause: `The trigger's body is refused: ${read.cause}.`,
          action: "Look at what the sender sends; the formats are in the documentation.",
          retry: "never",
        });
      await request.proved?.(`trigger of ${name}`);
      const triggered = await runner.triggered(name, read.events);
      log.write("info", "a rule was triggered", { rule: name, kind: request.kind, ...triggered });
      return triggered;
    },
  };
}

/** Where a sealed secret belongs. */
export const placeOf = (credential: Pick<RuleCredential, "rule" | "id">): string =>
  `rule ${credential.rule} ${credential.id}`;

function json(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return undefined;
  }
}

/** Two texts of one length, in a time that depends on the length alone. */
function sameText(one: string, other: string): boolean {
  let difference = one.length ^ other.length;
  for (let index = 0; index < one.length; index += 1)
    difference |= one.charCodeAt(index) ^ (other.charCodeAt(index % Math.max(1, other.length)) || 0);
  return difference === 0;
}
