/**
 * The API as the commands use it: JSON decoded by the very schemas that the server documents, problems turned into
 * refusals with the server's own code, cause and action. A connection that fails is its own refusal, never an answer.
 */
import * as z from "zod/mini";
import { problemSchema } from "../http/problem.ts";
import { CliError } from "./cli-error.ts";
import type { Config } from "./config.ts";
import { exitCodes, exitOf } from "./exit-code.ts";

/** A check of a large fleet takes a few rounds of 20 s; everything else answers at once. */
const answerMsMax = 180_000;

interface Asked {
  method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  body?: unknown;
  idempotencyKey?: string;
}

export class ApiClient {
  readonly url: string;
  readonly #token: string;
  readonly #signal: AbortSignal;

  constructor(config: Config, signal: AbortSignal) {
    this.url = config.url;
    this.#token = config.token;
    this.#signal = signal;
  }

  /** Asks and decodes. Throws `CliError`; `api.unreachable` when there was no answer. */
  async ask<T>(path: string, schema: z.ZodMiniType<T>, asked: Asked = {}): Promise<T> {
    const response = await this.#fetch(path, asked);
    const value: unknown = await response.json().catch(() => undefined);
    const result = schema.safeParse(value);
    if (result.success) return result.data;
    throw new CliError({
      code: "api.malformed",
      cause: `${this.url} answered ${path} with something else than documented (${result.error.issues[0]?.path.join(".") ?? ""}).`,
      action: "Use the same version of vmferry on both sides.",
      exit: exitCodes.internal,
    });
  }

  /** Asks for something whose answer has no body. */
  async tell(path: string, asked: Asked): Promise<void> {
    await (await this.#fetch(path, asked)).body?.cancel();
  }

  /** Every item of a list, page by page. */
  async all<T extends z.ZodMiniType>(path: string, item: T): Promise<z.infer<T>[]> {
    const page = z.object({ items: z.array(item), cursor: z.nullable(z.string()) });
    const items: z.infer<T>[] = [];
    let cursor: string | null = null;
    do {
      const separator = path.includes("?") ? "&" : "?";
      const next: string = cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const answer: { items: z.infer<T>[]; cursor: string | null } = await this.ask(
        `${path}${separator}limit=200${next}`,
        page,
      );
      items.push(...answer.items);
      cursor = answer.cursor;
    } while (cursor !== null);
    return items;
  }

  /** Opens a stream of server-sent events; null when the server says that there is nothing more. */
  async events(
    path: string,
    lastEventId: string | null,
    signal: AbortSignal,
  ): Promise<ReadableStream<Uint8Array> | null> {
    const response = await this.#send(path, {
      headers: { accept: "text/event-stream", ...(lastEventId === null ? {} : { "last-event-id": lastEventId }) },
      signal: AbortSignal.any([signal, this.#signal]),
    });
    return response.status === 204 ? null : response.body;
  }

  /** Where the content of a path lies. The redirect is not followed here: the token is not for the bucket. */
  async redirect(path: string): Promise<string> {
    const response = await this.#fetch(path, {});
    const location = response.headers.get("location");
    await response.body?.cancel();
    if (location === null)
      throw new CliError({
        code: "api.malformed",
        cause: `${this.url} answered ${path} without a Location.`,
        action: "Use the same version of vmferry on both sides.",
        exit: exitCodes.internal,
      });
    return new URL(location, this.url).href;
  }

  #fetch(path: string, { method = "GET", body, idempotencyKey }: Asked): Promise<Response> {
    return this.#send(path, {
      method,
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.any([AbortSignal.timeout(answerMsMax), this.#signal]),
    });
  }

  async #send(path: string, init: RequestInit & { headers: Record<string, string> }): Promise<Response> {
    const headers = { ...init.headers, authorization: `Bearer ${this.#token}` };
    const response = await fetch(`${this.url}${path}`, { ...init, headers, redirect: "manual" }).catch(
      (error: unknown) => {
        this.#signal.throwIfAborted();
        throw unreachable(this.url, error);
      },
    );
    if (response.status < 400) return response;
    const problem = problemSchema.safeParse(await response.json().catch(() => undefined));
    if (problem.success) {
      const { code, cause, action } = problem.data;
      throw new CliError({ code, cause, action, exit: exitOf(code) });
    }
    // A proxy's page, or a server that is just starting: nothing vmferry said.
    throw unreachable(this.url, new Error(`HTTP ${response.status} without a vmferry problem`));
  }
}

/** No answer. undici puts the reason of "fetch failed" into the cause. */
function unreachable(url: string, error: unknown): CliError {
  const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const why = inner instanceof Error ? inner.message || inner.name : "unknown";
  return new CliError({
    code: "api.unreachable",
    cause: `${url} did not answer: ${why}.`,
    action: "Look whether the control plane runs there (vmferry up) and whether VMFERRY_URL is right.",
    exit: exitCodes.unavailable,
  });
}

/** Whether asking again may help: no answer, or an answer that says so. */
export const mayPass = (error: unknown): boolean =>
  error instanceof CliError && ["api.unreachable", "store.unreachable", "internal"].includes(error.code);
