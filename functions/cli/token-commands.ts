/** `vmferry join-token create`: the token on stdout, alone, so that a script can take it. */
import { mintedTokenSchema } from "../http/token-resource.ts";
import type { Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";

export const createJoinToken: Run = async (context, invocation) => {
  const uses = invocation.count("uses");
  const ttlMs = invocation.durationMs("ttl");
  const client = await context.connect();
  const minted = await client.ask("/v1/join-tokens", mintedTokenSchema, {
    method: "POST",
    body: { ...(uses === undefined ? {} : { uses }), ...(ttlMs === undefined ? {} : { ttlMs }) },
  });
  if (invocation.flag("json")) context.terminal.json(minted);
  else {
    context.terminal.out(minted.token ?? "");
    context.terminal.err(
      `It enrols ${minted.usesLeft} ${minted.usesLeft === 1 ? "host" : "hosts"} until ${minted.expiresAt} and is not shown again.`,
    );
  }
  return exitCodes.ok;
};
