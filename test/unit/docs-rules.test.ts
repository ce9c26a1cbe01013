/** What a reader copies from the pages works: each rule in them is taken as it stands. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ruleSchema } from "#core/rule";
import { readRuleFile } from "#functions/cli/rule-file";

const page = "docs/evacuations.md";

test("each rule of the page on evacuations is a rule", async () => {
  const text = await readFile(new URL(`../../${page}`, import.meta.url), "utf8");
  const blocks = [...text.matchAll(/^```yaml\n([\s\S]*?)^```$/gm)].map(([, block = ""]) => block);
  assert.ok(blocks.length >= 3, `${page} has only ${blocks.length} rules`);
  const folder = await mkdtemp(join(tmpdir(), "vmferry-docs-"));
  try {
    for (const block of blocks) {
      const file = join(folder, "rule.yml");
      await writeFile(file, block);
      const { name, document } = await readRuleFile(file);
      const read = ruleSchema.safeParse(document);
      assert.ok(read.success, `${name}: ${JSON.stringify(read.error?.issues)}`);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
});
