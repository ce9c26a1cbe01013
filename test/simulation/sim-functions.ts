/**
 * The control plane: the real runner and session over a simulated store. Every message, every minute and every wish of a
 * person is an invocation of its own, which may die at any of its writes; they overlap as they happen to.
 */
import type { MigrationState } from "#core/state";
import type { transition } from "#core/transition";
import { type Chronicle, type MigrationStore, type Ports, paceOf } from "#functions/ports";
import { createRunner, type Runner } from "#functions/runner";
import { receive } from "#functions/session";
import { Fault } from "#protocol/fault";
import { heartbeatMs } from "#protocol/limits";
import type { Progress, UpMessage } from "#protocol/message";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { MemoryShutdowns } from "#test/fake/memory-shutdowns";
import {
  MemoryBundleTasks,
  MemoryEvacuations,
  MemoryHosts,
  MemoryMigrations,
  MemoryTokens,
} from "#test/fake/memory-store";
import { type SideName, sides } from "./fault-plan.ts";
import type { SimBucket } from "./sim-bundles.ts";
import { hosts, sideOf, ticketSigner } from "./sim-keys.ts";
import type { FunctionsEnd, Network } from "./sim-network.ts";
import type { Witness } from "./witness.ts";
import { Life, type World } from "./world.ts";

export interface FunctionsMutation {
  decide?: typeof transition;
  ports?: (ports: Ports) => Ports;
  receive?: typeof receive;
}

const tickMs = 60_000;
const silent = { write() {} };

export class SimFunctions implements FunctionsEnd {
  readonly #world: World;
  readonly #network: Network;
  readonly #bucket: SimBucket;
  readonly #witness: Witness;
  readonly #mutate: FunctionsMutation;
  readonly store: MemoryMigrations;
  readonly #hosts = new MemoryHosts();
  readonly #tasks = new MemoryBundleTasks();
  readonly #evacuations: MemoryEvacuations;
  readonly chronicle: MemoryChronicle;
  readonly #tokens = new MemoryTokens();
  readonly #progress = new Map<string, Progress>();
  #newest: MigrationState | null = null;
  #ulids = 0;
  /** What the store holds beside the migration: locks and pointers. */
  readonly held = new Set<string>();
  isUp = true;

  constructor(parts: {
    world: World;
    network: Network;
    bucket: SimBucket;
    witness: Witness;
    mutate: FunctionsMutation;
  }) {
    this.#world = parts.world;
    this.#network = parts.network;
    this.#bucket = parts.bucket;
    this.#witness = parts.witness;
    this.#mutate = parts.mutate;
    this.store = new MemoryMigrations({ now: () => this.#world.time.now() });
    this.#evacuations = new MemoryEvacuations({ now: () => this.#world.time.now() });
    this.chronicle = new MemoryChronicle(positionsBy({ now: () => this.#world.time.now() }));
    this.#world.onHeal(() => {
      this.isUp = true;
    });
  }

  async begin(): Promise<void> {
    for (const side of sides)
      await this.#hosts.create({
        ...hosts[side],
        cordoned: false,
        enrolledAt: this.#world.time.now(),
        lastSeenAt: this.#world.time.now(),
        protocol: 1,
        features: [],
        facts: null,
      });
    this.#tick();
  }

  /** The control plane is gone for a while, with everything that runs in it and every socket. */
  awayFor(ms: number): void {
    if (!this.isUp) return;
    this.isUp = false;
    this.#world.note("functions are away");
    for (const side of sides) this.#network.cutSocket(side);
    this.#world.time.after(ms, () => {
      this.isUp = true;
    });
  }

  received(side: SideName, message: UpMessage): void {
    if (message.type === "progress") this.#progress.set(`${side} ${message.migrationId}`, message.progress);
    else this.#receive(side, message);
  }

  /** As after hello: what the host still owes is sent again. */
  connected(side: SideName): void {
    this.#receive(side, { type: "heartbeat" });
  }

  #receive(side: SideName, message: UpMessage): void {
    const session = { hostId: hosts[side].id, nonce: "n", publicUrl: "http://functions", session: "s" };
    this.invoke(async (runner, ports) => {
      const { replies } = await (this.#mutate.receive ?? receive)(ports, runner, session, message);
      for (const reply of replies) {
        if (reply.type === "command") this.#witness.commanded(reply.command);
        this.#network.down(side, reply);
      }
    });
  }

  /** Runs something in an instance of its own. What fails in it is its end; nothing is kept. */
  invoke(use: (runner: Runner, ports: Ports) => Promise<unknown>): void {
    if (!this.isUp) return;
    const life = new Life("functions");
    const wanted = this.#ports(life);
    const ports = this.#mutate.ports?.(wanted) ?? wanted;
    use(createRunner(ports, this.#mutate.decide), ports).catch((error: unknown) => {
      if (!(error instanceof Fault))
        this.#world.violate("defect", `an instance of the functions ended in ${String(error)}`);
      else this.#world.note(`functions: ${error.message}`);
    });
  }

  #tick(): void {
    this.#world.time.after(tickMs, () => {
      this.invoke((runner) => runner.tick());
      this.#tick();
    });
  }

  #ports(life: Life): Ports {
    const world = this.#world;
    return {
      clock: { now: () => world.time.now() },
      ids: {
        ulid: () => {
          this.#ulids += 1;
          return `01JD${String(this.#ulids).padStart(22, "0")}`;
        },
        secret: (bytes) => "s".repeat(bytes),
      },
      migrations: this.#migrations(life),
      tasks: this.#tasks,
      evacuations: this.#evacuations,
      chronicle: this.#chronicle(life),
      shutdowns: new MemoryShutdowns(),
      hosts: this.#hosts,
      tokens: this.#tokens,
      bundles: this.#bucket.asPort(),
      sockets: {
        push: async (hostId, message) => {
          if (!life.isAlive) return false;
          if (message.type === "command") this.#witness.commanded(message.command);
          return this.#network.down(sideOf(hostId), message);
        },
        query: async () => null,
        progress: async (hostId, id) => this.#progress.get(`${sideOf(hostId)} ${id}`) ?? null,
        drop: async () => {},
      },
      feed: { publish: async () => {}, subscribe: async function* () {} },
      tickets: ticketSigner,
      pace: paceOf(heartbeatMs),
      log: silent,
    };
  }

  /** Keeps account of what is held, by whom. */
  async #holding<T>(holds: boolean, what: readonly string[], id: string, act: () => Promise<T>): Promise<T> {
    const result = await act();
    if (result !== false)
      for (const each of what) holds ? this.held.add(`${each} ${id}`) : this.held.delete(`${each} ${id}`);
    return result;
  }

  /** Writes are crossings; reads are strongly consistent and at once. */
  #writes(life: Life) {
    const world = this.#world;
    return async <T>(what: string, act: () => Promise<T>): Promise<T> => {
      let isAmbiguous = false;
      const done = await world.cross<Promise<T>>({
        life,
        point: { class: "store", actor: "functions", what },
        takesMs: [1, 12],
        faulted: (kinds) => {
          if (kinds.has("throttled")) return Promise.reject(unreachable("it is throttled"));
          isAmbiguous = kinds.has("ambiguous");
          return null;
        },
        act: () => {
          const done = act();
          if (isAmbiguous) throw unreachable("nobody knows whether it was written");
          return done;
        },
      });
      return done;
    };
  }

  #chronicle(life: Life): Chronicle {
    const { chronicle } = this;
    const write = this.#writes(life);
    return {
      append: (event) => write(`event ${event.type}`, () => chronicle.append(event)),
      find: (id) => chronicle.find(id),
      after: (page) => chronicle.after(page),
      before: (page) => chronicle.before(page),
    };
  }

  #migrations(life: Life): MigrationStore {
    const { store } = this;
    const world = this.#world;
    const write = this.#writes(life);
    return {
      create: (state) =>
        write("create", async () => {
          const result = await store.create(state);
          if (result === "committed") this.#witness.committed(state);
          return result;
        }),
      commit: (state) =>
        write(`commit ${state.step}`, async () => {
          const result = await store.commit(state);
          if (result === "committed") {
            world.note(
              `state v${state.version} e${state.epoch} ${state.status} ${state.step}: ${state.timeline.at(-1)?.note}`,
            );
            this.#witness.committed(state);
            this.#newest = await store.load(state.id);
          }
          return result;
        }),
      // One copy for each write and not for each read: transitions do not change what they are given.
      load: async (id) => (this.#newest?.id === id ? this.#newest : store.load(id)),
      list: (page) => store.list(page),
      putBlob: (id, name, bytes, sha256) => write(`blob ${name}`, () => store.putBlob(id, name, bytes, sha256)),
      getBlob: (id, blob) => store.getBlob(id, blob),
      lockDomain: (lock) =>
        write("lock", () => this.#holding(true, ["lock"], lock.migrationId, () => store.lockDomain(lock))),
      domainLock: (uuid) => store.domainLock(uuid),
      unlockDomain: (uuid, id) =>
        write("unlock", () => this.#holding(false, ["lock"], id, () => store.unlockDomain(uuid, id))),
      activeMigrations: () => store.activeMigrations(),
      point: (ids, id) => write("point", () => this.#holding(true, ids, id, () => store.point(ids, id))),
      unpoint: (ids, id) => write("unpoint", () => this.#holding(false, ids, id, () => store.unpoint(ids, id))),
      migrationsOf: (id) => store.migrationsOf(id),
      bindKey: (key) => store.bindKey(key),
    };
  }
}

const unreachable = (why: string) =>
  new Fault({ code: "store.unreachable", cause: `The store: ${why}.`, action: "Try again.", retry: "safe" });
