/**
 * What an S3 server is asked beside what grants need, through the SDK's own client: header signatures, keys of any
 * characters, lists in pages, expiry. For the local face and for a server that is none of ours.
 */
import assert from "node:assert/strict";
import {
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  type ListObjectsV2CommandOutput,
  PutObjectCommand,
  S3Client,
} from "@aws-sdk/client-s3";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { grantMsMax } from "#protocol/limits";

export interface S3Place {
  endpoint: string;
  bucket: string;
  keys: { accessKeyId: string; secretAccessKey: string };
}

export const clientOf = ({ endpoint, keys }: S3Place): S3Client =>
  new S3Client({
    endpoint,
    region: "us-east-1",
    forcePathStyle: true,
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    credentials: keys,
  });

export const s3Cases: Record<string, (place: S3Place) => Promise<void>> = {
  "a client of S3 reads, writes and lists by header signature, whatever is in a key": async (place) => {
    const client = clientOf(place);
    const Bucket = place.bucket;
    const keysWritten = ["odd/a b+c&d.txt", "odd/ü%2F'.txt", "odd/<x>.txt", "odd/~(y)*!;=@:$,.txt"];
    for (const Key of keysWritten) await client.send(new PutObjectCommand({ Bucket, Key, Body: `at ${Key}` }));
    for (const Key of keysWritten) {
      const read = await client.send(new GetObjectCommand({ Bucket, Key }));
      assert.equal(await read.Body?.transformToString(), `at ${Key}`);
    }
    const found: string[] = [];
    let token: string | undefined;
    do {
      const page: ListObjectsV2CommandOutput = await client.send(
        new ListObjectsV2Command({ Bucket, Prefix: "odd/", MaxKeys: 2, ContinuationToken: token }),
      );
      found.push(...(page.Contents ?? []).map(({ Key }) => Key ?? ""));
      token = page.NextContinuationToken;
    } while (token !== undefined);
    assert.deepEqual(found.sort(), [...keysWritten].sort());
    client.destroy();
  },
  "an odd key is read by a presigned URL as well": async (place) => {
    const client = clientOf(place);
    const Key = "signed/a b+ü'(1).txt";
    await client.send(new PutObjectCommand({ Bucket: place.bucket, Key, Body: "here" }));
    const url = await getSignedUrl(client, new GetObjectCommand({ Bucket: place.bucket, Key }));
    assert.equal(await (await fetch(url)).text(), "here");
    client.destroy();
  },
  "absent is 404, and what is deleted once more is no error": async (place) => {
    const client = clientOf(place);
    const at = { Bucket: place.bucket, Key: "absent/one" };
    await assert.rejects(client.send(new GetObjectCommand(at)), { name: "NoSuchKey" });
    await assert.rejects(client.send(new HeadObjectCommand(at)), { name: "NotFound" });
    await client.send(new DeleteObjectCommand(at));
    client.destroy();
  },
  "If-None-Match is kept by header signature too": async (place) => {
    const client = clientOf(place);
    const at = { Bucket: place.bucket, Key: "once/one" };
    await client.send(new PutObjectCommand({ ...at, Body: "first", IfNoneMatch: "*" }));
    const second = client.send(new PutObjectCommand({ ...at, Body: "second", IfNoneMatch: "*" }));
    await assert.rejects(second, { name: "PreconditionFailed" });
    const read = await client.send(new GetObjectCommand(at));
    assert.equal(await read.Body?.transformToString(), "first");
    client.destroy();
  },
  "a presigned URL ends with its time": async (place) => {
    const client = clientOf(place);
    const at = { Bucket: place.bucket, Key: "expiring/one" };
    await client.send(new PutObjectCommand({ ...at, Body: "here" }));
    const status = async (agoMs: number) => {
      const signingDate = new Date(Date.now() - agoMs);
      const url = await getSignedUrl(client, new GetObjectCommand(at), { expiresIn: grantMsMax / 1000, signingDate });
      const response = await fetch(url);
      await response.arrayBuffer();
      return response.status;
    };
    assert.equal(await status(grantMsMax - 60_000), 200);
    assert.equal(await status(grantMsMax + 60_000), 403);
    client.destroy();
  },
  "another secret signs nothing": async (place) => {
    const client = clientOf({ ...place, keys: { ...place.keys, secretAccessKey: "another" } });
    const put = client.send(new PutObjectCommand({ Bucket: place.bucket, Key: "forged/one", Body: "x" }));
    await assert.rejects(put, { name: "SignatureDoesNotMatch" });
    client.destroy();
  },
};
