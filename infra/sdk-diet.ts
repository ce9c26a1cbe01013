/**
 * What the functions' bundles leave out of the AWS SDK. It is built for every use; ours is items in one table, heads and presigned URLs in
 * one bucket, and three callbacks, by fetch. Each part is put aside by name, and what takes its place refuses aloud, so an SDK that begins to need
 * it fails in the tests and not in silence.
 */
import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Plugin } from "esbuild";

/**
 * The browser's XML parser needs DOMParser, which neither workerd nor Node has: every error of S3 would become a ReferenceError. The
 * parser for other runtimes is put in its place.
 */
const xmlParser: Plugin = {
  name: "xml-parser-without-dom",
  setup(build) {
    build.onLoad({ filter: /@aws-sdk[/\\]xml-builder[/\\]dist-es[/\\]xml-parser\.browser\.js$/ }, async ({ path }) => ({
      contents: await readFile(join(dirname(path), "xml-parser.js"), "utf8"),
      loader: "js",
      resolveDir: dirname(path),
    }));
  },
};

/** Modules of the SDK by what stands in for them. */
const standIns: Record<string, string> = {
  // The SDK loads it lazily, by which esbuild wraps all that it shares with the rest, and nothing unused can be left out any more.
  "@smithy/core/event-streams": `
    const absent = () => { throw new Error("event streams are not in this bundle"); };
    export const resolveEventStreamSerdeConfig = (config) => config;
    export const eventStreamSerdeProvider = absent;
    export class EventStreamSerde { constructor() { absent(); } }`,
  // Off unless it is asked for; it brings a cache along.
  "@aws-sdk/middleware-endpoint-discovery": `
    export const resolveEndpointDiscoveryConfig = (config) => config;`,
  // The signature over several regions, for access points of S3. What is left is what it does for one.
  "@aws-sdk/signature-v4-multi-region": `
    export { SignatureV4 as SignatureV4MultiRegion, SignatureV4 as SignatureV4SignWithCredentials } from "@smithy/signature-v4";`,
};

/** Classes, by their file in the SDK, whose place a class takes that refuses to be made. */
const refusals = new Set([
  // WebCrypto's digests are used; SHA-256 is the only one, given by hand.
  "Sha256Js",
  "Sha1Js",
  "Sha1WebCrypto",
  "Sha512Js",
  "Md5Js",
  "Crc64NvmeJs",
  "Crc32cJs",
  // Of the retry mode "adaptive".
  "AdaptiveRetryStrategy",
  "DefaultRateLimiter",
]);

/** Classes that are made with each client and never asked: no body of ours is XML, no header is signed as an event, no bucket is an "express" one. */
const mute: Record<string, string> = {
  XmlShapeSerializer: "setSerdeContext() {} write() { this.refuse(); } flush() { this.refuse(); }",
  HeaderFormatter: "format() { this.refuse(); }",
  S3ExpressIdentityProviderImpl: "getS3ExpressIdentity() { this.refuse(); }",
  AwsSdkSigV4ASigner: "sign() { this.refuse(); }",
};

/** Functions for bodies that are streams; ours are small, and payloads go past us by presigned URLs. */
const refusedCalls: Record<string, readonly string[]> = {
  "createBufferedReadable.browser": ["createBufferedReadable", "createBufferedReadableStream"],
  "getAwsChunkedEncodingStream.browser": ["getAwsChunkedEncodingStream"],
  "createChecksumStream.browser": ["createChecksumStream"],
  "sdk-stream-mixin.browser": ["sdkStreamMixin"],
};

/** Data that nothing reads where the endpoints are plain. */
const emptied: Record<string, string> = {
  partitions: 'export const partitionsInfo = { partitions: [], version: "" };',
};

/** The endpoint rules of each client by what takes their place (functions/entry/sdk-endpoint.ts). */
const endpoints: Record<string, string> = {
  "client-s3": "export { bucketEndpoint as defaultEndpointResolver } from SOURCE;",
  "client-dynamodb":
    'import { serviceEndpoint } from SOURCE; export const defaultEndpointResolver = (params) => serviceEndpoint("dynamodb", params);',
  "client-apigatewaymanagementapi":
    'import { serviceEndpoint } from SOURCE; export const defaultEndpointResolver = (params) => serviceEndpoint("execute-api", params);',
};

const plainEndpoints: Plugin = {
  name: "sdk-endpoints-plain",
  setup(build) {
    const source = JSON.stringify(join(import.meta.dirname, "../functions/entry/sdk-endpoint.ts"));
    build.onLoad(
      { filter: /@aws-sdk[/\\]client-[^/\\]+[/\\]dist-es[/\\]endpoint[/\\]endpointResolver\.js$/ },
      ({ path }) => {
        const contents = endpoints[basename(dirname(dirname(dirname(path))))];
        return contents === undefined ? undefined : { contents: contents.replace("SOURCE", source), loader: "js" };
      },
    );
  },
};

const withoutUnused: Plugin = {
  name: "sdk-without-unused",
  setup(build) {
    const namespace = "stand-in";
    build.onResolve({ filter: /^@(smithy|aws-sdk)\// }, ({ path }) =>
      Object.hasOwn(standIns, path) ? { path, namespace } : undefined,
    );
    build.onLoad({ filter: /./, namespace }, ({ path }) => ({
      contents: standIns[path] ?? "",
      loader: "js",
      resolveDir: import.meta.dirname,
    }));
    build.onLoad({ filter: /@(smithy|aws-sdk)[/\\].*[/\\]dist-es[/\\].*\.js$/ }, ({ path }) => {
      const name = basename(path, ".js");
      if (refusals.has(name))
        return {
          contents: `export class ${name} { constructor() { throw new Error("${name} is not in this bundle"); } }`,
          loader: "js",
        };
      const methods = mute[name];
      if (methods !== undefined)
        return {
          contents: `export class ${name} { refuse() { throw new Error("${name} is not in this bundle"); } ${methods} }`,
          loader: "js",
        };
      const calls = refusedCalls[name];
      if (calls !== undefined)
        return {
          contents: calls
            .map((call) => `export const ${call} = () => { throw new Error("${call} is not in this bundle"); };`)
            .join("\n"),
          loader: "js",
        };
      const contents = emptied[name];
      return contents === undefined ? undefined : { contents, loader: "js" };
    });
    // A client quotes its version to the server; the rest of its description is not needed.
    build.onLoad({ filter: /@aws-sdk[/\\][^/\\]+[/\\]package\.json$/ }, async ({ path }) => ({
      contents: JSON.stringify({ version: versionOf(await readFile(path, "utf8"), path) }),
      loader: "json",
    }));
  },
};

/** The errors that our operations meet by name; any other is of its service's general kind, with its name, message and status all the same. */
const errorsMet = new Set([
  "ConditionalCheckFailedException",
  "InternalServerError",
  "ItemCollectionSizeLimitExceededException",
  "LimitExceededException",
  "ProvisionedThroughputExceededException",
  "RequestLimitExceeded",
  "ResourceInUseException",
  "ResourceNotFoundException",
  "ThrottlingException",
  "NoSuchBucket",
  "NoSuchKey",
  "NotFound",
  "GoneException",
  "PayloadTooLargeException",
  "ForbiddenException",
]);

/**
 * The shapes of every operation, each a constant. esbuild cannot know that their computed keys are plain text, so it keeps them all; as
 * the results of pure calls those that nothing uses are left out.
 */
const pureSchemas: Plugin = {
  name: "sdk-schemas-pure",
  setup(build) {
    build.onLoad(
      { filter: /@aws-sdk[/\\]client-[^/\\]+[/\\]dist-es[/\\]schemas[/\\]schemas_0\.js$/ },
      async ({ path }) => ({
        contents: (await readFile(path, "utf8"))
          .replaceAll(
            /^((?:export )?(?:var|const) [\w$]+ = )(\[(?:.*\]|[\s\S]*?^\]));$/gm,
            "$1/* @__PURE__ */ (() => $2)();",
          )
          .replaceAll(/^n0_registry\.registerError\((\w+)\$, \1\);$/gm, (line, name: string) =>
            errorsMet.has(name) ? line : "",
          ),
        loader: "js",
      }),
    );
  },
};

function versionOf(text: string, path: string): string {
  const value: unknown = JSON.parse(text);
  if (typeof value === "object" && value !== null && "version" in value && typeof value.version === "string")
    return value.version;
  throw new Error(`${path} states no version`);
}

/** One word by which zod reaches a function through a namespace keeps all the others of that namespace. */
const zodByName: Plugin = {
  name: "zod-by-name",
  setup(build) {
    build.onLoad({ filter: /[/\\]zod[/\\]v4[/\\]mini[/\\]schemas\.js$/ }, async ({ path }) => ({
      contents: (await readFile(path, "utf8")).replaceAll("core.util.", "util."),
      loader: "js",
      resolveDir: dirname(path),
    }));
  },
};

/** For every bundle that holds the SDK's build for fetch. */
export const sdkPlugins: Plugin[] = [xmlParser, withoutUnused, pureSchemas, plainEndpoints, zodByName];
