/** The endpoints of the functions' bundles, held against the rules of the SDK's own clients. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ApiGatewayManagementApiClient } from "@aws-sdk/client-apigatewaymanagementapi";
import { DynamoDBClient } from "@aws-sdk/client-dynamodb";
import { S3Client } from "@aws-sdk/client-s3";
import { bucketEndpoint, serviceEndpoint } from "../../functions/entry/sdk-endpoint.ts";

const regions = ["eu-central-1", "us-east-1", "us-west-2", "ap-southeast-5", "us-gov-west-1", "cn-north-1"];
const endpoints = [undefined, "http://127.0.0.1:9000", "https://s3.example/base/path"];
const buckets = ["bundles", "vmferry-prod-bundlesbucket-abcdefgh", "a.b.c", "xyz", "with_underscore-Upper"];

/** A schema's own defaults, which the SDK fills in before its rules are asked. */
const standard = { UseFIPS: false, UseDualStack: false };

function urlOf(provider: unknown, params: object): string {
  assert.ok(typeof provider === "function");
  const answer: unknown = Reflect.apply(provider, undefined, [params]);
  assert.ok(typeof answer === "object" && answer !== null && "url" in answer && answer.url instanceof URL);
  return answer.url.href.replace(/\/$/, "");
}
const plain = (url: URL) => url.href.replace(/\/$/, "");

describe("the endpoints of the bundles are those of the SDK", () => {
  for (const region of regions)
    test(`in ${region}`, () => {
      const config = { region, credentials: { accessKeyId: "x", secretAccessKey: "y" } };
      const s3 = new S3Client(config).config.endpointProvider;
      const dynamo = new DynamoDBClient(config).config.endpointProvider;
      const callbacks = new ApiGatewayManagementApiClient(config).config.endpointProvider;
      for (const endpoint of endpoints) {
        const params = { ...standard, Region: region, ...(endpoint === undefined ? {} : { Endpoint: endpoint }) };
        assert.equal(plain(serviceEndpoint("dynamodb", params).url), urlOf(dynamo, params));
        assert.equal(plain(serviceEndpoint("execute-api", params).url), urlOf(callbacks, params));
        for (const Bucket of buckets)
          for (const ForcePathStyle of [true, false]) {
            // A bucket that cannot be a host's label at all is refused by the SDK unless it is in the path.
            if (!ForcePathStyle && Bucket.includes("_")) continue;
            const asked = {
              ...params,
              Bucket,
              ForcePathStyle,
              UseArnRegion: false,
              DisableMultiRegionAccessPoints: false,
              Accelerate: false,
              UseGlobalEndpoint: false,
            };
            assert.equal(plain(bucketEndpoint(asked).url), urlOf(s3, asked), JSON.stringify(asked));
          }
      }
    });

  test("and are signed for the same service and region", () => {
    const client = new S3Client({ region: "eu-central-1" });
    const params = {
      ...standard,
      Region: "eu-central-1",
      Bucket: "bundles",
      ForcePathStyle: false,
      Accelerate: false,
      UseArnRegion: false,
      DisableMultiRegionAccessPoints: false,
      UseGlobalEndpoint: false,
    };
    const wanted: unknown = client.config.endpointProvider?.(params);
    assert.ok(typeof wanted === "object" && wanted !== null && "properties" in wanted);
    assert.deepEqual({ ...bucketEndpoint(params).properties }, wanted.properties);
  });
});

test("what is not known here is refused and not guessed", () => {
  assert.throws(() => serviceEndpoint("dynamodb", { Region: "us-iso-east-1" }), /not known here/);
  assert.throws(() => serviceEndpoint("dynamodb", {}), /no region/);
  assert.throws(() => serviceEndpoint("dynamodb", { Region: "eu-central-1", UseFIPS: true }), /FIPS/);
  assert.throws(() => bucketEndpoint({ Region: "eu-central-1", Bucket: "arn:aws:s3:::x" }), /plainly/);
});
