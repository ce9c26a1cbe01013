/** The implementations of DynamoDB that a store's cases run on: dynalite, which `vmferry up` embeds, and Amazon's DynamoDB Local, where Java is. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { openDynalite } from "#functions/cli/up-dynalite";
import { dynamoLocalSkipReason, startDynamoLocal } from "#lab/dynamodb-local";

export interface DynamoEndpoint {
  endpoint: string;
  end(): Promise<void>;
}

/** A dynalite on a folder of its own, which goes with it. */
export async function startDynalite(): Promise<DynamoEndpoint> {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-dynalite-"));
  const dynalite = await openDynalite(folder);
  const end = async () => {
    await dynalite.close();
    await rm(folder, { recursive: true });
  };
  return { endpoint: dynalite.endpoint, end };
}

/**
 * Declares a suite on each of them; what cannot run here is skipped with its reason. `started.endpoint` may be read from the suite's own `before` on.
 * Tables are the suite's to make.
 */
export async function onEachDynamo(
  what: string,
  declare: (started: { readonly endpoint: string }) => void,
): Promise<void> {
  const suite = (name: string, start: () => Promise<DynamoEndpoint>) =>
    describe(`${what} in ${name}`, () => {
      let running: DynamoEndpoint | undefined;
      before(async () => {
        running = await start();
      });
      after(() => running?.end());
      declare({
        get endpoint() {
          if (running === undefined) throw new Error(`${name} has not been started yet`);
          return running.endpoint;
        },
      });
    });
  suite("dynalite", startDynalite);
  const skip = await dynamoLocalSkipReason();
  if (skip === false) suite("DynamoDB Local", startDynamoLocal);
  else test(`${what} in DynamoDB Local`, { skip }, () => {});
}
