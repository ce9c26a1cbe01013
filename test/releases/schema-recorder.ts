/**
 * Writes a release's schemas of what crosses a version boundary: messages both ways, and what is stored. As JSON Schema, so that
 * the present schemas can be held against them. It runs inside a checkout of that release (record.ts puts it there).
 *
 *   node test/releases/schema-recorder.ts FOLDER
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as z from "zod/mini";
import { bundleTaskSchema } from "#core/bundle-task";
import { migrationStateSchema } from "#core/state";
import { downMessageSchema, upMessageSchema } from "#protocol/message";

export const schemas = () =>
  Object.fromEntries(
    Object.entries({
      down: downMessageSchema,
      up: upMessageSchema,
      migration: migrationStateSchema,
      bundleTask: bundleTaskSchema,
    }).map(([name, schema]) => [
      name,
      {
        written: z.toJSONSchema(schema, { io: "output", reused: "ref" }),
        read: z.toJSONSchema(schema, { io: "input", reused: "ref" }),
      },
    ]),
  );

const [folder] = process.argv.slice(2);
if (import.meta.main && folder !== undefined)
  await writeFile(
    join(folder, "schemas.jsonl"),
    Object.entries(schemas())
      .map(([name, schema]) => `${JSON.stringify({ name, ...schema })}\n`)
      .join(""),
  );
