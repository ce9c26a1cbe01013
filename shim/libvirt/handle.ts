/**
 * The handles by which libvirt names things on the wire: domain, snapshot, checkpoint, pool, volume, secret.
 * A UUID is sixteen raw bytes there and the canonical text (lower case, dashes) everywhere in vmferry, so that equal
 * UUIDs are equal strings.
 */
import { int, type Shape, string, struct, type ValueOf } from "./shape.ts";
import { XdrError } from "./xdr.ts";

const uuidBytes = 16;
const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export const uuid: Shape<string> = {
  kind: "uuid",
  read(reader) {
    const hex = Buffer.from(reader.fixedOpaque(uuidBytes)).toString("hex");
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
  },
  write(writer, value) {
    if (!uuidPattern.test(value)) {
      throw new XdrError("xdr.value", writer.offset, `"${value}" is no UUID in canonical form (lower case, dashes)`);
    }
    writer.fixedOpaque(Buffer.from(value.replaceAll("-", ""), "hex"), uuidBytes);
  },
};

/** `id` is -1 while the domain is not active. libvirt finds a domain by `uuid`; `name` and `id` are for messages. */
export const remoteDomain = struct({ name: string, uuid, id: int });
export type RemoteDomain = ValueOf<typeof remoteDomain>;

export const remoteSnapshot = struct({ name: string, dom: remoteDomain });
export type RemoteSnapshot = ValueOf<typeof remoteSnapshot>;

export const remoteCheckpoint = struct({ name: string, dom: remoteDomain });
export type RemoteCheckpoint = ValueOf<typeof remoteCheckpoint>;

export const remotePool = struct({ name: string, uuid });
export type RemotePool = ValueOf<typeof remotePool>;

export const remoteVolume = struct({ pool: string, name: string, key: string });
export type RemoteVolume = ValueOf<typeof remoteVolume>;

export const remoteSecret = struct({ uuid, usageType: int, usageId: string });
export type RemoteSecret = ValueOf<typeof remoteSecret>;
