/** libvirt and QEMU give their version as one number: major * 1,000,000 + minor * 1,000 + release. */

/** 9000000 -> "9.0.0", 7002022 -> "7.2.22". */
export function formatVersion(version: number): string {
  const major = Math.floor(version / 1_000_000);
  const minor = Math.floor(version / 1_000) % 1_000;
  return `${major}.${minor}.${version % 1_000}`;
}
