/**
 * Counts what goes to the stores: requests and bytes by store and operation. One counter per isolate; with `vmferry up`
 * there is one isolate, so the figures are exact there (the bench reads them from `GET /metrics`), elsewhere they are a share.
 * Attempts are counted, not calls: a retry costs money as well.
 */
export interface RequestCount {
  requests: number;
  sentBytes: number;
  receivedBytes: number;
}

export class RequestCounter {
  readonly #counts = new Map<string, RequestCount>();

  /** One attempt of one operation, e.g. `add("dynamodb", "PutItem", {sentBytes, receivedBytes})`. */
  add(store: "dynamodb" | "s3", operation: string, size: { sentBytes: number; receivedBytes: number }): void {
    const key = `store="${store}",operation="${operation}"`;
    const count = this.#counts.get(key) ?? { requests: 0, sentBytes: 0, receivedBytes: 0 };
    count.requests += 1;
    count.sentBytes += size.sentBytes;
    count.receivedBytes += size.receivedBytes;
    this.#counts.set(key, count);
  }

  /** Sum over the operations of one store. */
  total(store: "dynamodb" | "s3"): RequestCount {
    const sum = { requests: 0, sentBytes: 0, receivedBytes: 0 };
    for (const [key, count] of this.#counts) {
      if (!key.startsWith(`store="${store}"`)) continue;
      sum.requests += count.requests;
      sum.sentBytes += count.sentBytes;
      sum.receivedBytes += count.receivedBytes;
    }
    return sum;
  }

  /** Prometheus text format. `isolate` names whose counts these are, where others are told by the same name. */
  text(isolate?: string): string {
    const families = [
      ["vmferry_store_requests_total", "Requests to a store, attempts counted.", "requests"],
      ["vmferry_store_sent_bytes_total", "Body bytes sent to a store.", "sentBytes"],
      ["vmferry_store_received_bytes_total", "Body bytes received from a store.", "receivedBytes"],
    ] as const;
    const owner = isolate === undefined ? "" : `isolate="${isolate}",`;
    const lines: string[] = [];
    for (const [name, help, field] of families) {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} counter`);
      for (const [labels, count] of this.#counts) lines.push(`${name}{${owner}${labels}} ${count[field]}`);
    }
    return `${lines.join("\n")}\n`;
  }
}
