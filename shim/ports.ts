/**
 * What the steps on a host (source.ts, destination.ts, inspection.ts) are given, and what the executor promises them.
 * The executor owns order, journal and repetition; a step owns libvirt.
 */
import type { LibvirtConnection } from "#libvirt/client";
import type { Blob, BundleRef, HandedBlob } from "#protocol/blob";
import type { BundleEntry } from "#protocol/bundle";
import type { BundleFacts, WriteBundle } from "#protocol/bundle-writer";
import type { Command, CommandKind, CommandOf, Report, ReportBodyOf } from "#protocol/command";
import type { Progress } from "#protocol/message";
import type { PeerAddress } from "#protocol/peer-address";
import type { PeerReply, PeerRequest, Ticket } from "#protocol/ticket";

/** One line of a migration's journal. Written and fsynced before what it announces happens, and after what it states has happened. */
export type JournalEntry =
  | { type: "intent"; at: string; command: Command }
  | { type: "report"; at: string; report: Report }
  | { type: "acknowledged"; at: string; commandId: string }
  /** A point inside a step that recovery must know of: "stripping", "redefined", "finishing", "connected"... */
  | { type: "milestone"; at: string; commandId: string; name: string; data: Record<string, unknown> };

export type Milestone = Extract<JournalEntry, { type: "milestone" }>;

export interface Journal {
  /** Appends and fsyncs. */
  append(migrationId: string, entry: JournalEntry): Promise<void>;
  /** Everything of one migration in order; a torn last line is dropped. */
  read(migrationId: string): Promise<JournalEntry[]>;
  /** Migrations with a journal on disk. */
  list(): Promise<string[]>;
  /** Drops the journal and keeps a tombstone with the epoch, so that a late duplicate is refused and never executed (I6). */
  forget(migrationId: string, epoch: number): Promise<void>;
  forgottenEpoch(migrationId: string): number | null;
}

/** Payloads of a command: inline, or through the bucket by grant; digests checked (`cookie.altered`, `bundle.altered`). */
export interface Payloads {
  read(blob: Blob | HandedBlob): Promise<Uint8Array>;
  /** Inline up to 24 KiB, else uploaded. Throws `cookie.tooLarge` above libvirt's 4 MiB. */
  write(bytes: Uint8Array): Promise<Blob>;
  /** Uploads a finished bundle file (content-addressed, If-None-Match) and returns its key. Throws `bundle.unreachable`. */
  uploadBundle(file: { path: string; sha256: string; bytes: number }): Promise<{ key: string }>;
  /** Downloads to the migration's own bundle file unless it is there already with that digest; returns its path.
   *  Throws `bundle.unreachable`, `bundle.altered`. */
  downloadBundle(ref: BundleRef): Promise<string>;
}

/** Bundle files of this host; the real one is `BundleFiles`. Reading and writing is as in bundle-reader.ts and bundle-writer.ts. */
export interface BundleAccess {
  read(path: string): AsyncIterable<BundleEntry>;
  /** Reads all of it and compares with what was announced. Throws `bundle.malformed`, `bundle.altered`. */
  verify(path: string, expected: Partial<BundleFacts>): Promise<BundleFacts>;
  /** On disk, whole, when it resolves. */
  write(bundle: WriteBundle): Promise<BundleFacts>;
}

/** The way to other shims. Both ends of a connection prove the keys that enrolment bound to their hosts. */
export interface Peers {
  /** One request to the destination that a ticket names, and its answer; the connection is kept for the next one.
   *  Throws `Fault` `peer.unreachable` when no answer came, for whatever reason: which is no answer (I2). */
  ask(to: Ticket["destination"], request: PeerRequest, patienceMs: number): Promise<PeerReply>;
  /** Keeps a proven connection open until the returned function is called, so that no dialling falls into the blackout. */
  hold(to: Ticket["destination"]): () => void;
}

/** Who this host is to others, and whom it believes. */
export interface Seal {
  hostId: string;
  /** Of the key that enrolment bound to this host; raw, base64url. */
  publicKey: string;
  sign(text: string): string;
  /** Another one after each boot of the machine: what was in memory before is gone. */
  bootId: string;
  /** The key by which the control plane signs tickets; null: this host was never told one. */
  controlKey(): string | null;
  /** Where this host's own peer channel listens; null: nowhere. */
  peerAddress(): PeerAddress | null;
}

/** The libvirt connection that a migration keeps from its first command to its last. */
export interface MigrationConnection {
  libvirt: LibvirtConnection;
  /** False when an earlier connection of this migration was lost (shim restarted, daemon restarted): what libvirt bound to
   *  it is gone: an incoming domain was destroyed, an outgoing job was dropped. */
  continuous: boolean;
}

/** What one execution of a command is given. */
export interface Work<K extends CommandKind = CommandKind> {
  command: CommandOf<K>;
  /** True when an earlier execution of this very command began and its end is not known (crash). */
  resumed: boolean;
  /** Earlier entries of this migration's journal. */
  history: readonly JournalEntry[];
  /** Journals a milestone and waits until it is on disk. */
  milestone(name: string, data?: Record<string, unknown>): Promise<void>;
  /** True once this migration's journal has a milestone of that name, also one that another step wrote meanwhile. */
  happened(name: string): boolean;
  connection(): Promise<MigrationConnection>;
  /** The shared connection for reads and job statistics, so that they never wait behind Perform. */
  inventory(): Promise<LibvirtConnection>;
  payloads: Payloads;
  bundles: BundleAccess;
  peers: Peers;
  seal: Seal;
  /** Where this migration's bundle is written on this host; kept until the migration is forgotten (I3). */
  bundlePath: string;
  /** The destination's listen address; null: libvirt's own choice. */
  migrationAddress: string | null;
  /** Paths below which disks may lie; empty: anywhere. */
  allowPaths: readonly string[];
  progress(progress: Progress): void;
  /** Waits; injected so that tests need no real time. */
  sleep(ms: number): Promise<void>;
  now(): string;
}

/** A step: does the work of one command and returns the facts to report, or throws a `Fault`. A failed Perform throws `StepFault`. */
export type Step<K extends CommandKind> = (work: Work<K>) => Promise<ReportBodyOf<K>>;
export type Steps = { [K in CommandKind]: Step<K> };
