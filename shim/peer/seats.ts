/**
 * Who may be connected at once. Anybody who reaches the port may connect, with any key, so strangers have few seats of
 * their own: a flood of them takes seats from each other, the one that is there longest first, and never from a peer whose
 * ticket was good. Nothing here knows sockets.
 */

/** All together: 32 peers of up to eight connections; each may hold one frame of 6 MiB. */
export const seatsMax = 256;
/** Before a request was answered with anything but a refusal; bounds what strangers cost to 192 MiB at the very worst. */
export const strangerSeatsMax = 32;
/** Of one key: what one client opens at most (client.ts), so that no peer takes the others' room. */
export const seatsPerKeyMax = 32;

export class Seats {
  /** In order of arrival. */
  readonly #taken = new Set<Seat>();

  /** A seat, or null when there is none to be had; `onEvicted` when another one gets it. */
  take(onEvicted: () => void): Seat | null {
    const strangers = [...this.#taken].filter(({ trusted }) => !trusted);
    if (strangers.length >= strangerSeatsMax && !this.#evict(strangers)) return null;
    if (this.#taken.size >= seatsMax && !this.#evict(strangers)) return null;
    const seat = new Seat(onEvicted, this.#taken);
    this.#taken.add(seat);
    return seat;
  }

  /** The seat's holder has proven this key. False when the key has too many, all at work: then the seat is gone. */
  prove(seat: Seat, publicKey: string): boolean {
    const same = [...this.#taken].filter((each) => each !== seat && each.publicKey === publicKey);
    seat.publicKey = publicKey;
    seat.trusted = same.some(({ trusted }) => trusted);
    if (same.length < seatsPerKeyMax || this.#evict(same)) return true;
    seat.leave();
    return false;
  }

  /** A request of this seat's holder was answered with something else than a refusal: its key is no stranger's. */
  trust(seat: Seat): void {
    seat.trusted = true;
    for (const each of this.#taken) if (each.publicKey === seat.publicKey) each.trusted = true;
  }

  get count(): number {
    return this.#taken.size;
  }

  #evict(candidates: readonly Seat[]): boolean {
    const oldest = candidates.find((seat) => !seat.working && this.#taken.has(seat));
    if (oldest === undefined) return false;
    oldest.leave();
    oldest.onEvicted();
    return true;
  }
}

export class Seat {
  readonly onEvicted: () => void;
  readonly #taken: Set<Seat>;
  publicKey: string | null = null;
  trusted = false;
  /** A request is being answered: it is not interrupted for a newcomer. */
  working = false;

  constructor(onEvicted: () => void, taken: Set<Seat>) {
    this.onEvicted = onEvicted;
    this.#taken = taken;
  }

  leave(): void {
    this.#taken.delete(this);
  }
}
