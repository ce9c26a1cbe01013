/**
 * `vmferry cloud init`: what a deployment needs before it and after it. Without --url it makes the stage's secrets once, keeps them in a folder of
 * this machine (0700, for the backup) and hands them to SST; with --url it proves that the deployed control plane answers to them, writes the
 * configuration for the other commands and prints the line that joins a host. Each may be repeated; a secret is never made anew.
 */
import { spawn } from "node:child_process";
import { homedir } from "node:os";
import { join } from "node:path";
import { stageOf } from "../../infra/stage.ts";
import { mintedTokenSchema } from "../http/token-resource.ts";
import { CliError } from "./cli-error.ts";
import { ApiClient } from "./client.ts";
import { type CommandContext, type Invocation, type Run, usageError } from "./command.ts";
import { configPath } from "./config.ts";
import { exitCodes } from "./exit-code.ts";
import { openControlSecrets, writeClientConfig, writeWhole } from "./up-secrets.ts";

export const cloudInit: Run = async (context, invocation) => {
  const stage = invocation.required("stage");
  try {
    // The deployment's own rule, which also makes it safe as a folder's name.
    stageOf(stage);
  } catch (error) {
    throw usageError(error instanceof Error ? error.message : "This is no stage's name.", invocation.words);
  }
  const folder = invocation.text("dir") ?? join(context.env.HOME ?? homedir(), ".config", "vmferry", "stages", stage);
  const url = invocation.text("url");
  return url === undefined ? prepare(context, invocation, { stage, folder }) : joinCommand(context, url, folder);
};

async function prepare(
  { terminal, env }: CommandContext,
  invocation: Invocation,
  { stage, folder }: { stage: string; folder: string },
): Promise<number> {
  const secrets = await openControlSecrets(folder);
  const path = join(folder, "secrets.env");
  await writeWhole(path, `AdminTokenSha256=${secrets.adminTokenSha256}\nTicketKey=${secrets.ticketKey}\n`);
  terminal.err(
    `The secrets of stage ${stage} are in ${folder}. Back it up: hosts keep the public half of its ticket-key for good.`,
  );
  const load = ["sst", "secret", "load", path, "--stage", stage];
  if (invocation.flag("set")) await run("npx", load, env);
  const next = invocation.flag("set") ? [] : [`npx ${load.join(" ")}`];
  for (const line of [
    ...next,
    `npx sst deploy --stage ${stage}`,
    `vmferry cloud init --stage ${stage}${invocation.text("dir") === undefined ? "" : ` --dir ${folder}`} --url URL   # the url that the deployment prints`,
  ])
    terminal.out(line);
  return exitCodes.ok;
}

async function joinCommand({ terminal, env, signal }: CommandContext, given: string, folder: string): Promise<number> {
  const url = given.replace(/\/+$/, "");
  if (!URL.canParse(url) || new URL(url).protocol !== "https:")
    if (!/^http:\/\/(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$/.test(url))
      throw new CliError({
        code: "usage",
        cause: `"${given}" is not an https address; the admin token would travel in clear.`,
        action: "Give the url that `npx sst deploy` printed.",
        exit: exitCodes.usage,
      });
  const { adminToken } = await openControlSecrets(folder);
  const client = new ApiClient({ url, token: adminToken }, signal);
  const minted = await client
    .ask("/v1/join-tokens", mintedTokenSchema, { method: "POST", body: {} })
    .catch((error: unknown) => {
      if (error instanceof CliError && error.code === "request.unauthorised")
        throw new CliError({
          code: error.code,
          cause: `The control plane at ${url} does not know the admin token in ${folder}.`,
          action: "Load the secrets of this stage (vmferry cloud init without --url prints how) and deploy again.",
          exit: error.exit,
        });
      throw error;
    });
  await writeClientConfig(configPath(env), { url, token: adminToken });
  terminal.err(`${url} answers. The commands on this machine use it from now on (${configPath(env)}).`);
  terminal.err("On a host, as root (the token is good once and for a day; more: vmferry join-token create):");
  terminal.out(`vmferry shim --url ${url} --join ${minted.token ?? ""}`);
  return exitCodes.ok;
}

/** Runs a program with our own terminal. Throws `CliError` when it cannot be run or says no. */
async function run(file: string, words: readonly string[], env: CommandContext["env"]): Promise<void> {
  const child = spawn(file, words, { stdio: ["inherit", "inherit", "inherit"], env: { ...env } });
  const code = await new Promise<number | string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("exit", (exit, signal) => resolve(exit ?? signal ?? "ended"));
  });
  if (code !== 0)
    throw new CliError({
      code: "cloud.secretsNotSet",
      cause: `\`${[file, ...words].join(" ")}\` did not succeed (${code}).`,
      action:
        "Run it by hand; the secrets are kept and stay the same. Cloud credentials are read from the environment (AWS_PROFILE, CLOUDFLARE_API_TOKEN).",
      exit: exitCodes.unavailable,
    });
}
