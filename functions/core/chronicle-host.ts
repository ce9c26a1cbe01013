/** A host and a request as the chronicle tells them. */
import { type ChronicleEvent, eventHead } from "./chronicle-event.ts";
import { cut } from "./draft.ts";

type EventOf<T extends ChronicleEvent["type"]> = Extract<ChronicleEvent, { type: T }>;

/** Of a path, which names may make long; as long as a subject may be. */
const pathCharsMax = 300;

/** `joinToken`: the id of the token that let it in; its secret is told nowhere. */
export const hostEnrolled = (
  host: { id: string; name: string; enrolledAt: string },
  joinToken: string | null,
): EventOf<"dev.vmferry.host.enrolled"> => ({
  ...eventHead(`${host.id}-enrolled`, host.id, host.enrolledAt),
  type: "dev.vmferry.host.enrolled",
  data: { host: { id: host.id, name: host.name }, joinToken },
});

/** A whole token where only its id belongs, as people paste it: what is kept is its beginning. Tokens of all kinds, and webhooks' secrets. */
const secretIn = /\b(vm[jk]_[0-9A-Z]{26}_|vm[a-z]_|whsec_)[\w%+=-]{20,}/g;

/** `path` without its query, which may say anything, and without secrets (I9). */
export function requestReceived(
  request: EventOf<"dev.vmferry.request.received">["data"],
  at: string,
): EventOf<"dev.vmferry.request.received"> {
  const path = cut(request.path.replaceAll(secretIn, "$1..."), pathCharsMax);
  return {
    ...eventHead(`q_${request.requestId}`, path, at),
    type: "dev.vmferry.request.received",
    data: { ...request, path },
  };
}
