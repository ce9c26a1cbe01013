/**
 * Building the next state of an evacuation: notes, domains and reasons, written once. A draft is a value; every function returns
 * a new one. What is kept is bounded in bytes, so that an evacuation of 500 domains of which every one fails is one item still.
 */
import type { FaultBody } from "#protocol/fault";
import type { EvacuationEffect } from "./evacuation-event.ts";
import { domainBytes, itemBytesMax, lineBytes, noteBytesMax, reasonBytesMax, stopBytes } from "./evacuation-limits.ts";
import { type EvacuationDomain, type EvacuationState, evacuationTimelineMax } from "./evacuation-state.ts";

export interface Evacuated {
  state: EvacuationState;
  effects: EvacuationEffect[];
}

export interface Draft extends Evacuated {
  at: string;
  atMs: number;
  /** Bytes for cause and action of one reason, as this evacuation's size allows. */
  reasonBytes: number;
}

export const draftOf = (state: EvacuationState, at: string): Draft => ({
  state,
  effects: [],
  at,
  atMs: Date.parse(at),
  reasonBytes: reasonRoom(state),
});

export const change = (draft: Draft, fields: Partial<EvacuationState>): Draft => ({
  ...draft,
  state: { ...draft.state, ...fields },
});

export const emit = (draft: Draft, effect: EvacuationEffect): Draft => ({
  ...draft,
  effects: [...draft.effects, effect],
});

/** A full story loses its second-oldest lines: how it began and how it ends stay readable. */
export function note(draft: Draft, text: string, domainUuid: string | null = null): Draft {
  const line = { at: draft.at, domain: domainUuid, note: cutBytes(text, noteBytesMax) };
  const timeline = [...draft.state.timeline, line];
  if (timeline.length > evacuationTimelineMax) timeline.splice(1, timeline.length - evacuationTimelineMax);
  return change(draft, { timeline });
}

/** Changes one domain. A key that is set to undefined is removed. */
export function changeDomain(draft: Draft, uuid: string, fields: Partial<EvacuationDomain>): Draft {
  const domains = draft.state.domains.map((each) => (each.domain.uuid === uuid ? { ...each, ...fields } : each));
  return change(draft, { domains });
}

/** Held up by nothing: the domain's record without `waitsSince`. */
export function unheld(draft: Draft, uuid: string): Draft {
  const domains = draft.state.domains.map((each) => {
    if (each.domain.uuid !== uuid || each.waitsSince === undefined) return each;
    const { waitsSince: _, ...rest } = each;
    return rest;
  });
  return change(draft, { domains });
}

/** A reason as it is kept here: cut to its room; libvirt's own words stand in full in the migration that is named beside it. */
export function reasonOf(
  draft: Pick<Draft, "reasonBytes">,
  { code, cause, action, retry }: Pick<FaultBody, "code" | "cause" | "action"> & { retry?: FaultBody["retry"] },
): FaultBody {
  const causeKept = cutBytes(cause, Math.ceil(draft.reasonBytes * 0.6));
  const left = draft.reasonBytes - jsonBytes(causeKept);
  return { code, cause: causeKept, action: cutBytes(action, left), retry: retry ?? "person" };
}

/** Bytes of the text within a JSON string in UTF-8. */
export function jsonBytes(text: string): number {
  let bytes = 0;
  for (const character of text) bytes += characterBytes(character.codePointAt(0) ?? 0);
  return bytes;
}

function characterBytes(point: number): number {
  if (point < 0x20) return 6;
  if (point === 0x22 || point === 0x5c) return 2;
  if (point < 0x80) return 1;
  if (point < 0x800) return 2;
  if (point >= 0xd800 && point <= 0xdfff) return 6;
  return point < 0x10000 ? 3 : 4;
}

/** The whole text, or as much of it as fits with an ellipsis. */
export function cutBytes(text: string, bytesMax: number): string {
  if (jsonBytes(text) <= bytesMax) return text;
  let kept = "";
  let bytes = characterBytes(0x2026);
  for (const character of text) {
    bytes += characterBytes(character.codePointAt(0) ?? 0);
    if (bytes > bytesMax) break;
    kept += character;
  }
  return `${kept}…`;
}

/** What is left of the item for each domain's reason when every line of the story is written; below zero when it is too large. */
export function reasonRoom(state: EvacuationState): number {
  const { domains, timeline: _, ...head } = state;
  const eachBytes = domainBytes + (state.kind === "evacuate" ? 0 : stopBytes);
  // What is stated of the whole (why it is held, why it has stopped) comes later and is bounded like a line of the story.
  const headBytes = jsonBytes(JSON.stringify({ ...head, held: null, stopped: null })) + 4 * reasonBytesMax;
  const named = domains.reduce((sum, { domain }) => sum + eachBytes + jsonBytes(domain.name), 0);
  const left = itemBytesMax - headBytes - evacuationTimelineMax * (noteBytesMax + lineBytes) - named;
  return Math.min(reasonBytesMax, Math.floor(left / Math.max(1, domains.length)));
}
