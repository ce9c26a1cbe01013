/** Lets the S3 client talk to the face in its own process: the SDK's HTTP request becomes a `Request`, and back. */
import type { S3ClientConfig } from "@aws-sdk/client-s3";

type Handler = Extract<NonNullable<S3ClientConfig["requestHandler"]>, { handle(...args: never[]): unknown }>;

/** The part of the SDK's HTTP request that is used here. */
interface SdkRequest {
  method: string;
  protocol: string;
  hostname: string;
  path: string;
  query?: Record<string, string | string[] | null>;
  headers: Record<string, string>;
  body?: unknown;
}

/** A request handler of the SDK over a fetch function. Only for requests without a body or with one in memory. */
export function handlerOver(fetchFace: (request: Request) => Promise<Response>): Handler {
  return {
    metadata: { handlerProtocol: "http/1.1" },
    async handle(request: SdkRequest) {
      const query = new URLSearchParams();
      for (const [name, value] of Object.entries(request.query ?? {}))
        for (const each of Array.isArray(value) ? value : [value ?? ""]) query.append(name, each);
      const search = query.size > 0 ? `?${query}` : "";
      const body = typeof request.body === "string" || request.body instanceof Uint8Array ? request.body : undefined;
      const response = await fetchFace(
        new Request(`${request.protocol}//${request.hostname}${request.path}${search}`, {
          method: request.method,
          headers: request.headers,
          ...(body === undefined ? {} : { body: typeof body === "string" ? body : Uint8Array.from(body) }),
        }),
      );
      const headers: Record<string, string> = {};
      response.headers.forEach((value, name) => {
        headers[name] = value;
      });
      // The SDK reads every body, also one that is not there.
      return { response: { statusCode: response.status, headers, body: response.body ?? new Blob([]).stream() } };
    },
  };
}
