/**
 * Ids of the migrations that an evacuation starts. An id is made once, in the transition that decides to start, and kept in the
 * state: the effect may be repeated by anybody at any time and names the same migration, which `Runner.request` creates once.
 *
 * It is a ULID as any other: the time of the decision (10 characters), then 13 of the evacuation's own 16 random ones, the place
 * of the domain in the evacuation (2) and the number of the try (1). So no two of one evacuation are alike, two of
 * different evacuations are as unlikely alike as 65 random bits, and a list sorted by id is sorted by time.
 */

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

function digits(value: number, count: number): string {
  let text = "";
  for (let left = value; text.length < count; left = Math.floor(left / 32)) text = `${crockford[left % 32]}${text}`;
  return text;
}

/** `place` from 0 to 1023, `attempt` from 1 to 31. */
export function evacuationMigrationId(evacuationId: string, place: number, attempt: number, atMs: number): string {
  return `m_${digits(atMs, 10)}${evacuationId.slice(12, 25)}${digits(place, 2)}${digits(attempt, 1)}`;
}

/** Unix time at which a migration of that id was decided. */
export function decidedAtMs(migrationId: string): number {
  return [...migrationId.slice(2, 12)].reduce((sum, digit) => sum * 32 + crockford.indexOf(digit), 0);
}
