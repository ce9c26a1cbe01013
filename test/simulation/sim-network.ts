/**
 * The ways between the actors: websockets between the shims and the functions, and the peer channel between the shims.
 * What is sent may be lost, repeated, late or out of order; a socket may be cut, and comes back when its shim dials again.
 */

import { Fault } from "#protocol/fault";
import type { DownMessage, UpMessage } from "#protocol/message";
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import type { OwnKind, SideName } from "./fault-plan.ts";
import { type Life, never, type World } from "./world.ts";

/** What a shim is to the network. */
export interface ShimEnd {
  readonly life: Life;
  received(message: DownMessage): void;
  connected(): void;
  answer(peerKey: string, request: PeerRequest): Promise<PeerReply>;
}

/** What the functions are to the network. */
export interface FunctionsEnd {
  readonly isUp: boolean;
  received(side: SideName, message: UpMessage): void;
  connected(side: SideName): void;
}

const redialMs = [200, 4_000] as const;
const wayMs = [1, 25] as const;

export class Network {
  readonly #world: World;
  readonly shims: Record<SideName, ShimEnd | null> = { source: null, destination: null };
  functions: FunctionsEnd | null = null;
  /** Rises with each socket of a side; 0 and even numbers: none is open. */
  readonly #sockets: Record<SideName, number> = { source: 0, destination: 0 };
  isPeerCut = false;

  constructor(world: World) {
    this.#world = world;
    world.onHeal(() => {
      this.isPeerCut = false;
    });
  }

  isOpen(side: SideName): boolean {
    return this.#sockets[side] % 2 === 1;
  }

  /** A shim dials until it has a session. */
  dial(side: SideName, shim: ShimEnd): void {
    const { chance, time } = this.#world;
    time.after(chance.between(redialMs[0], redialMs[1]), () => {
      if (!shim.life.isAlive || this.shims[side] !== shim || this.isOpen(side)) return;
      if (this.functions?.isUp !== true) {
        this.dial(side, shim);
        return;
      }
      this.#sockets[side] += 1;
      this.#world.note(`${side} session opens`);
      shim.connected();
      this.functions.connected(side);
    });
  }

  cutSocket(side: SideName): void {
    if (!this.isOpen(side)) return;
    this.#sockets[side] += 1;
    this.#world.note(`${side} session ends`);
    const shim = this.shims[side];
    if (shim?.life.isAlive === true) this.dial(side, shim);
  }

  cutPeerFor(ms: number): void {
    this.isPeerCut = true;
    this.#world.time.after(ms, () => {
      this.isPeerCut = false;
    });
  }

  /** To a shim. False when no socket takes it. */
  down(side: SideName, message: DownMessage): boolean {
    if (!this.isOpen(side)) return false;
    const what = message.type === "command" ? `command ${shortOf(message.command.id)}` : message.type;
    const text = message.type === "acknowledged" ? `acknowledged ${shortOf(message.commandId)}` : what;
    const kinds = this.#faults("down", side, text);
    this.#carry(side, kinds, () => {
      this.#world.note(`-> ${side} ${text}`);
      this.shims[side]?.received(message);
    });
    return true;
  }

  /** To the functions. False when no socket takes it. */
  up(side: SideName, message: UpMessage): boolean {
    if (!this.isOpen(side)) return false;
    if (message.type === "progress" || message.type === "heartbeat") {
      this.#carry(side, noKinds, () => this.functions?.received(side, message));
      return true;
    }
    const text = message.type === "report" ? `report ${shortOf(message.report.commandId)}` : message.type;
    const kinds = this.#faults("up", side, text);
    const arrive = () => {
      this.#world.note(`<- ${side} ${text}`);
      this.functions?.received(side, message);
      if (kinds.has("twice")) this.functions?.received(side, message);
    };
    this.#carry(side, kinds, arrive);
    return true;
  }

  #faults(way: "down" | "up", side: SideName, what: string): ReadonlySet<OwnKind> {
    const kinds = this.#world.faults.at({ class: way, actor: side, what });
    if (kinds.size > 0) this.#world.note(`*** ${[...kinds].join(" ")} at ${way} ${side} ${what}`);
    return kinds;
  }

  #carry(side: SideName, kinds: ReadonlySet<OwnKind>, arrive: () => void): void {
    const { chance, time } = this.#world;
    const socket = this.#sockets[side];
    if (!this.isOpen(side)) return;
    const onSameSocket = () => {
      if (this.#sockets[side] === socket) arrive();
    };
    if (!kinds.has("lost"))
      time.after(
        chance.between(wayMs[0], wayMs[1]) + (kinds.has("delayed") ? chance.between(500, 60_000) : 0),
        onSameSocket,
      );
    if (kinds.has("repeated")) time.after(chance.between(1, 2_000), onSameSocket);
    // Somebody on the way kept it: it arrives on whatever socket is open then.
    if (kinds.has("stale"))
      time.after(chance.between(5_000, 6 * 60_000), () => {
        if (this.isOpen(side)) arrive();
      });
  }

  /** A request of the source's shim to the destination's. */
  async ask(life: Life, peerKey: string, request: PeerRequest, patienceMs: number): Promise<PeerReply> {
    const { world } = this;
    if (!life.isAlive) return never();
    const kinds = world.faults.at({ class: "peer", actor: "source", what: request.type });
    if (kinds.size > 0) world.note(`*** ${[...kinds].join(" ")} at peer ${request.type}`);
    if (kinds.has("cut")) this.cutPeerFor(world.chance.between(500, 120_000));
    if (!life.isAlive) return never();
    return new Promise((resolve, reject) => {
      let isOver = false;
      const settle = (act: () => void) => {
        if (isOver) return;
        isOver = true;
        if (life.isAlive) act();
      };
      const unreachable = () => settle(() => reject(noAnswer()));
      world.time.after(patienceMs, unreachable);
      const lateMs = kinds.has("delayed") ? world.chance.between(200, 15_000) : 0;
      const deliver = (answersBack: boolean) => {
        const there = this.shims.destination;
        if (this.isPeerCut || there === null || !there.life.isAlive) {
          unreachable();
          return;
        }
        world.note(`peer ${request.type}`);
        there.life.onEnd(() => world.time.after(world.chance.between(0, 5), unreachable));
        void there.answer(peerKey, request).then((reply) => {
          world.time.after(world.chance.between(1, 8), () => {
            if (this.isPeerCut || !there.life.isAlive) unreachable();
            else if (answersBack && !kinds.has("replyLost"))
              settle(() => {
                world.note(`peer answers ${reply.type}${reply.type === "finished" ? ` ${reply.receipt.outcome}` : ""}`);
                resolve(reply);
              });
          });
        });
      };
      if (!kinds.has("lost")) world.time.after(world.chance.between(1, 8) + lateMs, () => deliver(true));
      if (kinds.has("repeated")) world.time.after(world.chance.between(10, 60_000), () => deliver(false));
    });
  }

  get world(): World {
    return this.#world;
  }
}

const noKinds: ReadonlySet<OwnKind> = new Set();

const shortOf = (commandId: string) => commandId.slice(commandId.indexOf(":") + 1);

const noAnswer = () =>
  new Fault({
    code: "peer.unreachable",
    cause: "No answer came over the peer channel.",
    action: "It is asked again.",
    retry: "safe",
  });
