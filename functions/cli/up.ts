/**
 * `vmferry up`: the control plane on this machine. workerd (through miniflare) serves the same Worker as the edge does;
 * DynamoDB is embedded in this process, objects are kept by workerd and reached through the S3 face on the one port.
 * Everything is kept in the data folder, so a stop, also by kill -9, loses nothing that was answered.
 */
import { createHash } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { createServer } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { Log, LogLevel, Miniflare } from "miniflare";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { Fault } from "#protocol/fault";
import { CliError } from "./cli-error.ts";
import { configPath } from "./config.ts";
import { exitCodes } from "./exit-code.ts";
import { type EmbeddedDynamo, openDynalite } from "./up-dynalite.ts";
import { endOrphan, holdFolder, writeRuntimeLauncher } from "./up-process.ts";
import { openSecrets, type UpSecrets, writeClientConfig } from "./up-secrets.ts";
import { sweepHourly } from "./up-sweep.ts";
import { workerdPath, workerScript } from "./up-worker.ts";

/** The newest date that this build of workerd knows is 2026-08-06; a later one would stop it. */
const compatibilityDate = "2026-08-01";
/** The timer of the functions: a cron of one minute, as on the edge. */
const timerMsDefault = 60_000;
const table = "vmferry";
const bucket = "vmferry";
const region = "us-east-1";

export interface UpOptions {
  /** ADDR:PORT; port 0 takes a free one. Default 127.0.0.1:8787. */
  listen?: string;
  /** Default /var/lib/vmferry for root, else ~/.local/share/vmferry. */
  dataDir?: string;
  /** Another DynamoDB endpoint instead of the embedded one. Keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. */
  dynamodb?: string;
  /** Another S3 endpoint instead of the embedded one. */
  s3?: string;
  timerMs?: number;
  env?: Readonly<Record<string, string | undefined>>;
  out(line: string): void;
  err(line: string): void;
}

export interface Up {
  url: string;
  folder: string;
  /** Ends everything; what was answered is on disk. */
  close(): Promise<void>;
}

/** Runs until `signal` is aborted; resolves to the exit code. Throws `CliError` when it cannot start. */
export async function runUp(options: UpOptions & { signal: AbortSignal }): Promise<number> {
  const { signal, out } = options;
  const up = await startUp(options);
  out(`vmferry: ready on ${up.url}`);
  if (!signal.aborted)
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  await up.close();
  out("vmferry: stopped");
  return exitCodes.ok;
}

/** Starts everything and returns once it serves. Throws `CliError` and leaves nothing running when it cannot. */
export async function startUp(options: UpOptions): Promise<Up> {
  const env = options.env ?? process.env;
  const listen = addressOf(options.listen ?? "127.0.0.1:8787");
  const folder = options.dataDir ?? defaultFolder(env);
  // What was opened is closed in reverse, whether by `close` or because a later part failed.
  const opened: (() => Promise<unknown>)[] = [];
  const close = async () => {
    for (let end = opened.pop(); end !== undefined; end = opened.pop()) await end();
  };
  try {
    const secrets = await openSecrets(folder);
    opened.push(await holdFolder(folder));
    await endOrphan(folder);
    await refuseBusyPort(listen);
    const dynamo = await openStore(options, env, folder);
    opened.push(dynamo.close);
    // Another store than the embedded one is its owner's to sweep.
    if (options.dynamodb === undefined) opened.push(sweepStore(dynamo, options.err));
    const { url, tick, dispose } = await openWorker({ ...options, env, listen, folder, secrets, dynamo });
    opened.push(dispose);
    const timer = setInterval(() => void tick(), options.timerMs ?? timerMsDefault);
    opened.push(async () => clearInterval(timer));
    // What was overdue while nobody looked is found at once.
    await tick();
    await writeClientConfig(configPath(env), { url, token: secrets.adminToken });
    return { url, folder, close };
  } catch (error) {
    await close();
    if (error instanceof Fault)
      throw new CliError({ code: error.code, cause: error.cause_, action: error.action, exit: exitCodes.unavailable });
    throw error;
  }
}

const defaultFolder = (env: Readonly<Record<string, string | undefined>>) =>
  process.getuid?.() === 0
    ? "/var/lib/vmferry"
    : join(env.XDG_DATA_HOME ?? join(env.HOME ?? homedir(), ".local", "share"), "vmferry");

interface Address {
  host: string;
  port: number;
}

function addressOf(text: string): Address {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535)
    throw new CliError({
      code: "usage",
      cause: `"${text}" is not an address with a port.`,
      action: "Give --listen like 127.0.0.1:8787, 0.0.0.0:8787 or [::1]:8787.",
      exit: exitCodes.usage,
    });
  return { host: match[1] ?? match[2] ?? "127.0.0.1", port };
}

/** Asked before workerd is: its own refusal comes late and says less. */
async function refuseBusyPort({ host, port }: Address): Promise<void> {
  if (port === 0) return;
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: Error & { code?: string }) => {
      const busy = error.code === "EADDRINUSE";
      reject(
        new CliError({
          code: busy ? "up.portBusy" : "up.addressRefused",
          cause: busy
            ? `Something else listens on ${host}:${port} already.`
            : `The system does not let us listen on ${host}:${port}: ${error.message}.`,
          action: busy
            ? `See who: ss -ltnp 'sport = :${port}'. Stop it, or choose another port with --listen ${host}:PORT.`
            : "Choose an address of this machine and a free port with --listen ADDR:PORT.",
          exit: exitCodes.unavailable,
        }),
      );
    });
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve()));
  });
}

type Env = Readonly<Record<string, string | undefined>>;
interface Store extends EmbeddedDynamo {
  credentials: { accessKeyId: string; secretAccessKey: string };
}

async function openStore(options: UpOptions, env: Env, folder: string): Promise<Store> {
  const credentials = {
    accessKeyId: env.AWS_ACCESS_KEY_ID ?? "local",
    secretAccessKey: env.AWS_SECRET_ACCESS_KEY ?? "local",
  };
  const path = join(folder, "dynamodb");
  if (options.dynamodb === undefined) await mkdir(path, { recursive: true, mode: 0o700 });
  const opened: EmbeddedDynamo =
    options.dynamodb === undefined
      ? await openDynalite(path)
      : { endpoint: options.dynamodb, close: async () => undefined };
  try {
    const client = createDynamoClient({ region, endpoint: opened.endpoint, credentials });
    await createTable(client, table);
    client.destroy();
  } catch (error) {
    await opened.close();
    throw error;
  }
  return { ...opened, credentials };
}

function sweepStore({ endpoint, credentials }: Store, err: UpOptions["err"]): () => Promise<unknown> {
  const client = createDynamoClient({ region, endpoint, credentials });
  const end = sweepHourly(new DynamoTable(client, table), (error) =>
    err(`vmferry: what is too old could not be removed from the store: ${String(error)}`),
  );
  return () => end().finally(() => client.destroy());
}

interface WorkerOptions extends Omit<UpOptions, "listen" | "env"> {
  env: Env;
  listen: Address;
  folder: string;
  secrets: UpSecrets;
  dynamo: Store;
}

async function openWorker(options: WorkerOptions) {
  const { listen, folder, secrets, dynamo, err } = options;
  process.env.MINIFLARE_WORKERD_PATH = await writeRuntimeLauncher(folder, workerdPath());
  // An external S3 may have keys of its own; the face always has ours.
  const ownS3Keys = options.s3 !== undefined && options.env.AWS_ACCESS_KEY_ID !== undefined;
  const s3Keys = ownS3Keys ? dynamo.credentials : secrets.s3;
  const keepSignals = signalsKept();
  const miniflare = new Miniflare({
    // Part of the file names of the objects' storage: without it a restart would not find them.
    name: "vmferry",
    // Else it asks a public address for what a request's `cf` should hold.
    cf: false,
    // miniflare's own door stays on loopback and unknown: it compresses, quotes stack traces and serves buckets to anybody
    // (/cdn-cgi/...). Ours leads into the Worker and nowhere else.
    host: "127.0.0.1",
    port: 0,
    unsafeDirectSockets: [{ host: listen.host, port: listen.port }],
    log: new Log(LogLevel.ERROR),
    handleRuntimeStdio(stdout: Readable, stderr: Readable) {
      for (const stream of [stdout, stderr]) lines(stream, err);
    },
    modules: [{ type: "ESModule", path: "worker.mjs", contents: await workerScript() }],
    compatibilityDate,
    compatibilityFlags: ["nodejs_compat"],
    durableObjects: {
      HOST_SOCKET: { className: "HostSocket", useSQLite: true },
      MIGRATION_FEED: { className: "MigrationFeed", useSQLite: true },
      WEBHOOK_BELL: { className: "WebhookBell", useSQLite: true },
    },
    durableObjectsPersist: join(folder, "objects"),
    // The name is all that guards a bucket at miniflare's own door, so nobody can guess it.
    r2Buckets: { OBJECTS: bucketId(secrets) },
    r2Persist: join(folder, "bucket"),
    bindings: {
      TABLE: table,
      BUCKET: bucket,
      REGION: region,
      ACCESS_KEY_ID: dynamo.credentials.accessKeyId,
      SECRET_ACCESS_KEY: dynamo.credentials.secretAccessKey,
      DYNAMODB_ENDPOINT: dynamo.endpoint,
      S3_ACCESS_KEY_ID: s3Keys.accessKeyId,
      S3_SECRET_ACCESS_KEY: s3Keys.secretAccessKey,
      ADMIN_TOKEN_SHA256: secrets.adminTokenSha256,
      TICKET_KEY: secrets.ticketKey,
      // Receivers stand beside it: what asks from this machine reaches no more than its owner does.
      WEBHOOK_TARGETS: options.env.VMFERRY_WEBHOOK_TARGETS ?? "private",
      ...(options.s3 === undefined ? {} : { S3_ENDPOINT: options.s3 }),
    },
  });
  keepSignals();
  try {
    await miniflare.ready;
    const ready = await miniflare.unsafeGetDirectURL("vmferry");
    return {
      url: reachable(ready),
      dispose: () => miniflare.dispose(),
      async tick() {
        try {
          const worker = await miniflare.getWorker();
          await worker.scheduled({ cron: "* * * * *", scheduledTime: new Date() });
        } catch (error) {
          err(`vmferry: the timer could not run: ${error instanceof Error ? error.message : String(error)}`);
        }
      },
    };
  } catch (error) {
    await miniflare.dispose().catch(() => {});
    throw error;
  }
}

const bucketId = ({ s3 }: UpSecrets) =>
  createHash("sha256").update(`vmferry bucket ${s3.secretAccessKey}`).digest("hex").slice(0, 32);

/** miniflare ends the process by itself at SIGINT and SIGTERM; we end our store and our lock first. Its `exit` hook stays. */
function signalsKept(): () => void {
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  const before = new Map(signals.map((signal) => [signal, process.listeners(signal)]));
  return () => {
    for (const [signal, listeners] of before)
      for (const listener of process.listeners(signal))
        if (!listeners.includes(listener)) process.removeListener(signal, listener);
  };
}

/** The address for clients on this machine: a wildcard is no address to call. */
function reachable(url: URL): string {
  const host =
    url.hostname === "0.0.0.0" || url.hostname === "[::]" || url.hostname === "*" ? "127.0.0.1" : url.hostname;
  return `${url.protocol}//${host}:${url.port}`;
}

/** Longer lines are cut: workerd's own messages may quote much. */
const lineCharsMax = 4_000;

function lines(stream: Readable, write: (line: string) => void): void {
  let text = "";
  stream.setEncoding("utf8").on("data", (chunk: string | Buffer) => {
    text += chunk.toString();
    const whole = text.split("\n");
    text = (whole.pop() ?? "").slice(-lineCharsMax);
    for (const line of whole) if (line.trim() !== "") write(line.slice(0, lineCharsMax));
  });
}
