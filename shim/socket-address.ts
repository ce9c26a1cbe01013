/** From the control plane's URL, as people give it, to the addresses that a shim uses. */

import { Fault } from "#protocol/fault";
import { shimSocketPath } from "#protocol/identity";

/** The origin, without path, query or credentials. Throws `Fault` `request.malformed`. */
export function controlPlaneOrigin(url: string): URL {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  if (parsed === null || (parsed.protocol !== "http:" && parsed.protocol !== "https:"))
    throw malformedUrl(url, "it does not begin with http:// or https://");
  if (parsed.username !== "" || parsed.password !== "")
    throw malformedUrl("(not shown)", "it holds a password; a shim proves itself with its own key");
  if (parsed.pathname !== "/" || parsed.search !== "" || parsed.hash !== "")
    throw malformedUrl(url, "only scheme, host and port are expected");
  return parsed;
}

/**
 * Where the websocket of that host connects: at the address that the control plane's door names, else beside the door.
 * Throws `Fault` `request.malformed` for an address that would lead away from TLS.
 */
export function socketAddress(origin: URL, hostId: string, named: string | null = null): URL {
  if (named !== null && !URL.canParse(named))
    throw new Fault({
      code: "request.malformed",
      cause: `The control plane names ${named} for its shims, which is no address.`,
      action: "Give the control plane a socket address like wss://host/stage (SOCKET_URL).",
      retry: "person",
    });
  const address = named === null ? new URL(shimSocketPath, origin) : new URL(named);
  if (named === null) address.protocol = origin.protocol === "https:" ? "wss:" : "ws:";
  else if (origin.protocol === "https:" && address.protocol !== "wss:")
    throw new Fault({
      code: "request.malformed",
      cause: `The control plane is reached by https and names ${named} for its shims, which is not encrypted.`,
      action: "Give the control plane a socket address that begins with wss:// (SOCKET_URL).",
      retry: "person",
    });
  address.searchParams.set("host", hostId);
  return address;
}

const malformedUrl = (url: string, why: string) =>
  new Fault({
    code: "request.malformed",
    cause: `The control plane's address ${url} cannot be used: ${why}.`,
    action: "Give it as in --url https://vmferry.example.org or --url http://127.0.0.1:8787.",
    retry: "never",
  });
