/** What every runtime has alike: WebCrypto's random bytes, the process's clock, lines of JSON, and the stores over one table. */
import type { Clock, Ids, Log, Ports } from "../ports.ts";
import { DynamoBundleTasks } from "../store/dynamo-bundle-tasks.ts";
import { DynamoChronicle } from "../store/dynamo-chronicle.ts";
import { DynamoEvacuations } from "../store/dynamo-evacuations.ts";
import { DynamoHosts } from "../store/dynamo-hosts.ts";
import { DynamoMigrations } from "../store/dynamo-migrations.ts";
import { DynamoShutdowns } from "../store/dynamo-shutdowns.ts";
import type { DynamoTable } from "../store/dynamo-table.ts";
import { DynamoTokens } from "../store/dynamo-tokens.ts";

export const clock: Clock = { now: () => new Date().toISOString() };

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

export const ids: Ids = {
  ulid() {
    let time = "";
    for (let left = Date.now(), digit = 0; digit < 10; digit += 1, left = Math.floor(left / 32))
      time = `${crockford[left % 32]}${time}`;
    // 256 is a multiple of 32, so the low five bits of a random byte are uniform.
    return time + Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => crockford[byte % 32]).join("");
  },
  secret(bytes) {
    const random = String.fromCharCode(...crypto.getRandomValues(new Uint8Array(bytes)));
    return btoa(random).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  },
};

/** A log of one JSON object in each line; `about` is asked for what belongs to each line of the moment. */
export const lineLog = (write: (line: string) => void, about: () => Record<string, unknown> = () => ({})): Log => ({
  write(level, message, fields) {
    write(JSON.stringify({ at: clock.now(), level, message, ...about(), ...fields }));
  },
});

/** The ports that are the same table everywhere. */
export const storesOf = (
  table: DynamoTable,
): Pick<Ports, "migrations" | "tasks" | "evacuations" | "chronicle" | "shutdowns" | "hosts" | "tokens"> => ({
  migrations: new DynamoMigrations(table, clock),
  tasks: new DynamoBundleTasks(table),
  evacuations: new DynamoEvacuations(table, clock),
  chronicle: new DynamoChronicle(table, ids),
  shutdowns: new DynamoShutdowns(table),
  hosts: new DynamoHosts(table),
  tokens: new DynamoTokens(table),
});
