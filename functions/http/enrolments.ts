/**
 * Enrolment: a join token and a public key become a host. The private key never leaves the host. One use of the token is
 * taken by a conditional write before the host is made, so N uses never make N + 1 hosts; a repeated enrolment (its answer
 * was lost) with the same name and key finds its host again and takes no second use.
 */
import * as z from "zod/mini";
import { enrolmentPath, hostIdSchema } from "#protocol/identity";
import { publicKeySchema } from "#protocol/signed";
import { hostEnrolled } from "../core/chronicle-host.ts";
import { createTeller } from "../teller.ts";
import type { AppDeps } from "./deps.ts";
import { hostNameSchema } from "./hosts.ts";
import { fault } from "./problem.ts";
import { type Route, route } from "./route.ts";
import { parseToken, sameDigest, sha256Hex } from "./token.ts";

const invalid = (cause: string) => fault("token.invalid", cause, "Make a new one: vmferry join-token create.");

export function enrolmentRoutes({ ports }: AppDeps): Route[] {
  return [
    route({
      method: "POST",
      path: enrolmentPath,
      tag: "enrolments",
      summary: "Enrol a host with a join token and its public key",
      access: "open",
      body: z.strictObject({
        token: z.string().check(z.maxLength(200)),
        name: hostNameSchema,
        /** Ed25519, raw 32 bytes, base64url. */
        publicKey: publicKeySchema,
      }),
      reply: {
        status: 201,
        description: "The host; its shim connects with this id and its own key",
        schema: z.object({
          hostId: hostIdSchema,
          name: z.string(),
          /** By which tickets are signed; the host keeps it and takes no other. */
          controlKey: publicKeySchema,
        }),
      },
      faults: ["token.invalid", "host.nameTaken"],
      async handle({ body: { token, name, publicKey } }) {
        const at = ports.clock.now();
        const parsed = parseToken(token);
        if (parsed === null || parsed.kind !== "join") throw invalid("This is not a join token.");
        const record = await ports.tokens.byId(parsed.id);
        if (
          record === null ||
          record.kind !== "join" ||
          !sameDigest(await sha256Hex(parsed.secret), record.secretSha256)
        )
          throw invalid("This join token is not known.");
        if (Date.parse(record.expiresAt) <= Date.parse(at))
          throw invalid(`This join token expired at ${record.expiresAt}.`);

        const controlKey = await ports.tickets.publicKey();
        const nameTaken = () =>
          fault(
            "host.nameTaken",
            `There is a host ${name} already, with another key.`,
            `Choose another name (--name), or remove the old one first: vmferry host remove ${name}.`,
          );
        const namesake = await ports.hosts.byName(name);
        if (namesake !== null) {
          if (namesake.publicKey !== publicKey) throw nameTaken();
          // Its first answer may have been lost with what was to be told.
          await createTeller(ports)(hostEnrolled(namesake, parsed.id));
          return { status: 201, value: { hostId: namesake.id, name, controlKey } };
        }
        if (!(await ports.tokens.use(parsed.id, at))) throw invalid("This join token has no use left.");
        const id = `h_${ports.ids.ulid()}`;
        const host = { id, name, enrolledAt: at };
        const created = await ports.hosts.create({
          ...host,
          publicKey,
          cordoned: false,
          lastSeenAt: null,
          protocol: null,
          features: [],
          facts: null,
        });
        if (created === "conflict") throw nameTaken();
        // Told before it is answered: a shim that hears nothing enrols again, and so it is told then.
        await createTeller(ports)(hostEnrolled(host, parsed.id));
        ports.log.write("info", "host enrolled", { host: name, token: parsed.id });
        return { status: 201, value: { hostId: id, name, controlKey } };
      },
    }),
  ];
}
