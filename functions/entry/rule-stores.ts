/** What rules keep, in the one table. */
import { DynamoDedup, DynamoRules } from "../store/dynamo-rules.ts";
import type { DynamoTable } from "../store/dynamo-table.ts";
import { clock } from "./runtime-ports.ts";

export const ruleStoresOf = (table: DynamoTable) => ({
  rules: new DynamoRules(table),
  dedup: new DynamoDedup(table, clock),
});
