/** Where the control plane is and with which token: the environment first, then the file that `vmferry up` writes. */
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import * as z from "zod/mini";
import { CliError } from "./cli-error.ts";
import { exitCodes } from "./exit-code.ts";

type Env = Readonly<Record<string, string | undefined>>;

const configSchema = z.object({ url: z.string(), token: z.string() });
export type Config = z.infer<typeof configSchema>;

/** The configuration file: $VMFERRY_CONFIG, or config.json below the user's own configuration folder. */
export const configPath = (env: Env): string =>
  env.VMFERRY_CONFIG ?? join(env.HOME ?? homedir(), ".config", "vmferry", "config.json");

const refused = (cause: string, action: string) =>
  new CliError({ code: "config.missing", cause, action, exit: exitCodes.usage });

async function fileConfig(path: string): Promise<Config | null> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw refused(
      `${path} cannot be read: ${error instanceof Error ? error.message : "unknown"}.`,
      "Mend or remove it.",
    );
  }
  try {
    return configSchema.parse(JSON.parse(text));
  } catch {
    throw refused(`${path} does not hold {"url": ..., "token": ...}.`, "Remove it and run `vmferry up` again.");
  }
}

/** Finds address and token. Throws `config.missing`, `config.malformed`. */
export async function loadConfig(env: Env): Promise<Config> {
  const path = configPath(env);
  const file = env.VMFERRY_URL !== undefined && env.VMFERRY_TOKEN !== undefined ? null : await fileConfig(path);
  const url = env.VMFERRY_URL ?? file?.url;
  // A token is only sent to the control plane that it came with.
  const token = env.VMFERRY_TOKEN ?? (file !== null && file.url === url ? file.token : undefined);
  if (url === undefined || token === undefined)
    throw refused(
      url === undefined ? `VMFERRY_URL is not set and there is no ${path}.` : `There is no token for ${url}.`,
      "Set VMFERRY_URL and VMFERRY_TOKEN, or start a control plane here: vmferry up.",
    );
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol))
    throw refused(`"${url}" is not an http or https address.`, "Set VMFERRY_URL to one.");
  return { url: url.replace(/\/+$/, ""), token };
}
