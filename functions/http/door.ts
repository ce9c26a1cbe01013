/**
 * The door of shims: where their websocket is and who speaks first there (shim/protocol/identity.ts). Open to everybody, for it
 * says no more than a deployment's address. Asked with a connect proof it says whether that proof holds, because a socket that is refused in its
 * request cannot say why; the proof's nonce stays unused.
 */
import * as z from "zod/mini";
import { Fault } from "#protocol/fault";
import { connectHeader, type Door, doorPath, doorSchema, hostIdSchema } from "#protocol/identity";
import { checkConnectProof } from "../connect-proof.ts";
import type { AppDeps } from "./deps.ts";
import { type Route, route } from "./route.ts";

/** A socket beside the API, where the control plane speaks first: the Worker and `vmferry up`. */
const besideApi: Pick<Door, "socket" | "hello"> = { socket: null, hello: "challenge" };

export function doorRoutes({ ports, door = besideApi }: AppDeps): Route[] {
  return [
    route({
      method: "GET",
      path: doorPath,
      tag: "enrolments",
      summary: `Where shims connect and who speaks first. With \`${connectHeader}\` it also says why a proof does not hold`,
      access: "open",
      query: z.strictObject({
        /** Who asks; a proof must be of that host. */
        host: z.optional(hostIdSchema),
      }),
      reply: { status: 200, description: "The door", schema: doorSchema },
      faults: ["shim.unauthorised"],
      async handle({ query, context }) {
        const header = context.req.header(connectHeader);
        if (header !== undefined) {
          const checked = await checkConnectProof({ ...ports, socket: door.socket ?? "" }, header, query.host);
          if (!checked.ok) throw new Fault(checked.fault);
        }
        return { value: { ...door, atMs: Date.parse(ports.clock.now()) } };
      },
    }),
  ];
}
