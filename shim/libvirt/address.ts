/**
 * Where libvirt is: what `--libvirt` takes, as a socket path and the URI for connect_open.
 *
 * Accepted: nothing (the usual sockets), a path, `qemu:///system`, `qemu:///session?socket=PATH`, and the same with
 * `+unix`. Only a unix socket on this machine: a shim works next to QEMU, and a remote transport would put a network
 * into every phase.
 */
export type LibvirtAddress = { readonly socketPath: string; readonly uri: string };

/** An address that cannot be used; the sentence says what would be. */
export class LibvirtAddressError extends Error {
  override readonly name = "LibvirtAddressError";
}

/** The modular daemon first: where both sockets exist, libvirtd's is usually only waiting for activation. */
const systemSockets = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"] as const;
const systemUri = "qemu:///system";

/**
 * Parses `text`. `exists` tells whether a path is there; it is asked only when no socket is named.
 * Throws LibvirtAddressError.
 */
export function parseLibvirtAddress(text: string | undefined, exists: (path: string) => boolean): LibvirtAddress {
  if (text === undefined || text === "") return { socketPath: usualSocket(exists), uri: systemUri };
  if (text.startsWith("/")) return { socketPath: text, uri: systemUri };
  return fromUri(text, exists);
}

function fromUri(text: string, exists: (path: string) => boolean): LibvirtAddress {
  if (!URL.canParse(text)) {
    throw new LibvirtAddressError(
      `"${text}" is neither an absolute socket path nor a libvirt URI such as ${systemUri}`,
    );
  }
  const url = new URL(text);
  if (url.protocol !== "qemu:" && url.protocol !== "qemu+unix:") {
    throw new LibvirtAddressError(
      `"${text}" is not supported: only qemu and qemu+unix, over a unix socket on this machine`,
    );
  }
  if (url.host !== "") {
    throw new LibvirtAddressError(`"${text}" names another host: run a shim there and give it its local socket`);
  }
  if (url.pathname !== "/system" && url.pathname !== "/session") {
    throw new LibvirtAddressError(`"${text}" must end in /system or /session`);
  }
  const uri = `qemu://${url.pathname}`;
  const socket = url.searchParams.get("socket");
  if (socket !== null) {
    if (!socket.startsWith("/")) throw new LibvirtAddressError(`the socket "${socket}" is not an absolute path`);
    return { socketPath: socket, uri };
  }
  if (url.pathname === "/session") {
    throw new LibvirtAddressError(`a session daemon has no fixed socket: give it, as in ${uri}?socket=/run/user/...`);
  }
  return { socketPath: usualSocket(exists), uri };
}

/** The first that exists; with none, libvirtd's own, so that the error names a path people know. */
function usualSocket(exists: (path: string) => boolean): string {
  return systemSockets.find((path) => exists(path)) ?? systemSockets[1];
}
