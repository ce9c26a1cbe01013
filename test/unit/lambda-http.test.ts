/** The Lambda of the API before any store is asked: the environment, events to requests, answers to proxy responses, streaming. */
import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import { text as textOf } from "node:stream/consumers";
import { describe, test } from "node:test";
import * as z from "zod/mini";
import { awsEnvOf } from "#functions/entry/aws-wiring";
import { handler, streamed } from "#functions/entry/lambda-http";
import { proxyResponse, requestOf } from "#functions/entry/lambda-request";
import { problemSchema } from "#functions/http/problem";
import { doorSchema } from "#protocol/identity";
import { controlKeyPkcs8 } from "#test/fake/control-key";

const env = {
  TABLE: "vmferry",
  BUCKET: "bundles",
  AWS_REGION: "eu-central-1",
  AWS_ACCESS_KEY_ID: "access",
  AWS_SECRET_ACCESS_KEY: "hunter2",
  // Nothing listens there.
  DYNAMODB_ENDPOINT: "http://127.0.0.1:9",
  SOCKET_URL: "wss://sockets.example/prod",
  SOCKET_CALLBACK_URL: "https://sockets.example/prod",
  TICKET_KEY: controlKeyPkcs8(),
};

const eventOf = (rawPath: string, more: object = {}, method = "GET") => ({
  version: "2.0",
  routeKey: "$default",
  rawPath,
  rawQueryString: "",
  headers: {},
  isBase64Encoded: false,
  body: null,
  requestContext: {
    accountId: "1",
    apiId: "api",
    domainName: "api.example",
    domainPrefix: "api",
    authentication: null,
    authorizer: {},
    http: { method, path: rawPath, protocol: "HTTP/1.1", sourceIp: "192.0.2.1", userAgent: "test" },
    requestId: "r1",
    routeKey: "$default",
    stage: "$default",
    time: "",
    timeEpoch: 0,
  },
  ...more,
});

const resultSchema = z.object({
  statusCode: z.number(),
  headers: z.record(z.string(), z.string()),
  body: z.string(),
  isBase64Encoded: z.boolean(),
});

async function handled(event: object) {
  const result: unknown = await Reflect.apply(handler, undefined, [event, { awsRequestId: "a1" }]);
  return resultSchema.parse(result);
}

describe("the environment", () => {
  test("is decoded with its defaults; an empty value counts as none", () => {
    const decoded = awsEnvOf({ ...env, REGION: "", S3_ENDPOINT: "", PROGRESS_MS: "250" });
    assert.equal(decoded.REGION, "eu-central-1");
    assert.deepEqual(
      [decoded.HEARTBEAT_MS, decoded.CONNECTION_LIFE_MS, decoded.PROGRESS_MS, decoded.S3_ENDPOINT],
      [30_000, 7_200_000, 250, undefined],
    );
    assert.equal(awsEnvOf({ ...env, REGION: "us-east-1" }).REGION, "us-east-1");
  });

  for (const name of [
    "TABLE",
    "BUCKET",
    "AWS_ACCESS_KEY_ID",
    "SOCKET_URL",
    "SOCKET_CALLBACK_URL",
    "TICKET_KEY",
  ] as const)
    test(`without ${name} is refused by that name`, () => {
      assert.throws(() => awsEnvOf({ ...env, [name]: undefined }), new RegExp(`: ${name} is missing\\.`));
    });

  test("without a region, or with values of another form, is refused without quoting one", () => {
    assert.throws(() => awsEnvOf({ ...env, AWS_REGION: undefined }), /REGION is missing/);
    for (const [name, value] of [
      ["SOCKET_URL", "https://hunter2"],
      ["HEARTBEAT_MS", "hunter2"],
      ["HEARTBEAT_MS", "0"],
      ["ADMIN_TOKEN_SHA256", "hunter2"],
      ["DYNAMODB_ENDPOINT", "hunter2"],
    ] as const)
      assert.throws(
        () => awsEnvOf({ ...env, [name]: value }),
        (error) =>
          error instanceof Error &&
          error.message.includes(`${name} is not of the form`) &&
          !/hunter2/.test(error.message),
      );
  });
});

// In this order: the process is wired by the first environment that is whole.
describe("the function", () => {
  test("with an environment that lacks something answers 500 and says nothing of it outside", async () => {
    const result = await handled(eventOf("/healthz"));
    assert.equal(result.statusCode, 500);
    assert.equal(problemSchema.parse(JSON.parse(result.body)).code, "internal");
    assert.doesNotMatch(result.body, /TABLE/);
  });

  test("serves as soon as it is whole, as text", async () => {
    Object.assign(process.env, env);
    const result = await handled(eventOf("/healthz"));
    assert.deepEqual([result.statusCode, result.isBase64Encoded], [200, false]);
    assert.equal(JSON.parse(result.body).status, "ok");
  });

  test("tells shims where their socket is", async () => {
    const door = doorSchema.parse(JSON.parse((await handled(eventOf("/v1/shim-door"))).body));
    assert.deepEqual([door.socket, door.hello], [env.SOCKET_URL, "connect"]);
  });

  test("decodes the query, and a body in base64", async () => {
    const query = await handled(eventOf("/v1/shim-door", { rawQueryString: "host=nobody" }));
    assert.equal(query.statusCode, 400);
    const body = Buffer.from(JSON.stringify({ token: "x", name: "Ä", publicKey: "y" })).toString("base64");
    const enrolment = await handled(
      eventOf(
        "/v1/enrolments",
        { body, isBase64Encoded: true, headers: { "content-type": "application/json" } },
        "POST",
      ),
    );
    assert.match(problemSchema.parse(JSON.parse(enrolment.body)).cause, /`(name|publicKey)`/);
  });

  test("takes headers and cookies that are no ASCII, and a path that looks like a host", async () => {
    const request = requestOf(
      eventOf("//evil.example/x", { headers: { "x-name": "Fähre" }, cookies: ["a=1", "b=2"], body: "ignored" }),
    );
    assert.equal(request.url, "https://api.example//evil.example/x");
    assert.deepEqual([request.headers.get("x-name"), request.headers.get("cookie")], ["F%C3%A4hre", "a=1; b=2"]);
    assert.equal(request.body, null);
    assert.throws(() => requestOf({ rawPath: "/" }));
  });

  test("gives cookies their own place, and bytes in base64", async () => {
    const response = new Response(Uint8Array.of(0, 255), { headers: { "content-type": "application/octet-stream" } });
    response.headers.append("set-cookie", "a=1");
    response.headers.append("set-cookie", "b=2");
    assert.deepEqual(await proxyResponse(response), {
      statusCode: 200,
      headers: { "content-type": "application/octet-stream" },
      cookies: ["a=1", "b=2"],
      body: "AP8=",
      isBase64Encoded: true,
    });
  });

  test("problems are text as well, and keep their headers", async () => {
    const result = await handled(eventOf("/v1/hosts"));
    assert.deepEqual([result.statusCode, result.isBase64Encoded], [401, false]);
    assert.equal(result.headers["content-type"], "application/problem+json");
    assert.equal(result.headers["www-authenticate"], "Bearer");
  });
});

describe("streaming", () => {
  test("without Lambda's runtime is the same function", () => {
    assert.equal(streamed, handler);
  });

  test("with it: the head first, then the body", async () => {
    let head: unknown;
    Object.assign(globalThis, {
      awslambda: {
        streamifyResponse: (inner: unknown) => inner,
        HttpResponseStream: {
          from(stream: PassThrough, metadata: unknown) {
            head = metadata;
            return stream;
          },
        },
      },
    });
    try {
      const again = `${import.meta.resolve("#functions/entry/lambda-http")}?streaming`;
      const module: { streamed?: unknown } = await import(again);
      assert.ok(typeof module.streamed === "function" && module.streamed !== handler);
      const stream = new PassThrough();
      const text = textOf(stream);
      await Reflect.apply(module.streamed, undefined, [eventOf("/healthz"), stream, { awsRequestId: "a2" }]);
      assert.equal(z.object({ statusCode: z.number() }).parse(head).statusCode, 200);
      assert.equal(JSON.parse(await text).status, "ok");
    } finally {
      Reflect.deleteProperty(globalThis, "awslambda");
    }
  });
});
