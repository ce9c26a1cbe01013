/**
 * What goes to DynamoDB and S3, read from the control plane's own `/metrics`. Reading costs requests itself (the active
 * migrations are counted in the store), and heartbeats go on all the time: both are measured and taken off.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Fleet } from "#lab/fleet";
import { heartbeatMs } from "#protocol/limits";

/** Three heartbeats of each shim, neither more nor less wherever it begins. */
const idleMs = 3 * heartbeatMs;

export interface StoreCount {
  requests: number;
  sentBytes: number;
  receivedBytes: number;
}

/** Key: store and operation, such as `dynamodb PutItem`. */
export type StoreCounts = Map<string, StoreCount>;

const fields = { requests: "requests", sent_bytes: "sentBytes", received_bytes: "receivedBytes" } as const;
const line =
  /^vmferry_store_(requests|sent_bytes|received_bytes)_total\{isolate="\w+",store="(\w+)",operation="(\w+)"\} (\d+(?:\.\d+)?)$/;

export async function readStoreCounts(fleet: Fleet): Promise<StoreCounts> {
  const response = await fetch(`${fleet.url}/metrics`, { headers: { authorization: `Bearer ${await fleet.token()}` } });
  if (!response.ok) throw new Error(`/metrics answered ${response.status}: ${await response.text()}`);
  const counts: StoreCounts = new Map();
  for (const text of (await response.text()).split("\n")) {
    const [, family, store, operation, value] = line.exec(text) ?? [];
    if (family !== "requests" && family !== "sent_bytes" && family !== "received_bytes") continue;
    const key = `${store} ${operation}`;
    const count = counts.get(key) ?? { requests: 0, sentBytes: 0, receivedBytes: 0 };
    count[fields[family]] = Number(value);
    counts.set(key, count);
  }
  if (counts.size === 0) throw new Error("/metrics counts no store requests");
  return counts;
}

/** What came between two readings. */
export function between(before: StoreCounts, after: StoreCounts): StoreCounts {
  const result: StoreCounts = new Map();
  for (const [key, count] of after) {
    const earlier = before.get(key);
    const difference = {
      requests: count.requests - (earlier?.requests ?? 0),
      sentBytes: count.sentBytes - (earlier?.sentBytes ?? 0),
      receivedBytes: count.receivedBytes - (earlier?.receivedBytes ?? 0),
    };
    if (difference.requests > 0) result.set(key, difference);
  }
  return result;
}

/** Sum over the operations of one store. */
export function totalOf(counts: StoreCounts, store: "dynamodb" | "s3"): StoreCount {
  const sum = { requests: 0, sentBytes: 0, receivedBytes: 0 };
  for (const [key, count] of counts) {
    if (!key.startsWith(`${store} `)) continue;
    sum.requests += count.requests;
    sum.sentBytes += count.sentBytes;
    sum.receivedBytes += count.receivedBytes;
  }
  return sum;
}

export interface Background {
  /** What one reading of `/metrics` adds to the next. */
  reading: StoreCounts;
  /** What an idle fleet does in `idleMs`, the reading not counted. */
  idle: StoreCounts;
  idleMs: number;
}

/** Watches an idle fleet. */
export async function measureBackground(fleet: Fleet): Promise<Background> {
  const first = await readStoreCounts(fleet);
  const second = await readStoreCounts(fleet);
  const fromMs = performance.now();
  await sleep(idleMs);
  const third = await readStoreCounts(fleet);
  const reading = between(first, second);
  return { reading, idle: less(between(second, third), reading, 1), idleMs: performance.now() - fromMs };
}

function less(counts: StoreCounts, off: StoreCounts, factor: number): StoreCounts {
  const result: StoreCounts = new Map();
  for (const [key, count] of counts) {
    const share = off.get(key) ?? { requests: 0, sentBytes: 0, receivedBytes: 0 };
    result.set(key, {
      requests: Math.max(0, count.requests - share.requests * factor),
      sentBytes: Math.max(0, count.sentBytes - share.sentBytes * factor),
      receivedBytes: Math.max(0, count.receivedBytes - share.receivedBytes * factor),
    });
  }
  return result;
}

/** What of a difference between two readings `spanMs` apart was not background. */
export function causedBy(difference: StoreCounts, background: Background, spanMs: number): StoreCounts {
  return less(less(difference, background.reading, 1), background.idle, spanMs / background.idleMs);
}
