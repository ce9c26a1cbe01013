/** What the Durable Objects use of workerd's own module; the package of types declares it only as a global. */
declare module "cloudflare:workers" {
  /** As the context's, for the call that runs now; known to the module since 2025-08. */
  export function waitUntil(promise: Promise<unknown>): void;

  import type { DurableObjectState } from "@cloudflare/workers-types";

  export abstract class DurableObject<Env = unknown> {
    protected readonly ctx: DurableObjectState;
    protected readonly env: Env;
    constructor(ctx: DurableObjectState, env: Env);
  }
}
