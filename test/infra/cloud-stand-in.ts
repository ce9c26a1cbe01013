/**
 * What `sst` itself asks of AWS and Cloudflare before and after Pulumi: who calls, the bootstrap parameter, its buckets of
 * assets and state, its passphrase. No more than that answers; whatever else is asked fails the deployment.
 */
import { createServer } from "node:http";
import * as z from "zod/mini";

export interface CloudStandIn {
  url: string;
  /** Names of the objects that were written, newest last. */
  written: string[];
  close(): void;
}

const parameter = z.object({ Name: z.string(), Value: z.optional(z.string()) });

const caller = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:iam::123456789012:user/x</Arn><UserId>U</UserId><Account>123456789012</Account></GetCallerIdentityResult>
</GetCallerIdentityResponse>`;

interface Answer {
  status: number;
  body: string | Buffer;
}

export async function openClouds(): Promise<CloudStandIn> {
  const parameters = new Map<string, string>();
  const objects = new Map<string, Buffer>();
  const written: string[] = [];

  function ssm(action: string, { Name, Value }: z.infer<typeof parameter>): Answer {
    if (action === "PutParameter") parameters.set(Name, Value ?? "");
    const known = parameters.get(Name);
    if (known === undefined) return { status: 400, body: JSON.stringify({ __type: "ParameterNotFound" }) };
    return { status: 200, body: JSON.stringify({ Parameter: { Name, Value: known, Type: "String", Version: 1 } }) };
  }

  function s3(method: string, path: string, body: Buffer): Answer {
    const [name = ""] = path.split("?");
    if (method === "PUT") {
      objects.set(name, body);
      written.push(name);
      return { status: 200, body: "" };
    }
    if (method === "DELETE") return { status: objects.delete(name) ? 204 : 204, body: "" };
    const found = objects.get(name);
    if (found !== undefined) return { status: 200, body: found };
    return { status: 404, body: "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>" };
  }

  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => {
      const body = Buffer.concat(parts);
      const text = body.toString("latin1");
      const [service, action = ""] = String(request.headers["x-amz-target"] ?? "").split(".");
      const path = request.url ?? "/";
      const answer: Answer = path.startsWith("/cloudflare/")
        ? { status: 200, body: JSON.stringify({ success: true, result: [], errors: [] }) }
        : text.includes("Action=GetCallerIdentity")
          ? { status: 200, body: caller }
          : service === "AmazonSSM"
            ? ssm(action, parameter.parse(JSON.parse(text)))
            : action === "CreateRepository"
              ? { status: 200, body: JSON.stringify({ repository: { repositoryUri: "r/sst", registryId: "1" } }) }
              : s3(request.method ?? "GET", path, body);
      response.writeHead(answer.status, { etag: '"1"' }).end(answer.body);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (typeof address !== "object" || address === null) throw new Error("the stand-in has no port");
  return { url: `http://127.0.0.1:${address.port}`, written, close: () => server.close() };
}
