/** The whole story of a migration in lines: who, how it went step by step, what was carried and where it lies, why it failed. */
import type { Migration } from "../http/migration-resource.ts";
import { stepText } from "./progress-bar.ts";
import { tableLines } from "./table.ts";
import { durationText, sizeText } from "./terminal.ts";

const placeText = { item: "in its own item in DynamoDB", bucket: "in the bucket" } as const;

const exactSize = (bytes: number) => (bytes < 1024 ? `${bytes} B` : `${sizeText(bytes)} (${bytes} B)`);

/** Who, and on whose behalf. A rule asks in its own name. */
const askedBy = ({ by, evacuation }: NonNullable<Migration["origin"]>) =>
  evacuation === null ? by : `${by}, by ${evacuation}`;

function headLines(migration: Migration): string[] {
  const { domain, source, destination, status, step, createdAt, endedAt, epoch, accept, options, origin } = migration;
  const took = endedAt === null ? "" : `, took ${durationText(Date.parse(endedAt) - Date.parse(createdAt))}`;
  const wishes = [
    ...(options.offline ? ["offline"] : []),
    ...(options.autoConverge ? ["auto-converge"] : []),
    ...(options.bandwidthMiBps === null ? [] : [`at most ${options.bandwidthMiBps} MiB/s`]),
    ...accept.map((code) => `accepted ${code}`),
  ];
  return [
    `migration    ${migration.id}`,
    `domain       ${domain.name} (${domain.uuid})`,
    `way          ${source} -> ${destination}`,
    `status       ${status}${step === "ended" ? "" : `, ${stepText(step)}`}, epoch ${epoch}`,
    `began        ${createdAt}`,
    ...(origin === null ? [] : [`asked by     ${askedBy(origin)}`]),
    ...(endedAt === null ? [`changed      ${migration.updatedAt}`] : [`ended        ${endedAt}${took}`]),
    ...(wishes.length > 0 ? [`options      ${wishes.join(", ")}`] : []),
  ];
}

const cancelText = { pending: "not decided yet", won: "in time", late: "too late" } as const;

function factLines({ snapshots, progress, strippedMs, receipt, cancel, fenced, sweep }: Migration): string[] {
  return [
    `snapshots    ${snapshots.total}, staged ${snapshots.staged}, verified ${snapshots.verified}`,
    ...(strippedMs === null ? [] : [`stripped     the source lacked its metadata for ${durationText(strippedMs)}`]),
    ...(progress.transferredBytes === null ? [] : [`transferred  ${exactSize(progress.transferredBytes)}`]),
    ...(progress.blackoutMs === null
      ? []
      : [`blackout     ${durationText(progress.blackoutMs)} as libvirt measured it`]),
    ...(receipt === null ? [] : [`receipt      ${receipt.outcome} at ${receipt.at}, known by ${receipt.evidence}`]),
    ...(cancel === null ? [] : [`cancel       by ${cancel.by} at ${cancel.at}: ${cancelText[cancel.outcome]}`]),
    ...(fenced === null ? [] : [`fenced       ${fenced.host} by ${fenced.by} at ${fenced.at}: ${fenced.reason}`]),
    ...(sweep.length === 0
      ? []
      : [`owed         ${sweep.join(", ")} by ${fenced?.host ?? "the fenced host"} when it returns`]),
  ];
}

function carriedLines({ cookies, xml, bundle }: Migration): string[] {
  const rows = cookies.map(({ cookie, phase, bytes, sha256, in: where }) => [
    `cookie ${cookie}`,
    `from ${phase}`,
    exactSize(bytes),
    placeText[where],
    sha256,
  ]);
  if (xml !== null) rows.push(["XML", "from begin", exactSize(xml.bytes), placeText[xml.in], xml.sha256]);
  if (bundle !== null)
    rows.push([
      "bundle",
      `${bundle.snapshots} snapshots, ${bundle.checkpoints} checkpoints`,
      exactSize(bundle.bytes),
      `${placeText.bucket} as ${bundle.key}`,
      bundle.sha256,
    ]);
  if (rows.length === 0) return [];
  return ["", ...tableLines(["CARRIED", "WHAT", "SIZE", "WHERE", "SHA-256"], rows)];
}

function timelineLines({ timeline }: Migration): string[] {
  if (timeline.length === 0) return [];
  const rows = timeline.map(({ at, step, side, ms, note }) => [
    at,
    step,
    side ?? "-",
    ms === null ? "-" : durationText(ms),
    note,
  ]);
  return ["", ...tableLines(["TIME", "STEP", "SIDE", "TOOK", "NOTE"], rows)];
}

function errorLines({ error, findings }: Migration): string[] {
  const found = findings.map(({ severity, code, cause }) => `${severity.padEnd(12)} ${code}: ${cause}`);
  if (error === null) return found.length === 0 ? [] : ["", ...found];
  return [
    "",
    ...found,
    `error        ${error.code} in ${error.phase}${error.side === null ? "" : ` on the ${error.side}`}`,
    `cause        ${error.cause}`,
    ...(error.libvirt === undefined
      ? []
      : [`libvirt      error ${error.libvirt.code}, domain ${error.libvirt.domain}: ${error.libvirt.message}`]),
    `next         ${error.action}`,
  ];
}

export const storyLines = (migration: Migration): string[] => [
  ...headLines(migration),
  ...factLines(migration),
  ...carriedLines(migration),
  ...timelineLines(migration),
  ...errorLines(migration),
];
