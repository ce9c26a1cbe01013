/** The secrets of a local control plane: made once, kept in its data folder, readable by its owner only (I9). */
import { createHash, generateKeyPairSync, randomBytes } from "node:crypto";
import { chmod, link, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

/** What every control plane has, local or deployed. */
export interface ControlSecrets {
  adminToken: string;
  adminTokenSha256: string;
  /** The control key (Ed25519, PKCS#8 DER, base64). Hosts pin its public half at enrolment, so it belongs into every backup. */
  ticketKey: string;
}

export interface UpSecrets extends ControlSecrets {
  s3: { accessKeyId: string; secretAccessKey: string };
}

/** Writes a file whole or not at all. */
export async function writeWhole(path: string, text: string): Promise<void> {
  const draft = `${path}.${process.pid}.tmp`;
  await writeFile(draft, text, { mode: 0o600 });
  await rename(draft, path);
}

/** The content of a secret's file; made when there is none. Of two makers one wins and both read the same. */
async function secretIn(path: string, make: () => string): Promise<string> {
  const draft = `${path}.${process.pid}.tmp`;
  await writeFile(draft, `${make()}\n`, { mode: 0o600 });
  await link(draft, path).catch((error: unknown) => {
    if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) throw error;
  });
  await rm(draft);
  await chmod(path, 0o600);
  return (await readFile(path, "utf8")).trim();
}

/** Opens the folder (0700) and the secrets that every control plane has. */
export async function openControlSecrets(folder: string): Promise<ControlSecrets> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await chmod(folder, 0o700);
  const adminToken = await secretIn(join(folder, "admin-token"), () => `vmk_${randomBytes(32).toString("base64url")}`);
  const ticketKey = await secretIn(join(folder, "ticket-key"), () =>
    generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "der" }).toString("base64"),
  );
  return {
    adminToken,
    adminTokenSha256: createHash("sha256").update(adminToken).digest("hex"),
    ticketKey,
  };
}

/** Opens the folder (0700) and all secrets of a local control plane. */
export async function openSecrets(folder: string): Promise<UpSecrets> {
  const control = await openControlSecrets(folder);
  const secretAccessKey = await secretIn(join(folder, "s3-key"), () => randomBytes(30).toString("base64url"));
  return { ...control, s3: { accessKeyId: "vmferry", secretAccessKey } };
}

/** Tells the client commands on this machine where the control plane is and with which token. */
export async function writeClientConfig(path: string, config: { url: string; token: string }): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  await writeWhole(path, `${JSON.stringify(config, null, 2)}\n`);
}
