/**
 * `vmferry bundle export/show/restore`: the manual way, made safe. A file appears under its name only when all of it was
 * read and its digest matched; what is restored is verified before a byte is sent.
 */
import { openAsBlob } from "node:fs";
import { access, open, rename, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { BundleEntry } from "#protocol/bundle";
import { readBundle, verifyBundle } from "#protocol/bundle-reader";
import { uuidSchema } from "#protocol/command";
import { elementAt, readXml } from "#shim/xml-reader";
import { type BundleTaskResource, bundleTaskResourceSchema, uploadGrantSchema } from "../http/bundle-resource.ts";
import { CliError } from "./cli-error.ts";
import { type ApiClient, mayPass } from "./client.ts";
import { type CommandContext, type Run, usageError } from "./command.ts";
import { exitCodes, exitOf } from "./exit-code.ts";
import { treeLines } from "./snapshot-tree.ts";
import { sizeText } from "./terminal.ts";

/** Looks at a task until it ended. An unreachable control plane is asked again: the task goes on without it. */
async function waitForEnd(context: CommandContext, client: ApiClient, started: BundleTaskResource) {
  const { terminal, pace, signal } = context;
  const lostAfter = Math.ceil(pace.lostSightMs / pace.pollMs);
  let task = started;
  for (let missed = 0; task.status === "running"; ) {
    terminal.status(`${task.kind} of ${task.domain.name} on ${task.host} ...`);
    await sleep(pace.pollMs, undefined, { signal });
    try {
      task = await client.ask(`/v1/bundles/${task.id}`, bundleTaskResourceSchema);
      missed = 0;
    } catch (error) {
      missed += 1;
      if (!mayPass(error) || missed > lostAfter) throw error;
    }
  }
  terminal.status(null);
  if (task.status === "completed") return task;
  const { code, cause, action } = task.error ?? {
    code: "internal",
    cause: "The task failed without saying why.",
    action: "Look at the control plane's log.",
  };
  throw new CliError({ code, cause, action, exit: exitOf(code) });
}

export const exportBundle: Run = async (context, invocation) => {
  const { terminal } = context;
  const domain = invocation.positional("DOMAIN");
  const host = invocation.text("host");
  const file = invocation.required("output");
  const exists = await access(file).then(
    () => true,
    () => false,
  );
  if (exists) throw usageError(`${file} exists already and is not overwritten.`, invocation.words);
  const client = await context.connect();
  const started = await client.ask("/v1/bundles", bundleTaskResourceSchema, {
    method: "POST",
    body: { domain, ...(host === undefined ? {} : { host }) },
    idempotencyKey: crypto.randomUUID(),
  });
  const task = await waitForEnd(context, client, started);
  const { bundle } = task;
  if (bundle === null) throw new Error("a completed export names no bundle");
  const partial = `${file}.partial`;
  try {
    await download(await client.redirect(`/v1/bundles/${task.id}/content`), partial, bundle.bytes, context.signal);
    const { key: _, ...expected } = bundle;
    await verifyBundle(partial, expected);
    await rename(partial, file);
  } finally {
    await rm(partial, { force: true });
  }
  if (invocation.flag("json")) terminal.json({ file, ...task });
  else
    terminal.out(
      `${file}: ${bundle.snapshots} snapshots and ${bundle.checkpoints} checkpoints of ${task.domain.name}, ${sizeText(bundle.bytes)}, sha256 ${bundle.sha256}`,
    );
  return exitCodes.ok;
};

/** Downloads at most the announced bytes. The URL itself is the permission: no token goes along. */
async function download(url: string, path: string, bytesMax: number, signal: AbortSignal): Promise<void> {
  const response = await fetch(url, { signal, redirect: "error" }).catch((error: unknown) => {
    signal.throwIfAborted();
    throw bucketUnreachable(error instanceof Error ? error.message : "no answer");
  });
  if (!response.ok || response.body === null) throw bucketUnreachable(`HTTP ${response.status}`);
  const handle = await open(path, "w", 0o600);
  try {
    let bytes = 0;
    for await (const chunk of response.body) {
      bytes += chunk.byteLength;
      if (bytes > bytesMax) throw bucketUnreachable(`it sent more than the ${bytesMax} bytes that were announced`);
      await handle.write(chunk);
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

const bucketUnreachable = (why: string) =>
  new CliError({
    code: "bundle.unreachable",
    cause: `The bucket did not take or give the bundle: ${why}.`,
    action: "Try again; if it stays, look at the bucket from this machine.",
    exit: exitCodes.unavailable,
  });

export const showBundle: Run = async (context, invocation) => {
  const { terminal } = context;
  const file = invocation.positional("FILE");
  await mustRead(file);
  const entries: (Omit<BundleEntry, "xml"> & { xmlBytes: number })[] = [];
  const facts = await verifyBundle(file);
  for await (const { xml, ...entry } of readBundle(file)) entries.push({ ...entry, xmlBytes: Buffer.byteLength(xml) });
  if (invocation.flag("json")) {
    terminal.json({ file, ...facts, entries });
    return exitCodes.ok;
  }
  const domain = entries.find(({ kind }) => kind === "domain");
  terminal.out(`domain       ${domain?.name ?? "-"}`);
  terminal.out(`snapshots    ${facts.snapshots}`);
  terminal.out(`checkpoints  ${facts.checkpoints}`);
  terminal.out(`size         ${sizeText(facts.bytes)}, ${sizeText(facts.plainBytes)} unpacked`);
  terminal.out(`sha256       ${facts.sha256}`);
  terminal.out(`tree         ${facts.treeSha256}`);
  for (const kind of ["snapshot", "checkpoint"] as const) {
    const nodes = entries
      .filter((entry) => entry.kind === kind)
      .map(({ name, parent, current, xmlBytes }) => ({
        name,
        parent,
        current,
        state: sizeText(xmlBytes),
        createdAt: null,
      }));
    if (nodes.length > 0) terminal.out(`${kind}s`);
    for (const line of treeLines(nodes)) terminal.out(`  ${line}`);
  }
  return exitCodes.ok;
};

async function mustRead(file: string): Promise<void> {
  await access(file).catch((error: unknown) => {
    throw new CliError({
      code: "file.unreadable",
      cause: `${file} cannot be read: ${error instanceof Error ? error.message : "unknown"}.`,
      action: "Name a file that `vmferry bundle export` wrote.",
      exit: exitCodes.notFound,
    });
  });
}

async function domainOf(file: string): Promise<{ uuid: string; name: string }> {
  for await (const { kind, name, xml } of readBundle(file)) {
    const uuid = kind === "domain" ? uuidSchema.safeParse(elementAt(readXml(xml), "uuid")?.text) : null;
    if (uuid?.success === true) return { uuid: uuid.data, name };
    break;
  }
  throw new CliError({
    code: "bundle.malformed",
    cause: `${file} does not say which domain it is of.`,
    action: "Export the domain again.",
    exit: exitOf("bundle.malformed"),
  });
}

export const restoreBundle: Run = async (context, invocation) => {
  const { terminal } = context;
  const file = invocation.positional("FILE");
  const host = invocation.required("host");
  await mustRead(file);
  const facts = await verifyBundle(file);
  const domain = await domainOf(file);
  const client = await context.connect();
  const grant = await client.ask("/v1/bundle-uploads", uploadGrantSchema, {
    method: "POST",
    body: { sha256: facts.sha256, bytes: facts.bytes },
  });
  if (!grant.present) {
    terminal.status(`uploading ${sizeText(facts.bytes)} ...`);
    const response = await fetch(grant.url, {
      method: grant.method,
      headers: grant.headers,
      body: await openAsBlob(file),
      signal: context.signal,
      redirect: "error",
    }).catch((error: unknown) => {
      context.signal.throwIfAborted();
      throw bucketUnreachable(error instanceof Error ? error.message : "no answer");
    });
    await response.body?.cancel();
    // 412: If-None-Match says that it is there already, under its digest.
    if (!response.ok && response.status !== 412) throw bucketUnreachable(`HTTP ${response.status}`);
  }
  const started = await client.ask("/v1/bundle-restores", bundleTaskResourceSchema, {
    method: "POST",
    body: { host, domain, bundle: { ...facts, key: grant.key } },
    idempotencyKey: crypto.randomUUID(),
  });
  const task = await waitForEnd(context, client, started);
  if (invocation.flag("json")) terminal.json(task);
  else
    terminal.out(
      `${domain.name} on ${task.host}: ${facts.snapshots} snapshots and ${facts.checkpoints} checkpoints redefined and compared`,
    );
  return exitCodes.ok;
};
