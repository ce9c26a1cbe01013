/** `/healthz` says that this process serves, and asks nothing else so that a slow store kills no isolate. */
import type { AppDeps } from "./deps.ts";
import { healthSchema } from "./health-resource.ts";
import { type Route, route } from "./route.ts";

export function healthRoutes(deps: AppDeps): Route[] {
  return [
    route({
      method: "GET",
      path: "/healthz",
      tag: "health",
      summary: "Whether this process serves",
      access: "open",
      reply: { status: 200, description: "It does", schema: healthSchema },
      async handle() {
        return { value: { status: "ok", at: deps.ports.clock.now() } };
      },
    }),
  ];
}
