/** Domains over the fleet, from the inventory; one domain with its snapshot tree, asked of its host. */
import * as z from "zod/mini";
import { Fault } from "#protocol/fault";
import { isConnected } from "../refusals.ts";
import type { AppDeps } from "./deps.ts";
import { hostNamed } from "./fleet.ts";
import { type Domain, domainDetailSchema, domainResource, domainSchema } from "./host-resource.ts";
import { describeWaitMs } from "./limits.ts";
import { limitSchema, pageOf } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Route, route } from "./route.ts";

const tag = "domains";

/** Where a page ended: the last row's host and UUID. */
const domainCursor = /^([A-Za-z0-9][A-Za-z0-9._-]{0,127})~([0-9a-f-]{36})$/;

export function domainRoutes({ ports }: AppDeps): Route[] {
  return [
    route({
      method: "GET",
      path: "/v1/domains",
      tag,
      summary: "Domains over the fleet, by host and UUID",
      access: "token",
      query: z.strictObject({
        limit: limitSchema,
        cursor: z.optional(z.string().check(z.regex(domainCursor))),
        host: z.optional(z.string().check(z.minLength(1), z.maxLength(128))),
      }),
      reply: { status: 200, description: "A page of domains", schema: pageOf(domainSchema) },
      faults: ["host.absent"],
      async handle({ query }) {
        const [, afterHost = "", afterUuid = ""] = domainCursor.exec(query.cursor ?? "") ?? [];
        const hosts =
          query.host === undefined
            ? (await ports.hosts.list()).sort((one, other) => (one.name < other.name ? -1 : 1))
            : [await hostNamed(ports, query.host)];
        const items: Domain[] = [];
        // One row more than asked for tells whether there is another page.
        for (const host of hosts.filter(({ name }) => name >= afterHost)) {
          if (items.length > query.limit) break;
          const domains = (await ports.hosts.domainsOf(host.id))
            .filter(({ uuid }) => host.name !== afterHost || uuid > afterUuid)
            .sort((one, other) => (one.uuid < other.uuid ? -1 : 1));
          items.push(...domains.map((domain) => domainResource(domain, host.name)));
        }
        const page = items.slice(0, query.limit);
        const last = page.at(-1);
        const more = items.length > page.length && last !== undefined;
        return { value: { items: page, cursor: more ? `${last.host}~${last.uuid}` : null } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/hosts/:host/domains/:uuid",
      tag,
      summary: "One domain with its snapshot tree, asked of the host; a name is taken as well as a UUID",
      access: "token",
      reply: { status: 200, description: "The domain", schema: domainDetailSchema },
      faults: ["host.absent", "domain.absent", "libvirt.failed", "libvirt.unreachable", "libvirt.refused"],
      async handle({ param }) {
        const host = await hostNamed(ports, param("host"));
        const asked = param("uuid");
        const domains = await ports.hosts.domainsOf(host.id);
        const domain = domains.find(({ uuid }) => uuid === asked) ?? domains.find(({ name }) => name === asked);
        if (domain === undefined)
          throw fault(
            "domain.absent",
            `Host ${host.name} has no domain ${asked}.`,
            `Look at: vmferry domains --host ${host.name}.`,
          );
        const answer = isConnected(host, ports)
          ? await ports.sockets.query(
              host.id,
              { kind: "describeDomain", domain: { uuid: domain.uuid, name: domain.name } },
              describeWaitMs,
            )
          : null;
        if (answer !== null && !answer.ok) throw new Fault(answer.fault);
        if (answer?.body.kind === "describeDomain")
          return {
            value: {
              ...domainResource(answer.body.domain, host.name),
              snapshotTree: answer.body.snapshotTree,
              snapshotsTotal: answer.body.snapshotsTotal,
            },
          };
        return {
          value: { ...domainResource(domain, host.name), snapshotTree: null, snapshotsTotal: domain.snapshots },
        };
      },
    }),
  ];
}
