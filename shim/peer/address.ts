/**
 * Where the peer channel listens and what is told to others. All ways that may lead here are told, the likeliest first:
 * whoever dials proves the key on each, so a wrong one costs a moment and never a mistake (I1).
 */
import { isIP, isIPv4 } from "node:net";
import type { NetworkInterfaceInfo } from "node:os";
import { Fault } from "#protocol/fault";
import type { PeerAddress } from "#protocol/peer-address";

/** Without --peer-listen. Registered for nothing at IANA, below the kernel's own range for outgoing connections (32768). */
export const peerPortDefault = 16_515;

/** What the treaty takes (peer-address.ts). */
const hostsMax = 16;

export interface PeerListen {
  /** null: every address of this host. */
  host: string | null;
  /** 0: any free one. */
  port: number;
  /** When the port is taken, any free one will do: nobody asked for this very one. */
  orAnyPort: boolean;
}

/** `ADDR:PORT`, `[V6]:PORT` or `:PORT`; undefined: the default. Throws `Fault` `request.malformed`. */
export function listenOf(text: string | undefined): PeerListen {
  if (text === undefined) return { host: null, port: peerPortDefault, orAnyPort: true };
  const parts = /^(?:\[(?<v6>[^\]]+)\]|(?<host>[^:[\]]*)):(?<port>\d{1,5})$/.exec(text)?.groups;
  const port = Number(parts?.port);
  if (parts === undefined || port > 65_535) throw malformedListen(text, "it is not an address and a port");
  const { v6, host } = parts;
  if (v6 !== undefined && isIP(v6) !== 6) throw malformedListen(text, `${v6} is no IPv6 address`);
  const given = v6 ?? host ?? "";
  if (given.length > 255 || !/^[A-Za-z0-9.:%_-]*$/.test(given))
    throw malformedListen(text, "its address is neither an IP address nor a name");
  return { host: given === "" ? null : given, port, orAnyPort: false };
}

/** One address and port as a person writes them, to be told to others. Throws `Fault` `request.malformed`. */
export function endpointOf(text: string): PeerAddress {
  const { host, port } = listenOf(text);
  if (host === null || port === 0) throw malformedListen(text, "others need an address and a port to dial");
  return { hosts: [host], port };
}

export interface AdvertisedFrom {
  listenHost: string | null;
  /** An address that the operator gave for this host. */
  advertise: string | null;
  hostname: string;
  interfaces: NodeJS.Dict<NetworkInterfaceInfo[]>;
}

/** Names and addresses to tell, at least one, at most 16. */
export function advertisedHosts(from: AdvertisedFrom): string[] {
  const { listenHost, advertise, hostname } = from;
  const first = advertise === null ? [] : [advertise];
  const wildcard = listenHost === null || listenHost === "0.0.0.0" || listenHost === "::";
  if (!wildcard) return unique([...first, listenHost]);
  const addresses = Object.values(from.interfaces)
    .flatMap((each) => each ?? [])
    // 0.0.0.0 listens for IPv4 alone; "::" and nothing listen for both.
    .filter(({ family }) => listenHost !== "0.0.0.0" || family === "IPv4");
  const outside = addresses.filter(({ internal, address }) => !internal && !isLinkLocal(address));
  const inside = addresses.filter(({ internal }) => internal);
  // A bare name means something else, or nothing, on the host that reads it.
  const name = hostname.includes(".") && !hostname.startsWith("localhost") ? [hostname] : [];
  const ways = unique([...first, ...name, ...v4First(outside)]);
  // Last and always kept: the only way between two shims of one machine without a network.
  const loopback = v4First(inside).find((address) => address === "127.0.0.1" || address === "::1");
  const hosts = loopback === undefined ? ways.slice(0, hostsMax) : [...ways.slice(0, hostsMax - 1), loopback];
  return hosts.length > 0 ? hosts : ["127.0.0.1"];
}

/** An address with its port, for people. */
export const endpointText = (host: string, port: number): string =>
  host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;

/** A link-local address leads nowhere without the interface's name on the *other* host. */
const isLinkLocal = (address: string): boolean => /^fe[89ab]/i.test(address) || address.startsWith("169.254.");

const v4First = (infos: readonly NetworkInterfaceInfo[]): string[] => {
  const all = infos.map(({ address }) => address);
  return [...all.filter((address) => isIPv4(address)), ...all.filter((address) => !isIPv4(address))];
};

const unique = (hosts: readonly string[]): string[] => [...new Set(hosts)];

const malformedListen = (text: string, why: string) =>
  new Fault({
    code: "request.malformed",
    cause: `--peer-listen ${text.slice(0, 300)} cannot be used: ${why}.`,
    action: "Give it as in --peer-listen 192.0.2.7:16515, --peer-listen [2001:db8::7]:16515 or --peer-listen :16515.",
    retry: "never",
  });
