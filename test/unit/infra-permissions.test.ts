/** The rights of the functions against what their code asks for: neither less, which fails in the cloud alone, nor more. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { connectionUse, objectFolders, objectUse, policyOf, tableActions, tableUse } from "../../infra/permissions.ts";

const root = join(import.meta.dirname, "../..");

/** The commands of the SDK that files of a folder send. */
function commandsIn(folder: string): Set<string> {
  const files = readdirSync(join(root, folder)).filter((file) => file.endsWith(".ts"));
  const text = files.map((file) => readFileSync(join(root, folder, file), "utf8")).join("\n");
  return new Set([...text.matchAll(/new ([A-Z][A-Za-z]+)Command\(/g)].map(([, name]) => String(name)));
}

describe("rights", () => {
  test("the store asks for exactly what the functions may; the table itself is made by the deployment", () => {
    const sent = commandsIn("functions/store");
    for (const name of ["CreateTable", "DescribeTable"]) assert.ok(sent.delete(name), name);
    assert.deepEqual([...sent].map((name) => `dynamodb:${name}`).sort(), [...tableActions].sort());
  });

  test("the bundles' requests are covered; HEAD is a right of GetObject", () => {
    const sent = commandsIn("functions/bundle");
    assert.deepEqual([...sent].sort(), ["DeleteObject", "GetObject", "HeadObject", "PutObject"]);
    const granted = objectUse("arn:b").flatMap(({ actions }) => actions);
    assert.deepEqual(granted.toSorted(), ["s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"]);
    assert.deepEqual(objectFolders.map((folder) => `${folder}/`).sort(), ["bundles/", "cookies/"]);
  });

  test("each of the callbacks is covered by its method", () => {
    const sent = commandsIn("functions/socket");
    const methods: Record<string, string> = {
      PostToConnection: "POST",
      GetConnection: "GET",
      DeleteConnection: "DELETE",
    };
    const [connections] = connectionUse("arn:stage");
    assert.ok(sent.size > 0);
    for (const name of sent)
      assert.ok(connections?.resources.includes(`arn:stage/${methods[name]}/@connections/*`), name);
    assert.equal(connections?.resources.length, sent.size);
  });

  test("a document is what IAM reads, and keeps the reasons out", () => {
    const document: unknown = JSON.parse(policyOf(tableUse("arn:t")));
    assert.deepEqual(document, {
      Version: "2012-10-17",
      Statement: [
        { Sid: "TableItems", Effect: "Allow", Action: [...tableActions], Resource: ["arn:t"] },
        { Sid: "TableIndexes", Effect: "Allow", Action: ["dynamodb:Query"], Resource: ["arn:t/index/*"] },
      ],
    });
  });
});
