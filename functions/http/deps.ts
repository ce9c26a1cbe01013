/**
 * What the HTTP face needs: the ports it reads and the few things it may ask of the runner. Stated here and not
 * imported from the runner, so that the app says what it uses and tests can give it less.
 */
import type { BundleRef } from "#protocol/blob";
import type { DomainRef, MigrateOptions, Side } from "#protocol/command";
import type { Door } from "#protocol/identity";
import type { BundleTask } from "../core/bundle-task.ts";
import type { Origin } from "../core/origin.ts";
import type { Cron } from "../core/schedule.ts";
import type { HostRef, MigrationState } from "../core/state.ts";
import type { EvacuationRunner } from "../evacuation-runner.ts";
import type { MetricCounter } from "../metric-counter.ts";
import type { Ports, RuleStore } from "../ports.ts";
import type { RuleBook } from "../rule-book.ts";
import type { RuleRunner } from "../rule-runner.ts";
import type { SecretSeal } from "../secret-seal.ts";
import type { TriggerDesk } from "../trigger-desk.ts";
import type { WebhookFace } from "../webhook-face.ts";

export interface Requests {
  /** Creates a migration under this id and starts it. Throws `domain.busy`. */
  request(input: {
    id: string;
    domain: DomainRef;
    source: HostRef;
    destination: HostRef;
    options: MigrateOptions;
    accept: string[];
    origin?: Origin | undefined;
  }): Promise<MigrationState>;
  requestBundle(input: {
    id: string;
    kind: "export" | "restore";
    host: HostRef;
    domain: DomainRef;
    bundle: BundleRef | null;
  }): Promise<BundleTask>;
  /** Throws `request.notFound`, `request.conflict`. */
  cancel(id: string, by: string): Promise<MigrationState>;
  /** A person's statement that a side's host is fenced. Throws `request.notFound`, `request.conflict`. */
  resolve(id: string, statement: { by: string; reason: string; fenced: Side }): Promise<MigrationState>;
}

/** Rules, their runs and the doors of their triggers. */
export interface RuleFace {
  rules: RuleStore;
  book: RuleBook;
  runner: RuleRunner;
  desk: TriggerDesk;
  seal: SecretSeal;
  cron: Cron;
}

/** What `/metrics` tells beyond what is so at this moment. */
export interface MetricFace {
  counter: Pick<MetricCounter, "view">;
  /** Of vmferry. */
  version: string;
}

export interface AppDeps {
  ports: Ports;
  runner: Requests;
  evacuations: Pick<EvacuationRunner, "plan" | "request" | "cancel">;
  /** Absent: this deployment runs no rules, and says so. */
  rules?: RuleFace | undefined;
  /** Absent: this deployment posts to no webhooks, and says so. */
  webhooks?: WebhookFace | undefined;
  /** Absent: `/metrics` tells only what is so at this moment and what this isolate has done. */
  metrics?: MetricFace | undefined;
  /** SHA-256 of the admin token, hex; null: there is none and only API tokens open the door. */
  adminTokenSha256: string | null;
  /** The address under which clients reach us; absent: what the request itself was sent to. */
  publicUrl?: string | undefined;
  /** The adapters' own counters in this isolate, which is given by its name, as Prometheus text (`RequestCounter.text`), appended to `/metrics`. */
  storeMetrics?: ((isolate: string) => string) | undefined;
  /** How long an event stream waits for the feed before it looks into the store and says it is alive. */
  eventsIdleMs?: number | undefined;
  /** How often a stream of all events looks into the store. */
  eventsPollMs?: number | undefined;
  /** What carries our answers gives up after this; absent: it waits as long as it takes. */
  answerMsMax?: number | undefined;
  /** How what carries our answers bounds an event stream; absent: not at all. */
  eventsCarrier?: EventsCarrier | undefined;
  /** Where shims connect and who speaks first; absent: beside this API, and we do. */
  door?: Pick<Door, "socket" | "hello"> | undefined;
}

export interface EventsCarrier {
  /** `events`: each reaches the client when it is sent. `whole`: nothing does before the stream has ended, so it ends with the first news. */
  delivers: "events" | "whole";
  /** The stream is ended in good order after this; the client resumes it. */
  msMax: number;
}
