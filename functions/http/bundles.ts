/** The manual way: export a domain's snapshot metadata into a bundle, fetch it, upload one, restore from it. */
import * as z from "zod/mini";
import { bundleRefSchema, sha256Schema } from "#protocol/blob";
import { domainRefSchema, migrationIdSchema, nameSchema } from "#protocol/command";
import { bundleBytesMax } from "#protocol/limits";
import type { BundleTask } from "../core/bundle-task.ts";
import type { HostRecord } from "../ports.ts";
import { busyRefusal, hostRefusals } from "../refusals.ts";
import { bundleTaskResource, bundleTaskResourceSchema, uploadGrantSchema } from "./bundle-resource.ts";
import { refuse } from "./check.ts";
import type { AppDeps } from "./deps.ts";
import { hostNamed, placeDomain } from "./fleet.ts";
import { resourceId } from "./idempotency.ts";
import { fault } from "./problem.ts";
import { type AppContext, type Asked, type Route, route } from "./route.ts";

const tag = "bundles";

export function bundleRoutes(deps: AppDeps): Route[] {
  const { ports, runner } = deps;

  const publicUrl = (context: AppContext) => deps.publicUrl ?? new URL(context.req.url).origin;

  async function taskOf(id: string): Promise<BundleTask> {
    const task = migrationIdSchema.safeParse(id).success ? await ports.tasks.load(id) : null;
    if (task === null)
      throw fault("request.notFound", "There is no such bundle task.", "Ids are in the answer of POST /v1/bundles.");
    return task;
  }

  /** The task that an Idempotency-Key made before, or the id for a new one. */
  async function taskId(asked: Asked<unknown, unknown>): Promise<{ id: string; known: BundleTask | null }> {
    const id = await resourceId(deps, asked, `b_${ports.ids.ulid()}`);
    const repeated = asked.context.req.header("idempotency-key") !== undefined;
    return { id, known: repeated ? await ports.tasks.load(id) : null };
  }

  /** A task that was cut short between its creation and its push is gone on with; the command's id makes the repetition harmless (I6). */
  const goOn = async (task: BundleTask) => (task.status === "running" ? runner.requestBundle(task) : task);

  async function refuseTask(
    id: string,
    host: HostRecord,
    side: "source" | "destination",
    domain: { uuid: string; name: string },
  ) {
    // A restore brings metadata to a domain that is there or was there: cordoning keeps new domains away, not their repair.
    refuse(hostRefusals({ ...host, cordoned: false }, side, ports));
    const busy = await busyRefusal(ports, domain, id);
    refuse(busy === null ? [] : [busy]);
  }

  const accepted = (task: BundleTask) => ({
    status: 202 as const,
    value: bundleTaskResource(task),
    headers: { location: `/v1/bundles/${task.id}` },
  });

  return [
    route({
      method: "POST",
      path: "/v1/bundles",
      tag,
      summary: "Export a domain's snapshot metadata into a bundle",
      access: "token",
      idempotent: true,
      body: z.strictObject({ domain: nameSchema, host: z.optional(nameSchema) }),
      reply: { status: 202, description: "The export runs; Location names it", schema: bundleTaskResourceSchema },
      faults: [
        "domain.absent",
        "domain.notUnique",
        "domain.busy",
        "host.absent",
        "host.offline",
        "shim.incompatible",
        "request.conflict",
      ],
      async handle(asked) {
        const { id, known } = await taskId(asked);
        if (known !== null) return accepted(await goOn(known));
        const named = asked.body.host === undefined ? null : await hostNamed(ports, asked.body.host);
        const { domain, host } = await placeDomain(ports, asked.body.domain, named);
        const ref = { uuid: domain.uuid, name: domain.name };
        await refuseTask(id, host, "source", ref);
        return accepted(
          await runner.requestBundle({
            id,
            kind: "export",
            host: { id: host.id, name: host.name },
            domain: ref,
            bundle: null,
          }),
        );
      },
    }),
    route({
      method: "GET",
      path: "/v1/bundles/:id",
      tag,
      summary: "How an export or a restore stands",
      access: "token",
      reply: { status: 200, description: "The task", schema: bundleTaskResourceSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        return { value: bundleTaskResource(await taskOf(param("id"))) };
      },
    }),
    route({
      method: "GET",
      path: "/v1/bundles/:id/content",
      tag,
      summary: "The bundle itself: a redirect to a short-lived URL; follow it without the Authorization header",
      access: "token",
      reply: { status: 302, description: "Location is where the bytes are" },
      faults: ["request.notFound", "request.conflict", "bundle.unreachable"],
      async handle({ param, context }) {
        const task = await taskOf(param("id"));
        if (task.bundle === null)
          throw fault(
            "request.conflict",
            task.status === "running" ? "The export has not ended yet." : "The export failed: there is no bundle.",
            `Look at: GET /v1/bundles/${task.id}.`,
            task.status === "running" ? "safe" : "never",
          );
        const grant = await ports.bundles.grantGet({ key: task.bundle.key, publicUrl: publicUrl(context) });
        return new Response(null, { status: 302, headers: { location: grant.url } });
      },
    }),
    route({
      method: "POST",
      path: "/v1/bundle-uploads",
      tag,
      summary: "Ask for a short-lived URL to upload a bundle to; it is kept under its digest, so repeating is harmless",
      access: "token",
      changes: false,
      body: z.strictObject({
        sha256: sha256Schema,
        bytes: z.int().check(z.minimum(1), z.maximum(bundleBytesMax)),
      }),
      reply: { status: 200, description: "Where and how to upload", schema: uploadGrantSchema },
      faults: ["bundle.unreachable"],
      async handle({ body, context }) {
        const grant = await ports.bundles.grantPut({ purpose: "bundle", ...body, publicUrl: publicUrl(context) });
        return { value: grant };
      },
    }),
    route({
      method: "POST",
      path: "/v1/bundle-restores",
      tag,
      summary: "Redefine a domain's snapshots on a host from an uploaded bundle",
      access: "token",
      idempotent: true,
      body: z.strictObject({
        host: nameSchema,
        /** Which domain the bundle is of, as the bundle itself says: it may be unknown to the fleet. */
        domain: domainRefSchema,
        bundle: bundleRefSchema,
      }),
      reply: { status: 202, description: "The restore runs; Location names it", schema: bundleTaskResourceSchema },
      faults: [
        "domain.busy",
        "host.absent",
        "host.offline",
        "shim.incompatible",
        "bundle.unreachable",
        "bundle.altered",
        "request.conflict",
      ],
      async handle(asked) {
        const { id, known } = await taskId(asked);
        if (known !== null) return accepted(await goOn(known));
        const { host: hostName, domain, bundle } = asked.body;
        const host = await hostNamed(ports, hostName);
        await refuseTask(id, host, "destination", domain);
        // The bucket's own key for this digest: a restore never reads an object that was not uploaded as a bundle.
        const { key } = await ports.bundles.grantPut({
          purpose: "bundle",
          sha256: bundle.sha256,
          bytes: bundle.bytes,
          publicUrl: publicUrl(asked.context),
        });
        const head = key === bundle.key ? await ports.bundles.head(key) : null;
        if (head === null)
          throw fault(
            "bundle.unreachable",
            "No bundle with this key and digest was uploaded.",
            "Ask for a URL at POST /v1/bundle-uploads and upload it first.",
          );
        if (head.bytes !== bundle.bytes)
          throw fault(
            "bundle.altered",
            `The uploaded bundle has ${head.bytes} bytes instead of ${bundle.bytes}.`,
            "Upload it again.",
          );
        return accepted(
          await runner.requestBundle({ id, kind: "restore", host: { id: host.id, name: host.name }, domain, bundle }),
        );
      },
    }),
  ];
}
