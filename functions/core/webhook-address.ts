/**
 * Which addresses a webhook may be posted to. Its URL comes from whoever holds an API token, and is asked by a machine that stands elsewhere in the network
 * than they do: nothing that only that machine can reach may be reached through it, and no metadata service ever.
 *
 * `new URL` has made one form of what can be written in many (decimal, octal, mapped, wide digits), so only that form is looked at.
 */

/** `public`: addresses of the internet, by https. `private`: also those of private networks and of this machine; plain http to their literal addresses only. */
export type WebhookTargets = "public" | "private";

/** `refused`: neither one nor the other: link-local, metadata, multicast, reserved, or an IPv6 address that stands for another. */
export type AddressKind = "public" | "private" | "loopback" | "refused";

type Range = readonly [address: string, prefixBits: number];
const inRange = (bytes: readonly number[], [address, prefixBits]: Range, parse: (text: string) => number[] | null) => {
  const base = parse(address);
  if (base === null || base.length !== bytes.length) return false;
  return bytes.every((byte, index) => {
    const bits = Math.min(8, Math.max(0, prefixBits - index * 8));
    const mask = (0xff << (8 - bits)) & 0xff;
    return (byte & mask) === ((base[index] ?? 0) & mask);
  });
};

/** IANA's registry of special-purpose addresses, and three metadata services that lie outside of it. */
const refused4: readonly Range[] = [
  ["0.0.0.0", 8],
  ["169.254.0.0", 16],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.88.99.0", 24],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 4],
  ["240.0.0.0", 4],
  // Alibaba's metadata, in the shared space; Azure's, in a public one.
  ["100.100.100.200", 32],
  ["168.63.129.16", 32],
];
const private4: readonly Range[] = [
  ["10.0.0.0", 8],
  ["172.16.0.0", 12],
  ["192.168.0.0", 16],
  // Shared by providers (RFC 6598); Tailscale's as well.
  ["100.64.0.0", 10],
];
const refused6: readonly Range[] = [
  // Amazon's and Google's metadata, in unique local space.
  ["fd00:ec2::", 32],
  ["fd20:ce::", 32],
  // Teredo and other assignments of protocols; documentation; 6to4, which holds an IPv4 address.
  ["2001::", 23],
  ["2001:db8::", 32],
  ["2002::", 16],
  ["3fff::", 20],
];

function bytes4(text: string): number[] | null {
  const parts = text.split(".").map(Number);
  return /^\d{1,3}(\.\d{1,3}){3}$/.test(text) && parts.every((part) => part <= 255) ? parts : null;
}

/** Also with an IPv4 address at its end, as resolvers print mapped ones. */
function bytes6(text: string): number[] | null {
  const dotted = /^(?<head>.*:)(?<tail>\d+\.\d+\.\d+\.\d+)$/.exec(text)?.groups;
  const tail = dotted === undefined ? [] : bytes4(dotted.tail ?? "");
  if (tail === null) return null;
  const plain = dotted === undefined ? text : (dotted.head ?? "").replace(/([^:]):$/, "$1");
  const halves = plain.split("::");
  if (halves.length > 2) return null;
  const [head = [], rest = []] = halves.map((half) => (half === "" ? [] : half.split(":")));
  const missing = 8 - tail.length / 2 - head.length - rest.length;
  if (halves.length === 2 ? missing < 0 : missing !== 0) return null;
  const groups = [...head, ...Array.from({ length: missing }, () => "0"), ...rest];
  if (!groups.every((group) => /^[0-9a-fA-F]{1,4}$/.test(group))) return null;
  return [...groups.flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 0xff]), ...tail];
}

/** Of a literal address as `new URL` or a resolver writes it; null: it is none. */
export function addressKind(text: string): AddressKind | null {
  const four = bytes4(text);
  if (four !== null) {
    if (refused4.some((range) => inRange(four, range, bytes4))) return "refused";
    if (four[0] === 127) return "loopback";
    return private4.some((range) => inRange(four, range, bytes4)) ? "private" : "public";
  }
  // A zone belongs to a link: whatever stands before it, it is not for others.
  if (/^[0-9a-fA-F:.]+%/.test(text)) return "refused";
  const six = bytes6(text);
  if (six === null) return null;
  if (refused6.some((range) => inRange(six, range, bytes6))) return "refused";
  if (inRange(six, ["::1", 128], bytes6)) return "loopback";
  if (inRange(six, ["fc00::", 7], bytes6)) return "private";
  // All of the internet's addresses lie here (RFC 4291); mapped, NAT64 (64:ff9b::/96), link-local and multicast do not.
  return inRange(six, ["2000::", 3], bytes6) ? "public" : "refused";
}

/** Whether an address may be connected to. */
export const isReachable = (address: string, targets: WebhookTargets): boolean => {
  const kind = addressKind(address);
  return kind === "public" || (targets === "private" && (kind === "private" || kind === "loopback"));
};

/** Of https by default, and those that anybody may listen on: the ports between are other protocols'. */
const isPort = (port: string) => port === "" || port === "443" || Number(port) >= 1024;
/** Names that mean another machine to each who asks, or one within a network. */
const inner = /(^|\.)(localhost|local|internal|localdomain|lan|intranet|corp|private|arpa)$/;
const metadataName = /^(metadata|instance-data)(\.|$)/;

/** The URL in its one form, or why nothing is posted there. */
export function webhookUrl(asked: string, targets: WebhookTargets): { url: string } | { cause: string } {
  const url = URL.canParse(asked) ? new URL(asked) : null;
  if (url === null) return { cause: "it is no absolute URL" };
  if (url.protocol !== "https:" && url.protocol !== "http:") return { cause: "it is not an https address" };
  if (url.username !== "" || url.password !== "")
    return { cause: "it holds a user name or a password; what is sent is signed instead" };
  if (url.hash !== "" || asked.includes("#")) return { cause: "it has a fragment, which is never sent" };
  const name = url.hostname.replace(/^\[|\]$/g, "").replace(/\.$/, "");
  const kind = addressKind(name);
  const isInside = kind === "private" || kind === "loopback" || (kind === null && name === "localhost");
  if (kind === "refused" || (kind === null && metadataName.test(name)))
    return { cause: "this address is link-local, reserved, a metadata service's, or stands for another" };
  if (targets === "public") {
    if (isInside || (kind === null && (inner.test(name) || !name.includes("."))))
      return { cause: "this address lies within a network, and this control plane posts to the internet only" };
    if (url.protocol === "http:") return { cause: "it is plain http; give an https address" };
    if (!isPort(url.port)) return { cause: "its port is neither 443 nor 1024 or above" };
  }
  if (url.protocol === "http:" && !isInside)
    return { cause: "it is plain http, which goes to localhost and to literal private addresses only" };
  return { url: url.href };
}
