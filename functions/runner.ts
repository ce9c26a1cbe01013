/**
 * The only loop: load -> transition -> commit -> dispatch. It keeps nothing between calls; what it knows is in the store.
 * Payloads are written before the state that names them, the state is one conditional write (I5), and a push that is lost is
 * repaired by redelivery on hello and heartbeat, so dispatch may fail at any point without changing what is true.
 */
import { createHash } from "node:crypto";
import type { Blob } from "#protocol/blob";
import { type Command, type CommandOf, commandSide, type DomainRef, type Report, type Side } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { SignedText } from "#protocol/signed";
import { receiptSignedText, ticketKindOf, ticketSignedText } from "#protocol/ticket";
import { stands } from "./bundle-presence.ts";
import { type BundleRequest, createBundleRunner, isBundleTask } from "./bundle-runner.ts";
import type { BundleTask } from "./core/bundle-task.ts";
import { migrationStarted, migrationStranded } from "./core/chronicle-migration.ts";
import { blobsOf, commandBody } from "./core/command-body.ts";
import type { MigrationEvent, StoredReport } from "./core/event.ts";
import { commitAttemptsMax, pageRowsMax, startMsMax } from "./core/limits.ts";
import { type MigrationRequest, newMigration } from "./core/new-migration.ts";
import { unresolvable } from "./core/resolution.ts";
import { persistentSteps } from "./core/retreat.ts";
import { type BlobName, blobNames, type MigrationState, type Pending } from "./core/state.ts";
import { ticketedKinds, ticketOf } from "./core/ticket.ts";
import { transition } from "./core/transition.ts";
import { tellEnd } from "./migration-told.ts";
import type { Ports } from "./ports.ts";
import { createTeller } from "./teller.ts";

export interface Runner {
  /** The manual way: one export or restore. Throws `Fault` `domain.busy`. */
  requestBundle(input: BundleRequest): Promise<BundleTask>;
  /** Creates the migration of that id, or goes on with it if an earlier try was cut short. Throws `Fault` `domain.busy`. */
  request(input: MigrationRequest): Promise<MigrationState>;
  /** Takes a report of a host; resolves once it is stored or known to be history: then it may be acknowledged. */
  reported(hostId: string, report: Report): Promise<void>;
  /** The commands that a host still owes a report for. */
  pendingOf(hostId: string): Promise<Command[]>;
  cancel(id: string, by: string): Promise<MigrationState>;
  /** A person's statement that the host of one side is fenced. Throws `Fault` `request.conflict` when nothing waits for it. */
  resolve(id: string, statement: { by: string; reason: string; fenced: Side }): Promise<MigrationState>;
  connectionLost(hostId: string, lost: { migrationId: string; epoch: number; cause: string }): Promise<void>;
  /** Looks after everything active once; the timer calls it each minute. Returns how many migrations were looked at. */
  tick(): Promise<number>;
  /** Whether a host may read or write this payload for this migration's pending command. Throws `Fault` otherwise. */
  authorise(hostId: string, want: { migrationId: string; commandId: string; key: string | null }): Promise<void>;
}

type Payloads = Partial<Record<BlobName, Blob>>;

/** By which the lines of one migration are found in the log, from every function. */
const placeOf = ({ id, epoch, step }: MigrationState) => ({ migration: id, epoch, step });

const notFound = (what: string) =>
  new Fault({
    code: "request.notFound",
    cause: `There is no ${what}.`,
    action: "Look at: vmferry migrations.",
    retry: "never",
  });

const contended = (id: string) =>
  new Fault({
    code: "request.conflict",
    cause: `Migration ${id} is being changed by others at this very moment.`,
    action: "Try again.",
    retry: "safe",
  });

/** Told of each migration that has ended or is stranded, at least once unless this process dies; must not reject. */
export type OnEnded = (state: MigrationState) => Promise<void>;

export function createRunner(
  ports: Ports,
  decide: typeof transition = transition,
  onEnded: OnEnded = async () => {},
): Runner {
  const { clock, migrations, sockets, feed, log } = ports;
  const bundles = createBundleRunner(ports);
  const tell = createTeller(ports);

  /** Applies an event; `null` when the migration does not exist. Loses no race: a conflict means somebody else's progress, so it loads again. */
  async function handle(id: string, event: MigrationEvent, payloads: Payloads = {}): Promise<MigrationState | null> {
    for (let attempt = 0; attempt < commitAttemptsMax; attempt++) {
      const state = await migrations.load(id);
      if (state === null) return null;
      const next = decide(state, event);
      if (next.state === state) return state;
      if ((await migrations.commit(next.state)) === "conflict") continue;
      await dispatch(next.state, next.effects, payloads);
      return next.state;
    }
    throw contended(id);
  }

  async function dispatch(
    state: MigrationState,
    effects: ReturnType<typeof transition>["effects"],
    payloads: Payloads,
  ): Promise<void> {
    log.write("info", "a migration went on", { ...placeOf(state), status: state.status });
    for (const effect of effects) {
      try {
        if (effect.type === "send") await send(state, effect.pending, payloads);
        else if (effect.type === "discard") await ports.bundles.remove(effect.key);
        else await release(state, effect.keep);
      } catch (error) {
        log.write("warn", "an effect was not dispatched; it is repaired by heartbeat or timer", {
          ...placeOf(state),
          effect: effect.type,
          error: String(error),
        });
      }
    }
    await tellStranded(state);
    await feed.publish(state.id, { type: "changed", version: state.version, state }).catch(() => {
      log.write("debug", "nobody was told of a change; watchers read the store", placeOf(state));
    });
    if (state.status === "stranded" || effects.some(({ type }) => type === "release")) await onEnded(state);
  }

  const tellStranded = (state: MigrationState) =>
    tell(migrationStranded(state)).catch((error: unknown) => {
      log.write("warn", "a stranded migration is not written down yet; the timer repeats it", {
        ...placeOf(state),
        error: String(error),
      });
    });

  async function send(state: MigrationState, pending: Pending, payloads: Payloads): Promise<void> {
    const command = await materialise(state, pending, payloads);
    await sockets.push(state[pending.side].id, { type: "command", command });
  }

  /** The command with its payloads as the treaty carries them: bytes from an item inline, bucket objects by reference. */
  async function materialise(state: MigrationState, pending: Pending, payloads: Payloads): Promise<Command> {
    const blobs: Payloads = {};
    for (const name of blobsOf(pending.kind)) {
      const stored = state.blobs[name];
      if (stored === undefined) continue;
      const known = payloads[name];
      if (known !== undefined && known.sha256 === stored.sha256) {
        blobs[name] = known;
        continue;
      }
      if (stored.in === "bucket") {
        blobs[name] = { in: "bucket", key: stored.key, sha256: stored.sha256, bytes: stored.bytes };
        continue;
      }
      const bytes = await migrations.getBlob(state.id, stored);
      if (bytes === null) throw new Error(`payload ${name} is named but absent`);
      blobs[name] = {
        in: "inline",
        base64: Buffer.from(bytes).toString("base64"),
        sha256: stored.sha256,
        bytes: stored.bytes,
      };
    }
    const command = commandBody(state, pending, blobs, await signedTicket(state, pending));
    if (command === null) throw new Error(`the state lacks what ${pending.kind} needs`);
    return command.kind === "confirm" && command.receipt.evidence === "fenced" ? signReceipt(command) : command;
  }

  /** Signing is deterministic (Ed25519), so the same state makes the same command, whenever and wherever it is made (I6). */
  async function signedTicket(state: MigrationState, pending: Pending): Promise<SignedText | null> {
    const ticket = ticketedKinds.has(pending.kind) ? ticketOf(state) : null;
    if (ticket === null) return null;
    const text = JSON.stringify(ticket);
    return { text, signature: await ports.tickets.sign(ticketSignedText(text)) };
  }

  /** A person's statement takes the place of the destination's; the source takes it by our signature only (I2). */
  async function signReceipt(command: CommandOf<"confirm">): Promise<Command> {
    const { migrationId, receipt } = command;
    const text = receiptSignedText({ migrationId, domainUuid: command.domain.uuid, receipt });
    return { ...command, receipt: { ...receipt, signature: await ports.tickets.sign(text) } };
  }

  /** Frees what an ended migration held. Each part may be repeated; the timer does so while the lock still stands, so its end is told first. */
  async function release(state: MigrationState, keep: Side | null): Promise<void> {
    await tellEnd(tell, state);
    const sides = (["source", "destination"] as const).filter((side) => side !== keep);
    await migrations.unpoint(
      sides.map((side) => state[side].id),
      state.id,
    );
    await migrations.unlockDomain(state.domain.uuid, state.id);
  }

  /** Stores a report's payloads before the state names them. */
  async function store(report: Report): Promise<{ stored: StoredReport; payloads: Payloads }> {
    const { result } = report;
    if (!result.ok) return { stored: { ...report, result }, payloads: {} };
    if (result.body.kind === "export") await stands(ports, "The bundle", result.body.bundle);
    const payloads = payloadsOf(result.body);
    const blobs: StoredReport["result"] & { ok: true } = { ok: true, body: result.body, blobs: {} };
    await Promise.all(
      blobNames.map(async (name) => {
        const blob = payloads[name];
        if (blob !== undefined) blobs.blobs[name] = await storeBlob(report.migrationId, name, blob);
      }),
    );
    return { stored: { ...report, result: blobs }, payloads };
  }

  async function storeBlob(id: string, name: BlobName, blob: Blob) {
    if (blob.in === "bucket") {
      await stands(ports, `Payload ${name}`, blob);
      return { in: "bucket" as const, key: blob.key, sha256: blob.sha256, bytes: blob.bytes };
    }
    const bytes = Buffer.from(blob.base64, "base64");
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    if (sha256 !== blob.sha256 || bytes.byteLength !== blob.bytes)
      throw new Fault({
        code: "cookie.altered",
        cause: `Payload ${name} does not have the digest it was sent with.`,
        action: "Look at what stands between the shim and the control plane.",
        retry: "safe",
      });
    return migrations.putBlob(id, name, bytes, sha256);
  }

  return {
    async request(input) {
      const fresh = newMigration(input, clock.now());
      const created = await migrations.create(fresh);
      const known = created === "committed" ? fresh : await migrations.load(input.id);
      if (known === null) throw notFound(`migration ${input.id}`);
      return start(known);
    },

    requestBundle: bundles.requestBundle,

    async reported(hostId, report) {
      if (isBundleTask(report.migrationId)) {
        await bundles.reported(hostId, report);
        return;
      }
      const state = await migrations.load(report.migrationId);
      // A report of a command that is no longer awaited is history; so is one that comes from a host it was not sent to.
      const side = state === null ? null : reporterOf(state, report.commandId);
      if (state === null || side === null || state[side].id !== hostId) return;
      const { stored, payloads } = await store(report);
      await handleLoaded(state, { type: "reported", at: clock.now(), report: stored }, payloads);
    },

    async pendingOf(hostId) {
      const commands: Command[] = [];
      for (const id of await migrations.migrationsOf(hostId)) {
        try {
          commands.push(...(await (isBundleTask(id) ? bundles.pendingOf(hostId, id) : owedTo(hostId, id))));
        } catch (error) {
          if (error instanceof Fault && error.code === "store.unreachable") throw error;
          // One migration that cannot be read must not keep the others of this host waiting.
          log.write("error", "the commands of a migration could not be made", { migration: id, error: String(error) });
        }
      }
      return commands;
    },

    async cancel(id, by) {
      for (let attempt = 0; attempt < commitAttemptsMax; attempt++) {
        const state = await migrations.load(id);
        if (state === null) throw notFound(`migration ${id}`);
        const next = decide(state, { type: "cancelRequested", at: clock.now(), by });
        if (next.state === state)
          throw new Fault({
            code: "request.conflict",
            cause: `Migration ${id} is ${state.step === "ended" ? state.status : state.step} and can no longer be cancelled.`,
            action: `Watch it to its end: vmferry migration watch ${id}.`,
            retry: "never",
          });
        if ((await migrations.commit(next.state)) === "conflict") continue;
        await dispatch(next.state, next.effects, {});
        return next.state;
      }
      throw contended(id);
    },

    async resolve(id, { by, reason, fenced }) {
      for (let attempt = 0; attempt < commitAttemptsMax; attempt++) {
        const state = await migrations.load(id);
        if (state === null) throw notFound(`migration ${id}`);
        const why = unresolvable(state, fenced);
        if (why !== null)
          throw new Fault({
            code: "request.conflict",
            cause: `Migration ${id} cannot be resolved by that: ${why}`,
            action: `Look at it: vmferry migration show ${id}.`,
            retry: "never",
          });
        const next = decide(state, { type: "resolved", at: clock.now(), by, reason, fenced });
        if ((await migrations.commit(next.state)) === "conflict") continue;
        await dispatch(next.state, next.effects, {});
        return next.state;
      }
      throw contended(id);
    },

    async connectionLost(hostId, lost) {
      const state = await migrations.load(lost.migrationId);
      if (state === null || state.destination.id !== hostId) return;
      await handleLoaded(state, { type: "connectionLost", at: clock.now(), epoch: lost.epoch, cause: lost.cause }, {});
    },

    async tick() {
      const held = await migrations.activeMigrations();
      for (const { migrationId, domainUuid } of held)
        await guarded(migrationId, () =>
          isBundleTask(migrationId) ? bundles.look(migrationId, domainUuid) : look(migrationId, domainUuid),
        );
      const known = new Set(held.map(({ migrationId }) => migrationId));
      for (const id of await cutShort(known)) await guarded(id, () => startAgain(id));
      return held.length;
    },

    async authorise(hostId, want) {
      if (isBundleTask(want.migrationId) && (await bundles.authorised(hostId, want))) return;
      const state = isBundleTask(want.migrationId) ? null : await migrations.load(want.migrationId);
      const side = state === null ? null : reporterOf(state, want.commandId);
      const mine = state !== null && side !== null && state[side].id === hostId;
      const named = want.key === null || (state !== null && namesKey(state, want.key));
      if (mine && named) return;
      throw new Fault({
        code: "request.forbidden",
        cause: "The migration does not await this command of this host, or does not name this object.",
        action: "Nothing to do if the migration has ended or moved on; otherwise report it as a defect.",
        retry: "never",
      });
    },
  };

  async function owedTo(hostId: string, id: string): Promise<Command[]> {
    const state = await migrations.load(id);
    if (state === null) return [];
    if (state.step === "ended") {
      await tellEnd(tell, state);
      await migrations.unpoint([hostId], id);
      return [];
    }
    const mine = state.pending.filter((pending) => state[pending.side].id === hostId);
    return Promise.all(mine.map((pending) => materialise(state, pending, {})));
  }

  /** Lock, pointers, first command: each may be repeated, so a start that was cut short is started again by whoever finds it. */
  async function start(known: MigrationState): Promise<MigrationState> {
    if (known.step === "ended" || known.pending.length > 0) return known;
    const at = clock.now();
    const locked = await migrations.lockDomain({
      domainUuid: known.domain.uuid,
      migrationId: known.id,
      source: known.source.id,
      destination: known.destination.id,
    });
    if (!locked) {
      const fault = await busy(known.domain);
      // It holds no lock by which the timer would find it: its host does, should its end not be told now.
      await migrations.point([known.source.id], known.id);
      await handleLoaded(known, { type: "refused", at, fault: fault.toBody() }, {});
      throw fault;
    }
    const hosts = [known.source.id, known.destination.id];
    await Promise.all([tell(migrationStarted(known)), migrations.point(hosts, known.id)]);
    return (await handleLoaded(known, { type: "requested", at }, {})) ?? known;
  }

  /** As `handle`, but spares the load when the caller has just made it; one request less in each step. */
  async function handleLoaded(state: MigrationState, event: MigrationEvent, payloads: Payloads) {
    const next = decide(state, event);
    if (next.state === state) return state;
    if ((await migrations.commit(next.state)) === "conflict") return handle(state.id, event, payloads);
    await dispatch(next.state, next.effects, payloads);
    return next.state;
  }

  async function guarded(migrationId: string, act: () => Promise<unknown>): Promise<void> {
    try {
      await act();
    } catch (error) {
      log.write("error", "the timer could not look after a migration", {
        migration: migrationId,
        error: String(error),
      });
    }
  }

  /** Migrations that were created and hold no lock: their request died in between, or is under way at this moment. */
  async function cutShort(held: ReadonlySet<string>): Promise<string[]> {
    const { items } = await migrations.list({ limit: pageRowsMax, cursor: null, active: true });
    const until = Date.parse(clock.now()) - startMsMax;
    return items.flatMap(({ id, createdAt }) => (!held.has(id) && Date.parse(createdAt) < until ? [id] : []));
  }

  async function startAgain(id: string): Promise<void> {
    const state = await migrations.load(id);
    if (state === null || state.step === "ended" || state.pending.length > 0) return;
    await start(state).catch((error: unknown) => {
      // Refused because another migration holds the domain: it has ended as that.
      if (!(error instanceof Fault && error.code === "domain.busy")) throw error;
    });
  }

  async function look(migrationId: string, domainUuid: string): Promise<void> {
    const state = await migrations.load(migrationId);
    if (state === null) {
      await migrations.unlockDomain(domainUuid, migrationId);
      return;
    }
    if (state.step === "ended") return release(state, null);
    if (state.step === "sweeping") return release(state, state.fenced?.side ?? null);
    if (state.pending.length === 0 && state.step === "inspectingSource") {
      await start(state);
      return;
    }
    await tellStranded(state);
    const at = clock.now();
    const unreachable: ("source" | "destination")[] = [];
    for (const side of ["source", "destination"] as const) {
      const host = await ports.hosts.byId(state[side].id);
      const seen = host?.lastSeenAt ?? null;
      if (seen === null || Date.parse(at) - Date.parse(seen) > ports.pace.offlineAfterMs) unreachable.push(side);
    }
    const seen = state.step === "performing" ? await sockets.progress(state.source.id, state.id) : null;
    await handleLoaded(state, { type: "ticked", at, unreachable, elapsedMs: seen?.elapsedMs ?? null }, {});
  }

  async function busy(domain: DomainRef): Promise<Fault> {
    const holder = await migrations.domainLock(domain.uuid);
    return new Fault({
      code: "domain.busy",
      cause: `Domain ${domain.name} is already being worked on${holder === null ? "" : ` by ${holder.migrationId}`}.`,
      action: holder === null ? "Try again." : `Watch it: vmferry migration watch ${holder.migrationId}.`,
      retry: "safe",
    });
  }
}

/** Which side may report that command: the one it was sent to, or the one that makes it by its ticket. */
function reporterOf(state: MigrationState, commandId: string): Side | null {
  const byTicket = ticketKindOf(commandId);
  if (byTicket !== null) return state.step === "ended" ? null : commandSide[byTicket];
  const pending = state.pending.find((candidate) => candidate.id === commandId);
  if (pending !== undefined) return pending.side;
  // An earlier try of what is still being tried: whether it counts is the transition's to say.
  const awaited = persistentSteps[state.step];
  return awaited !== undefined && commandId.split(":")[1] === awaited ? commandSide[awaited] : null;
}

function namesKey(state: MigrationState, key: string): boolean {
  if (state.bundle?.key === key) return true;
  return blobNames.some((name) => state.blobs[name]?.key === key);
}

/** The payloads of a report under the names that the state gives them. */
function payloadsOf(body: Extract<Report["result"], { ok: true }>["body"]): Payloads {
  switch (body.kind) {
    case "inspectSource":
      return { facts: body.facts };
    case "begin":
      return { A: body.cookie, xml: body.xml };
    case "prepare":
      return { B: body.cookie };
    case "perform":
      return {
        ...(body.cookie === null ? {} : { C: body.cookie }),
        ...(body.ended?.cookie == null ? {} : { D: body.ended.cookie }),
      };
    case "finish":
      return body.cookie === null ? {} : { D: body.cookie };
    default:
      return {};
  }
}
