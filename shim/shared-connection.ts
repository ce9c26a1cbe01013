/**
 * The libvirt connection for reads that belong to no migration: inventory, inspections, job statistics. Opened when it is
 * first needed and opened again when the daemon restarts, with growing waits; nobody who uses it closes it.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { Fault } from "#protocol/fault";
import { type Clock, jitteredMs } from "./clock.ts";
import { faultOf, messageOf } from "./libvirt-fault.ts";
import type { Log } from "./log.ts";

/** Between two attempts: a daemon that restarts is back within seconds. */
const backoff = { baseMs: 500, capMs: 10_000 } as const;

export interface SharedConnectionParts {
  connect(): Promise<LibvirtConnection>;
  /** A new connection is there: what was subscribed on the last one is gone. */
  onOpened(libvirt: LibvirtConnection): void;
  clock: Clock;
  log: Log;
  signal: AbortSignal;
}

export class SharedConnection {
  readonly #parts: SharedConnectionParts;
  #opening: Promise<LibvirtConnection> | null = null;

  constructor(parts: SharedConnectionParts) {
    this.#parts = parts;
  }

  /** A connection that lives. Throws `Fault` `libvirt.unreachable` at once when there is none now. */
  async get(): Promise<LibvirtConnection> {
    if (this.#parts.signal.aborted) throw stopped();
    this.#opening ??= this.#open();
    const opening = this.#opening;
    try {
      const libvirt = await opening;
      if (libvirt.isOpen) return libvirt;
    } catch (error) {
      if (this.#opening === opening) this.#opening = null;
      throw error;
    }
    if (this.#opening === opening) this.#opening = null;
    return this.get();
  }

  /** Keeps it open until stopped, so that events are heard. Never rejects. */
  async keep(): Promise<void> {
    const { clock, log, signal } = this.#parts;
    let failures = 0;
    while (!signal.aborted) {
      try {
        const libvirt = await this.get();
        failures = 0;
        const end = await Promise.race([libvirt.closed, aborted(signal)]);
        if (end !== null) log.write("warn", "libvirt's connection for the inventory ended", { cause: end.message });
      } catch (error) {
        if (failures === 0 && !signal.aborted)
          log.write("warn", "libvirt cannot be reached", { cause: messageOf(error) });
        failures += 1;
      }
      if (!signal.aborted) await clock.sleep(backoff.baseMs + jitteredMs(failures, backoff, clock.random), signal);
    }
  }

  async close(): Promise<void> {
    const libvirt = await this.#opening?.catch(() => undefined);
    await libvirt?.close();
  }

  async #open(): Promise<LibvirtConnection> {
    const { connect, onOpened } = this.#parts;
    try {
      const libvirt = await connect();
      onOpened(libvirt);
      return libvirt;
    } catch (error) {
      throw faultOf(error, {
        code: "libvirt.unreachable",
        what: "libvirt cannot be reached on this host",
        action: "Look at libvirt's daemon (systemctl status libvirtd virtqemud) and at --libvirt.",
        retry: "safe",
      });
    }
  }
}

function aborted(signal: AbortSignal): Promise<null> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(null);
    else signal.addEventListener("abort", () => resolve(null), { once: true });
  });
}

const stopped = () =>
  new Fault({
    code: "shim.restarted",
    cause: "The shim is ending.",
    action: "It answers again when it has been started.",
    retry: "safe",
  });
