/**
 * A plan as a person reads it before anything moves: every domain with where it goes, why, when and what else would do; what stays and what to do about
 * it; the room that there is; the way home.
 */
import type { EvacuationLimits, EvacuationPlan, Planned } from "../http/evacuation-resource.ts";
import { tableLines } from "./table.ts";
import { durationText, sizeText } from "./terminal.ts";

const verbs: Record<EvacuationPlan["kind"], string> = {
  evacuate: "evacuate",
  undo: "undo of the evacuation of",
  restore: "restore",
};

export const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;

/** Migrations at once, in a person's words. */
export const limitsText = ({ outMax, inMax, fleetMax, networkMax }: EvacuationLimits): string =>
  [
    `${outMax} out of a host`,
    `${inMax} into one`,
    ...(networkMax === null ? [] : [`${networkMax} of a network`]),
    `${fleetMax} of the fleet`,
  ].join(", ");

/** The way home is not asked about: what is true then is asked then. */
function moveRows(moves: readonly Planned[], isAsked: boolean): string[] {
  return tableLines(
    [
      "WAVE",
      "DOMAIN",
      "FROM",
      "TO",
      "MEMORY",
      "VCPUS",
      "SNAPSHOTS",
      "STARTS",
      "TAKES",
      ...(isAsked ? ["CHECKED"] : []),
    ],
    moves.map((move) => [
      String(move.wave + 1),
      move.domain.name,
      move.from,
      move.to,
      sizeText(move.memoryBytes),
      String(move.vcpus),
      String(move.snapshots),
      `+${durationText(move.startMs)}`,
      durationText(move.endMs - move.startMs),
      ...(isAsked ? [move.proven ? "yes" : "no answer yet"] : []),
    ]),
  );
}

const reasons = (moves: readonly Planned[]): string[] =>
  moves.flatMap(({ domain, to, reason, runnersUp }) => [
    `  ${domain.name} -> ${to}: ${reason}`,
    ...runnersUp.map(({ host, why }) => `    else ${host}: ${why}`),
  ]);

const obstacles = (blocked: EvacuationPlan["blocked"]): string[] =>
  blocked.flatMap(({ domain, from, blocker }) => [
    `  ${domain.name} on ${from}: ${blocker.code}: ${blocker.cause}`,
    `    next: ${blocker.action}`,
  ]);

function roomLines(rooms: EvacuationPlan["rooms"]): string[] {
  const share = (before: number, after: number, max: number, text: (value: number) => string) =>
    `${text(before)} -> ${text(after)} of ${text(max)}`;
  return tableLines(
    ["HOST", "MEMORY", "VCPUS"],
    rooms.map((room) => [
      room.host,
      share(room.memoryBytesBefore, room.memoryBytesAfter, room.memoryBytesMax, sizeText),
      share(room.vcpusBefore, room.vcpusAfter, room.vcpusMax, (value) => String(Math.round(value))),
    ]),
  );
}

/** Lines of a whole plan. */
export function planLines(plan: EvacuationPlan): string[] {
  const { moves, blocked, rooms, home, homeBlocked } = plan;
  const ends = new Date(Date.parse(plan.at) + plan.makespanMs).toISOString();
  const late = plan.deadlineAt !== null && ends > plan.deadlineAt;
  return [
    `plan     ${verbs[plan.kind]} ${plan.host}: ${count(moves.length, "domain")} would move, ${blocked.length} would stay`,
    ...(moves.length === 0
      ? []
      : [
          `time     about ${durationText(plan.makespanMs)}, to ${ends}${late ? `, after the deadline at ${plan.deadlineAt}: what does not fit stays` : ""}`,
          `at once  ${limitsText(plan.limits)}`,
          "",
          ...moveRows(moves, true),
          "",
          "why there",
          ...reasons(moves),
        ]),
    ...(blocked.length === 0 ? [] : ["", "stays, because", ...obstacles(blocked)]),
    ...(rooms.length === 0 ? [] : ["", "room, before -> after", ...roomLines(rooms).map((line) => `  ${line}`)]),
    ...(home.length === 0 ? [] : ["", "the way home", ...moveRows(home, false).map((line) => `  ${line}`)]),
    ...(homeBlocked.length === 0 ? [] : ["", "could not go home as things stand", ...obstacles(homeBlocked)]),
    ...(plan.notes.length === 0 ? [] : ["", ...plan.notes.map((note) => `note     ${note}`)]),
    "",
    moves.length === 0 && blocked.length === 0
      ? "There is nothing to move."
      : "Nothing was changed. The same command without --dry-run does it; each step is planned anew with what is true then.",
  ];
}
