/**
 * One libvirt connection for each migration, from its first command that needs one to its last, whatever the websocket
 * does. libvirt ties an incoming domain and an outgoing job to the connection they came on and undoes them when it
 * closes, so this is what holds a migration, and nobody but the end of the migration closes it.
 *
 * Connections are numbered for each migration; the number is in the journal, so that after a loss or a restart a step is
 * told that what was bound to the earlier one is gone (`continuous`).
 */
import type { LibvirtConnection } from "#libvirt/client";
import { Fault } from "#protocol/fault";
import { faultOf } from "./libvirt-fault.ts";
import type { MigrationRecord } from "./migration-record.ts";
import type { MigrationConnection } from "./ports.ts";

/** One that is kept may have died just now, and so may the next; a third is the daemon's own trouble. */
const openAttemptsMax = 3;

export interface ConnectionUse {
  record: MigrationRecord;
  commandId: string;
  resumed: boolean;
  /** Journals that this command uses connection `generation`; on disk when it resolves. */
  connected(generation: number): Promise<void>;
}

interface Held {
  libvirt: LibvirtConnection;
  generation: number;
  /** Commands that have journalled their use of it. */
  statedBy: Set<string>;
}

export class MigrationConnections {
  readonly #connect: () => Promise<LibvirtConnection>;
  readonly #onLost: (migrationId: string, cause: string) => void;
  readonly #held = new Map<string, Promise<Held>>();

  /** `onLost`: a migration's connection ended and we did not end it. */
  constructor(connect: () => Promise<LibvirtConnection>, onLost: (migrationId: string, cause: string) => void) {
    this.#connect = connect;
    this.#onLost = onLost;
  }

  /** The migration's connection, opened when there is none that lives. Throws `Fault` `libvirt.unreachable`. */
  async use(use: ConnectionUse): Promise<MigrationConnection> {
    const { record, commandId } = use;
    const held = await this.#living(record);
    // What binds nothing needs no line of its own: Finish and Confirm spare a sync while the guest is stopped.
    if (record.binds(commandId) && !held.statedBy.has(commandId)) {
      await use.connected(held.generation);
      held.statedBy.add(commandId);
    }
    const bound = record.boundGeneration(use);
    return { libvirt: held.libvirt, continuous: bound === null || bound === held.generation };
  }

  /** Ends the migration's connection; what libvirt still ties to it is undone by libvirt. */
  async close(migrationId: string): Promise<void> {
    const held = this.#held.get(migrationId);
    this.#held.delete(migrationId);
    // One that could not be opened is closed already.
    const connection = await held?.catch(() => undefined);
    await connection?.libvirt.close();
  }

  async closeAll(): Promise<void> {
    await Promise.all([...this.#held.keys()].map((id) => this.close(id)));
  }

  async #living(record: MigrationRecord): Promise<Held> {
    const id = record.migrationId;
    for (let attempt = 0; attempt < openAttemptsMax; attempt += 1) {
      const opening = this.#held.get(id) ?? this.#open(record);
      const held = await opening;
      if (held.libvirt.isOpen) return held;
      if (this.#held.get(id) === opening) this.#held.delete(id);
    }
    throw new Fault({
      code: "libvirt.unreachable",
      cause: "libvirt's daemon takes connections of this shim and closes them at once.",
      action: "Look at libvirt's log on this host (journalctl -u libvirtd -u virtqemud).",
      retry: "safe",
    });
  }

  #open(record: MigrationRecord): Promise<Held> {
    const id = record.migrationId;
    const opening = this.#connect()
      .catch((error: unknown) => {
        throw faultOf(error, {
          code: "libvirt.unreachable",
          what: "The shim cannot open a libvirt connection for this migration",
          action: "Look at libvirt's daemon on this host (systemctl status libvirtd virtqemud).",
          retry: "safe",
        });
      })
      .then((libvirt) => {
        void libvirt.closed.then((end) => {
          if (this.#held.get(id) !== opening) return;
          this.#held.delete(id);
          if (end.reason !== "local") this.#onLost(id, end.message);
        });
        return { libvirt, generation: record.generation + 1, statedBy: new Set<string>() };
      });
    this.#held.set(id, opening);
    // A failed attempt is not kept: the next use tries again.
    opening.catch(() => {
      if (this.#held.get(id) === opening) this.#held.delete(id);
    });
    return opening;
  }
}
