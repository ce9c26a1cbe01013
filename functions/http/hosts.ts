/** Hosts: list, look, cordon, remove. */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import type { MigrationState } from "../core/state.ts";
import { tellEnd } from "../migration-told.ts";
import { createTeller } from "../teller.ts";
import type { AppDeps } from "./deps.ts";
import { hostNamed } from "./fleet.ts";
import { domainResource, hostDetailSchema, hostResource, hostSchema } from "./host-resource.ts";
import { pageOf, pageQuerySchema } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Route, route } from "./route.ts";

const tag = "hosts";

export function hostRoutes({ ports }: AppDeps): Route[] {
  return [
    route({
      method: "GET",
      path: "/v1/hosts",
      tag,
      summary: "Hosts by name, with connection, facts and capacity",
      access: "token",
      query: pageQuerySchema,
      reply: { status: 200, description: "A page of hosts", schema: pageOf(hostSchema) },
      async handle({ query }) {
        const hosts = (await ports.hosts.list()).sort((one, other) => (one.name < other.name ? -1 : 1));
        const after = query.cursor;
        const rest = after === undefined ? hosts : hosts.filter(({ name }) => name > after);
        const items = rest.slice(0, query.limit).map((host) => hostResource(host, ports));
        return { value: { items, cursor: rest.length > items.length ? (items.at(-1)?.name ?? null) : null } };
      },
    }),
    route({
      method: "GET",
      path: "/v1/hosts/:host",
      tag,
      summary: "One host with its domains",
      access: "token",
      reply: { status: 200, description: "The host", schema: hostDetailSchema },
      faults: ["host.absent"],
      async handle({ param }) {
        const host = await hostNamed(ports, param("host"));
        const domains = (await ports.hosts.domainsOf(host.id)).sort((one, other) => (one.name < other.name ? -1 : 1));
        return {
          value: {
            ...hostResource(host, ports),
            domains: domains.map((domain) => domainResource(domain, host.name)),
          },
        };
      },
    }),
    route({
      method: "PATCH",
      path: "/v1/hosts/:host",
      tag,
      summary: "Cordon or uncordon a host: a cordoned host takes no new domains and may still give its own away",
      access: "token",
      body: z.strictObject({ cordoned: z.boolean() }),
      reply: { status: 200, description: "The host", schema: hostSchema },
      faults: ["host.absent"],
      async handle({ param, body, principal }) {
        const host = await hostNamed(ports, param("host"));
        if (!(await ports.hosts.setCordoned(host.id, body.cordoned)))
          throw fault("host.absent", `Host ${host.name} was removed meanwhile.`, "Look at: vmferry hosts.");
        ports.log.write("info", body.cordoned ? "host cordoned" : "host uncordoned", {
          host: host.name,
          by: principal.name,
        });
        return { value: hostResource({ ...host, cordoned: body.cordoned }, ports) };
      },
    }),
    route({
      method: "DELETE",
      path: "/v1/hosts/:host",
      tag,
      summary: "Forget a host: its key opens nothing any more; its domains are not touched",
      access: "token",
      reply: { status: 204, description: "Forgotten" },
      faults: ["host.absent", "request.conflict"],
      async handle({ param, principal }) {
        const host = await hostNamed(ports, param("host"));
        const owed: MigrationState[] = [];
        for (const migration of await ports.migrations.migrationsOf(host.id)) {
          // One that has ended without this host only waits to sweep it, which nobody can when it is gone.
          const state = await ports.migrations.load(migration);
          if (state !== null && state.endedAt !== null) owed.push(state);
          else
            throw fault(
              "request.conflict",
              `Host ${host.name} takes part in ${migration}, which has not ended.`,
              `Wait for its end: vmferry migration watch ${migration}.`,
              "safe",
            );
        }
        const tell = createTeller(ports);
        for (const state of owed) {
          // Nobody will sweep it any more: its result is what it is now.
          const isLast = state.fenced !== null && state[state.fenced.side].id === host.id;
          await tellEnd(tell, isLast ? { ...state, step: "ended" } : state);
          await ports.migrations.unpoint([host.id], state.id);
        }
        await ports.hosts.remove(host.id);
        await ports.sockets.drop(host.id, "the host was removed");
        ports.log.write("info", "host removed", { host: host.name, by: principal.name });
        return new Response(null, { status: 204 });
      },
    }),
  ];
}

/** A host's name: what fits a DNS label chain, so that it can stand in a path, a unit and a log line unquoted. */
export const hostNameSchema = nameSchema.check(z.maxLength(128), z.regex(/^[A-Za-z0-9][A-Za-z0-9._-]*$/));
