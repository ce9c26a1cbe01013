/**
 * From words to libvirt's migration flags and typed parameters, as virDomainMigrateVersion3Full sets them for each phase.
 * CHANGE_PROTECTION is never among them: with it the source could not be given its snapshots back before Confirm.
 */
import { isIP, isIPv6 } from "node:net";
import { MigrateFlag } from "#libvirt/constants";
import { stringParam, type TypedParam, ullongParam } from "#libvirt/typed-param";
import type { MigrateOptions } from "#protocol/command";

/** The flags of Begin, Perform and Confirm. `paused`: the domain is paused on the source and stays so on the destination. */
export function migrateFlags(options: MigrateOptions, paused: boolean): number {
  let flags = MigrateFlag.PERSIST_DEST | MigrateFlag.UNDEFINE_SOURCE;
  if (options.offline) return flags | MigrateFlag.OFFLINE;
  flags |= MigrateFlag.LIVE;
  if (options.unsafe) flags |= MigrateFlag.UNSAFE;
  if (options.autoConverge) flags |= MigrateFlag.AUTO_CONVERGE;
  if (paused) flags |= MigrateFlag.PAUSED;
  return flags;
}

/** The flags of Prepare and Finish: libvirt's client takes away what only a source understands. */
export function destinationFlags(flags: number): number {
  return flags & ~(MigrateFlag.ABORT_ON_ERROR | MigrateFlag.AUTO_CONVERGE);
}

/** The typed parameters that every phase gets alike. */
export function migrateParams(options: MigrateOptions): TypedParam[] {
  return options.bandwidthMiBps === null ? [] : [ullongParam("bandwidth", options.bandwidthMiBps)];
}

/**
 * The parameters of Prepare. With an address, libvirt picks a port and answers with the whole URI; a literal address is
 * also the only one that QEMU listens on, so the stream's port is not open on every network of the host.
 */
export function prepareParams(options: MigrateOptions, xml: string, address: string | null): TypedParam[] {
  const params = [...migrateParams(options), stringParam("destination_xml", xml)];
  if (address === null || options.offline) return params;
  params.push(stringParam("migrate_uri", `tcp://${isIPv6(address) ? `[${address}]` : address}`));
  if (isIP(address) !== 0) params.push(stringParam("listen_address", address));
  return params;
}

/** The parameters of Perform: where Prepare said that the destination listens. */
export function performParams(options: MigrateOptions, uri: string | null): TypedParam[] {
  return uri === null ? migrateParams(options) : [...migrateParams(options), stringParam("migrate_uri", uri)];
}

/** The parameters of Finish: the client always names the domain there. */
export function finishParams(options: MigrateOptions, name: string): TypedParam[] {
  return [...migrateParams(options), stringParam("destination_name", name)];
}
