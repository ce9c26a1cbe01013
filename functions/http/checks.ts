/** `POST /v1/checks`: may this domain move there, and if not, why. Nothing is stored. */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import { faultCodes } from "#protocol/fault";
import { acceptMax } from "../core/limits.ts";
import { runCheck } from "./check.ts";
import { checkSchema } from "./check-resource.ts";
import type { AppDeps } from "./deps.ts";
import { hostNamed, placeDomain } from "./fleet.ts";
import { type Route, route } from "./route.ts";

/** Codes of risks to accept. A code that is not known is a typing mistake and refused; a blocker's code accepts nothing. */
export const acceptSchema = z._default(z.array(z.enum(faultCodes)).check(z.maxLength(acceptMax)), []);

export function checkRoutes({ ports, answerMsMax }: AppDeps): Route[] {
  return [
    route({
      method: "POST",
      path: "/v1/checks",
      tag: "checks",
      summary: "Preflight: asks the hosts what stands in the way and changes nothing",
      access: "token",
      changes: false,
      body: z.strictObject({
        /** Name or UUID. */
        domain: nameSchema,
        source: z.optional(nameSchema),
        /** Absent: every other host is asked. */
        destination: z.optional(nameSchema),
        accept: acceptSchema,
      }),
      reply: { status: 200, description: "What was found, allowed or not", schema: checkSchema },
      faults: ["host.absent", "domain.absent", "domain.notUnique"],
      async handle({ body }) {
        const untilMs = Date.parse(ports.clock.now()) + (answerMsMax ?? Number.POSITIVE_INFINITY);
        const source = body.source === undefined ? null : await hostNamed(ports, body.source);
        const destination = body.destination === undefined ? null : await hostNamed(ports, body.destination);
        const placed = await placeDomain(ports, body.domain, source);
        return { value: await runCheck(ports, placed, destination, body.accept, untilMs) };
      },
    }),
  ];
}
