/**
 * What a path is on this host: the identity by which two shims find out whether they see the same file. Paths are read as
 * the shim sees them, which is how its host's libvirt sees them unless the shim runs elsewhere.
 */
import { readFile, stat, statfs } from "node:fs/promises";
import * as z from "zod/mini";

export const fileIdentitySchema = z.object({
  path: z.string(),
  /** `file`, `block`, `other`; `absent` and `unreadable` say that this host cannot use it. */
  kind: z.enum(["file", "block", "other", "absent", "unreadable"]),
  bytes: z.number(),
  inode: z.string(),
  /** Device number of the file system it lies on, or of the block device itself. */
  device: z.string(),
  /** f_type of statfs as hexadecimal; null for a block device. */
  fsType: z.nullable(z.string()),
});
export type FileIdentity = z.infer<typeof fileIdentitySchema>;

/**
 * File systems that several hosts mount at once and that libvirt itself takes as shared (virFileIsSharedFSType, 9.0.0 to
 * 11.3.0); magic numbers of statfs(2).
 */
export const sharedFileSystems: ReadonlyMap<string, string> = new Map([
  ["6969", "NFS"],
  ["1161970", "GFS2"],
  ["7461636f", "OCFS2"],
  ["5346414f", "AFS"],
  ["517b", "SMB"],
  ["ff534d42", "CIFS"],
  ["fe534d42", "SMB2"],
  ["c36400", "CEPH"],
  ["47504653", "GPFS"],
  ["aad7aaea", "PANFS"],
  ["65735546", "FUSE"],
  ["786f4256", "VBOXSF"],
  ["19830326", "FHGFS"],
  ["bd00bd0", "LUSTRE"],
]);

/** FUSE may be GlusterFS, which is shared, or sshfs of one host, which is not: its type alone proves nothing. */
const ambiguous: ReadonlySet<string> = new Set(["65735546", "786f4256"]);

export function isSharedFileSystem(fsType: string | null): boolean {
  return fsType !== null && sharedFileSystems.has(fsType) && !ambiguous.has(fsType);
}

/** The identity of a path; never throws for a path that is not usable. */
export async function identifyFile(path: string): Promise<FileIdentity> {
  const none = { path, bytes: 0, inode: "0", device: "0", fsType: null };
  try {
    const facts = await stat(path, { bigint: true });
    if (facts.isBlockDevice())
      return { ...none, kind: "block", inode: facts.ino.toString(), device: facts.rdev.toString() };
    const fs = await statfs(path, { bigint: true });
    return {
      path,
      kind: facts.isFile() ? "file" : "other",
      bytes: Number(facts.size),
      inode: facts.ino.toString(),
      device: facts.dev.toString(),
      fsType: BigInt.asUintN(32, fs.type).toString(16),
    };
  } catch (error) {
    const absent = error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR");
    return { ...none, kind: absent ? "absent" : "unreadable" };
  }
}

/** The kernel's own id of this boot of this machine: equal ids mean one machine. */
export async function readBootId(): Promise<string> {
  return (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
}

/**
 * `same`: provably one file. `shared`: on a file system that libvirt takes as shared, with equal inode. `different`: two
 * files under one path. `unproven`: nothing says either.
 */
export type Sameness = "same" | "shared" | "different" | "unproven";

export function compareFiles(one: FileIdentity, other: FileIdentity, sameMachine: boolean): Sameness {
  if (one.kind !== other.kind) return "different";
  if (sameMachine) return one.device === other.device && one.inode === other.inode ? "same" : "different";
  // Device numbers of two machines say nothing; the disk behind a block device is not known here.
  if (one.kind === "block") return "unproven";
  if (isSharedFileSystem(one.fsType) && one.fsType === other.fsType)
    return one.inode === other.inode ? "shared" : "different";
  return "unproven";
}

/** True when a path lies below one of the allowed folders; an empty list allows all. Paths with `..` never do. */
export function isAllowedPath(path: string, allowPaths: readonly string[]): boolean {
  if (allowPaths.length === 0) return true;
  if (path.split("/").includes("..")) return false;
  return allowPaths.some((folder) => path === folder || path.startsWith(folder.endsWith("/") ? folder : `${folder}/`));
}
