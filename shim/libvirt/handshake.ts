/**
 * The first three calls of a connection (AUTH_LIST, CONNECT_OPEN, and the keepalive feature when wanted) and the
 * sentences for a person when the daemon does not let us in.
 */
import type { ConnectOptions, LibvirtConnection } from "./client.ts";
import { AuthType, ConnectFlag, ErrorCode, Feature } from "./constants.ts";
import { LibvirtAccessError, LibvirtError, LibvirtUnreachableError } from "./error.ts";
import { procedures } from "./procedures.ts";

const letIn =
  'run the shim as root, or set auth_unix_rw = "none" (and auth_unix_ro) in libvirtd.conf or virtqemud.conf, ' +
  "give the shim's user the socket by unix_sock_group, and restart the daemon";

/** Authenticates with NONE and opens the hypervisor. Throws LibvirtAccessError when anything else is demanded. */
export async function openSession(connection: LibvirtConnection, options: ConnectOptions): Promise<void> {
  const { types } = await connection.call(procedures.authList, {});
  if (!types.includes(AuthType.NONE)) throw authRefusal(types);
  const flags = options.readOnly === true ? ConnectFlag.READ_ONLY : 0;
  try {
    await connection.call(procedures.connectOpen, { name: options.uri ?? "qemu:///system", flags });
  } catch (error) {
    throw openRefusal(error);
  }
  if (options.keepalive === true) {
    await connection.call(procedures.connectSupportsFeature, { feature: Feature.PROGRAM_KEEPALIVE });
  }
}

function authRefusal(types: readonly number[]): LibvirtAccessError {
  if (types.includes(AuthType.POLKIT)) {
    return new LibvirtAccessError(
      "libvirt asks polkit about this user, and the shim has nobody to ask for consent",
      letIn,
    );
  }
  if (types.includes(AuthType.SASL)) {
    return new LibvirtAccessError("libvirt asks for a SASL user and password, which the shim does not speak", letIn);
  }
  return new LibvirtAccessError(`libvirt offers only authentication of unknown type (${types.join(", ")})`, letIn);
}

function openRefusal(error: unknown): unknown {
  if (!(error instanceof LibvirtError)) return error;
  const refused = [
    ErrorCode.AUTH_FAILED,
    ErrorCode.AUTH_CANCELLED,
    ErrorCode.AUTH_UNAVAILABLE,
    ErrorCode.ACCESS_DENIED,
  ];
  if (!refused.some((code) => code === error.code)) return error;
  return new LibvirtAccessError(`libvirt does not let this user in: ${error.message}`, letIn, { cause: error });
}

/** What a failed connect(2) means for a person. */
export function socketFault(socketPath: string, error: Error): Error {
  const errno = "code" in error ? error.code : undefined;
  switch (errno) {
    case "EACCES":
    case "EPERM":
      return new LibvirtAccessError(`this user may not open libvirt's socket ${socketPath}`, letIn, { cause: error });
    case "ENOENT":
      return new LibvirtUnreachableError(
        `there is no libvirt socket at ${socketPath}`,
        "start libvirtd (or virtqemud), or name its socket with --libvirt",
        { cause: error },
      );
    case "ECONNREFUSED":
      return new LibvirtUnreachableError(
        `nothing listens at libvirt's socket ${socketPath}`,
        "start libvirtd (or virtqemud): the socket is there, the daemon is not",
        { cause: error },
      );
    default:
      return new LibvirtUnreachableError(
        `libvirt's socket ${socketPath} cannot be opened: ${error.message}`,
        "name libvirt's socket with --libvirt",
        { cause: error },
      );
  }
}
