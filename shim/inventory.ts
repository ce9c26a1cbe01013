/**
 * What the fleet knows of this host's domains: a complete list at each welcome, then only what has changed. Events say
 * when to look, a slow rescan finds what no event told (a snapshot taken by hand has none). The functions keep the list;
 * this remembers only what was last sent, so that nothing is sent twice.
 */
import { randomUUID } from "node:crypto";
import type { LibvirtConnection } from "#libvirt/client";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { CommandOf } from "#protocol/command";
import { inventoryDomainsMax, messageBytesMax } from "#protocol/limits";
import type { InventoryDomain, UpMessage } from "#protocol/message";
import { canonical } from "./canonical.ts";
import type { Clock } from "./clock.ts";
import { readInventoryDomain } from "./inventory-reader.ts";
import { messageOf } from "./libvirt-fault.ts";
import type { Log } from "./log.ts";
import type { Step, Steps } from "./ports.ts";
import { read } from "./probe.ts";

/** A burst of events (a start is three) becomes one look. */
export const debounceMs = 1_000;

/** What no event tells is seen within a minute. A look costs six small calls for each domain. */
export const rescanMs = 60_000;

/** A report waits so long, at most, for the look that goes before it: the next look tells the same a little later. */
export const toldMsMax = 2_000;

/** Room for the envelope beside the entries. */
const entriesBytesMax = messageBytesMax - 4_096;

export interface InventoryParts {
  libvirt(): Promise<LibvirtConnection>;
  send(message: UpMessage): boolean;
  /** Every domain of this host, at each complete look, whether anybody is connected or not. */
  onDomains?: ((domains: readonly InventoryDomain[]) => void) | undefined;
  clock: Clock;
  log: Log;
  signal: AbortSignal;
}

export class Inventory {
  readonly #parts: InventoryParts;
  /** UUID to the entry as it was last sent in this session. */
  #sent = new Map<string, string>();
  #fullDue = false;
  /** There is reason to look, seen while a look was under way. */
  #due = false;
  #wake: (() => void) | null = null;
  /** Looks follow each other: one that began earlier must not say what it read after one that began later. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: InventoryParts) {
    this.#parts = parts;
  }

  /** A session has opened: the next look sends everything. */
  welcome(): void {
    this.#fullDue = true;
    this.#look();
  }

  /** Hears of changes on a new connection. */
  async listen(libvirt: LibvirtConnection): Promise<void> {
    this.#look();
    try {
      await libvirt.onLifecycle(() => this.#look());
    } catch (error) {
      this.#parts.log.write("warn", "no events of libvirt; changes are seen by rescans only", {
        cause: messageOf(error),
      });
    }
  }

  /** Looks whenever there is reason to, until stopped. Never rejects. */
  async run(): Promise<void> {
    const { clock, log, signal } = this.#parts;
    while (!signal.aborted) {
      this.#due = false;
      try {
        await this.refresh();
      } catch (error) {
        log.write("debug", "the inventory could not be read", { cause: messageOf(error) });
      }
      await this.#reason(clock, signal);
      await clock.sleep(debounceMs, signal);
    }
  }

  /** One look: reads every domain and sends what differs from what was sent. */
  refresh(): Promise<void> {
    return this.#inTurn(() => this.#refresh());
  }

  /** Looks at one domain now, as `toldFirst` needs it. Never rejects; waits `toldMsMax` at most. */
  async lookAt(uuid: string): Promise<void> {
    const { clock, log } = this.#parts;
    const seen = new AbortController();
    const look = this.#inTurn(() => this.#refreshOne(uuid)).catch((error: unknown) => {
      log.write("debug", "a domain could not be looked at", { domain: uuid, cause: messageOf(error) });
    });
    await Promise.race([look, clock.sleep(toldMsMax, seen.signal)]);
    seen.abort();
  }

  #inTurn(look: () => Promise<void>): Promise<void> {
    const turn = this.#turn.then(look);
    this.#turn = turn.catch(() => {});
    return turn;
  }

  async #refreshOne(uuid: string): Promise<void> {
    const libvirt = await this.#parts.libvirt();
    const { domains } = await read(libvirt, procedures.connectListAllDomains, { needResults: true, flags: 0 });
    const dom = domains.find((each) => each.uuid === uuid);
    const domain = dom === undefined ? null : await readInventoryDomain(libvirt, dom);
    const entry = domain === null ? undefined : canonical(domain);
    if (this.#sent.get(uuid) === entry) return;
    const messages = inventoryMessages({
      full: false,
      domains: domain === null ? [] : [domain],
      gone: domain === null ? [uuid] : [],
    });
    if (!messages.every((message) => this.#parts.send(message))) this.#fullDue = true;
    else if (entry === undefined) this.#sent.delete(uuid);
    else this.#sent.set(uuid, entry);
  }

  async #refresh(): Promise<void> {
    const libvirt = await this.#parts.libvirt();
    const { domains } = await read(libvirt, procedures.connectListAllDomains, { needResults: true, flags: 0 });
    const now = await readAll(libvirt, domains);
    this.#parts.onDomains?.(now);
    // Taken at the end of the look: a session that opened meanwhile wants all of it.
    const full = this.#fullDue;
    const known = full ? new Map<string, string>() : this.#sent;
    const entries = new Map(now.map((domain) => [domain.uuid, canonical(domain)]));
    const changed = now.filter((domain) => known.get(domain.uuid) !== entries.get(domain.uuid));
    const gone = [...known.keys()].filter((uuid) => !entries.has(uuid));
    this.#fullDue = false;
    const messages = inventoryMessages({ full, domains: changed, gone });
    // What did not leave is as if nothing had been sent: the next welcome sends all.
    if (messages.every((message) => this.#parts.send(message))) this.#sent = entries;
    else this.#fullDue = true;
  }

  #look(): void {
    this.#due = true;
    this.#wake?.();
    this.#wake = null;
  }

  async #reason(clock: Clock, signal: AbortSignal): Promise<void> {
    if (this.#due) return;
    const enough = new AbortController();
    this.#wake = () => enough.abort();
    await clock.sleep(rescanMs, AbortSignal.any([signal, enough.signal]));
    this.#wake = null;
  }
}

/**
 * The steps with which a side's part in a migration ends, each telling what became of its domain before its report is sent:
 * who asks for the next migration once this one has ended finds the domain where it is.
 */
export function toldFirst(steps: Steps, inventory: Pick<Inventory, "lookAt">): Steps {
  const told =
    <K extends "confirm" | "settle" | "unstage">(step: Step<K>): Step<K> =>
    async (work) => {
      const report = await step(work);
      const { domain }: Pick<CommandOf<"confirm" | "settle" | "unstage">, "domain"> = work.command;
      await inventory.lookAt(domain.uuid);
      return report;
    };
  return { ...steps, confirm: told(steps.confirm), settle: told(steps.settle), unstage: told(steps.unstage) };
}

async function readAll(libvirt: LibvirtConnection, domains: readonly RemoteDomain[]): Promise<InventoryDomain[]> {
  const found: InventoryDomain[] = [];
  // One after the other: the calls of one domain fill the connection's slots already.
  for (const dom of domains) {
    const domain = await readInventoryDomain(libvirt, dom);
    if (domain !== null) found.push(domain);
  }
  return found.sort((a, b) => (a.uuid < b.uuid ? -1 : 1));
}

type InventoryMessage = Extract<UpMessage, { type: "inventory" }>;

/**
 * In messages that every transport carries. A complete list begins with `full`; no change is no message. A complete list of several messages is
 * a series under a name of its own, for functions that get them in any order.
 */
export function inventoryMessages(change: {
  full: boolean;
  domains: readonly InventoryDomain[];
  gone: readonly string[];
  /** The series' name, where it is given. */
  series?: string;
}): InventoryMessage[] {
  const messages: InventoryMessage[] = [];
  const start = (): InventoryMessage => ({
    type: "inventory",
    full: change.full && messages.length === 0,
    last: false,
    domains: [],
    gone: [],
  });
  let message = start();
  let bytes = 0;
  const next = () => {
    messages.push(message);
    message = start();
    bytes = 0;
  };
  for (const uuid of change.gone) {
    if (message.gone.length === inventoryDomainsMax) next();
    message.gone.push(uuid);
    bytes += uuid.length + 3;
  }
  for (const domain of change.domains) {
    const size = Buffer.byteLength(JSON.stringify(domain)) + 1;
    if (message.domains.length === inventoryDomainsMax || bytes + size > entriesBytesMax) next();
    message.domains.push(domain);
    bytes += size;
  }
  if (message.domains.length > 0 || message.gone.length > 0 || message.full) messages.push(message);
  const last = messages.at(-1);
  if (last !== undefined) last.last = true;
  if (!change.full || messages.length === 1) return messages;
  const id = change.series ?? randomUUID();
  return messages.map((each, part) => ({ ...each, series: { id, part, parts: messages.length } }));
}
