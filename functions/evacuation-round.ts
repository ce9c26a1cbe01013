/**
 * What the looks of one tick share: inventories, the fleet's turn, and the evacuations that were read. N evacuations that each read all the others cost N times N
 * loads; here each is read once, for as long as nobody outside of this round has had the turn.
 *
 * Why that is enough: whatever is started is committed within the turn, so between two turns in a row of this round nothing was started but by this round,
 * which notes what it commits. All else that may have changed outside of a turn (a migration that ended, a cancel) only gives slots and room back, so what
 * is remembered of it holds too much and never too little. Which hosts have an evacuation is read anew each time.
 */
import { isEnded } from "./core/evacuation-result.ts";
import type { EvacuationState } from "./core/evacuation-state.ts";
import { Inventories } from "./placement-look.ts";
import type { Ports } from "./ports.ts";

/** A turn is a few reads and one write; whoever holds it longer has died. */
const turnMsMax = 30_000;
/** What is left of it for the commit with its repetitions. */
const commitMsMax = 12_000;
/** Tries of taking the turn and the pause between them: turns are short, and who comes too late is looked after by the tick. */
const turnTriesMax = 10;
const turnPauseMs = 100;

/**
 * What is remembered of an evacuation is read again after this: what has ended in another isolate gives its slots back, and nobody tells us of it. Many ends
 * a minute are decided on, and each by itself would read all the others.
 */
const knownMsMax = 10_000;

export class Round {
  readonly inventories: Inventories;
  readonly #ports: Ports;
  readonly #holder: string;
  readonly #known: Map<string, { state: EvacuationState; atMs: number }>;
  /** Loads of this era that are under way. */
  readonly #loading = new Map<string, Promise<EvacuationState | null>>();
  #era: number;
  #tail: Promise<unknown> = Promise.resolve();

  /** `before`: the round that this one follows, by the same one and after it; it keeps the name under which that one had the turn, and what it knew. */
  constructor(ports: Ports, before: Round | null = null) {
    this.#ports = ports;
    this.#holder = before === null ? ports.ids.ulid() : before.#holder;
    this.#known = new Map(before === null ? [] : before.#known);
    this.#era = before === null ? 0 : before.#era;
    this.inventories = new Inventories(ports, before === null ? null : before.inventories);
  }

  /** All evacuations that have not ended, but for this one. Outside of the turn what is said may be as old as the round. */
  async others(id: string): Promise<EvacuationState[]> {
    const { evacuations } = this.#ports;
    const claims = (await evacuations.claims()).filter(({ evacuationId }) => evacuationId !== id);
    const states = await Promise.all(claims.map(({ evacuationId }) => this.#load(evacuationId)));
    return states.flatMap((state) => (state === null || isEnded(state) ? [] : [state]));
  }

  async #load(id: string): Promise<EvacuationState | null> {
    const known = this.#known.get(id);
    if (known !== undefined && this.#nowMs() - known.atMs <= knownMsMax) return known.state;
    const loading = this.#loading.get(id) ?? this.#ports.evacuations.load(id);
    this.#loading.set(id, loading);
    const { era } = this;
    try {
      const state = await loading;
      return state === null ? null : this.note(state, era);
    } finally {
      if (this.#loading.get(id) === loading) this.#loading.delete(id);
    }
  }

  /** It ends when others have had the turn: what was read before may be without what they have started. */
  get era(): number {
    return this.#era;
  }

  /** What was read or committed since a moment of that era; of an older era, or an older version than what is known, nothing is kept. Returns the newest. */
  note(state: EvacuationState, era: number): EvacuationState {
    const known = this.#known.get(state.id)?.state;
    if (known !== undefined && known.version > state.version) return known;
    if (era === this.#era) this.#known.set(state.id, { state, atMs: this.#nowMs() });
    return state;
  }

  #nowMs(): number {
    return Date.parse(this.#ports.clock.now());
  }

  #forget(): void {
    this.#known.clear();
    this.#loading.clear();
    this.#era += 1;
  }

  /** Runs in the one turn of the fleet, one after the other within this round; null when it could not be had. */
  inTurn<T>(work: (untilMs: number) => Promise<T>): Promise<T | null> {
    const turn = this.#tail.then(() => this.#turn(work));
    this.#tail = turn.catch(() => undefined);
    return turn;
  }

  async #turn<T>(work: (untilMs: number) => Promise<T>): Promise<T | null> {
    const { evacuations, log } = this.#ports;
    const holder = this.#holder;
    // It lapses from when it was asked for, however long the answer took.
    let askedMs = this.#nowMs();
    let taken = await evacuations.takeTurn(holder, turnMsMax);
    for (let tries = 1; taken === null; tries += 1) {
      if (tries >= turnTriesMax) return null;
      await new Promise((resolve) => setTimeout(resolve, turnPauseMs));
      askedMs = this.#nowMs();
      taken = await evacuations.takeTurn(holder, turnMsMax);
    }
    // Others may have started something since this round's last turn.
    if (taken === "first") this.#forget();
    try {
      return await work(askedMs + turnMsMax - commitMsMax);
    } catch (error) {
      // Whether the commit was written is not known.
      this.#forget();
      throw error;
    } finally {
      // It lapses by itself, and what was committed within it must be dispatched.
      await evacuations.endTurn(holder).catch((error: unknown) => {
        log.write("warn", "a turn could not be given back", { holder, error: String(error) });
      });
    }
  }
}
