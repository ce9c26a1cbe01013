/** The real Worker with a side door to its ports, so that the contract cases can call them from outside. Only for tests. */
import * as z from "zod/mini";
import worker, { MigrationFeed, HostSocket as RealHostSocket, WebhookBell } from "#functions/entry/worker";
import { type WorkerEnv, wire } from "#functions/entry/worker-wiring";
import { objectOf } from "#functions/socket/object-namespace";
import { downMessageSchema, progressSchema, querySchema } from "#protocol/message";

export { MigrationFeed, WebhookBell };

/** Says which instance answers, so that a test can see that an earlier one was evicted. */
export class HostSocket extends RealHostSocket {
  readonly #born = crypto.randomUUID();

  override async fetch(request: Request): Promise<Response> {
    return new URL(request.url).pathname === "/instance" ? new Response(this.#born) : super.fetch(request);
  }
}

const callSchema = z.discriminatedUnion("call", [
  z.object({ call: z.literal("push"), hostId: z.string(), message: downMessageSchema }),
  z.object({ call: z.literal("query"), hostId: z.string(), query: querySchema, waitMs: z.number() }),
  z.object({ call: z.literal("progress"), hostId: z.string(), migrationId: z.string() }),
  z.object({ call: z.literal("drop"), hostId: z.string(), cause: z.string() }),
  z.object({ call: z.literal("instance"), hostId: z.string() }),
  z.object({
    call: z.literal("publish"),
    topic: z.string(),
    version: z.optional(z.int()),
    progress: z.optional(progressSchema),
  }),
  z.object({
    call: z.literal("host"),
    id: z.string(),
    name: z.string(),
    publicKey: z.string(),
  }),
]);

async function called(env: WorkerEnv, call: z.infer<typeof callSchema>): Promise<unknown> {
  const { ports } = wire(env);
  switch (call.call) {
    case "push":
      return ports.sockets.push(call.hostId, call.message);
    case "query":
      return ports.sockets.query(call.hostId, call.query, call.waitMs);
    case "progress":
      return ports.sockets.progress(call.hostId, call.migrationId);
    case "drop":
      return ports.sockets.drop(call.hostId, call.cause);
    case "instance":
      return (await objectOf(env.HOST_SOCKET, call.hostId).fetch(new Request("http://test.internal/instance"))).text();
    case "publish":
      return ports.feed.publish(
        call.topic,
        call.progress === undefined
          ? { type: "changed", version: call.version ?? 0 }
          : { type: "progress", progress: call.progress },
      );
    case "host":
      return ports.hosts.create({
        id: call.id,
        name: call.name,
        publicKey: call.publicKey,
        cordoned: false,
        enrolledAt: ports.clock.now(),
        lastSeenAt: null,
        protocol: null,
        features: [],
        facts: null,
      });
  }
}

/** JSON lines of a topic until the client leaves. */
function watched(env: WorkerEnv, topic: string): Response {
  const left = new AbortController();
  const events = wire(env).ports.feed.subscribe(topic, left.signal)[Symbol.asyncIterator]();
  const body = new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(new TextEncoder().encode("\n")),
    async pull(controller) {
      const { done, value } = await events.next();
      if (done) controller.close();
      else controller.enqueue(new TextEncoder().encode(`${JSON.stringify(value)}\n`));
    },
    cancel: () => left.abort(),
  });
  return new Response(body);
}

// biome-ignore lint/style/noDefaultExport: a Worker is its module's default export.
export default {
  async fetch(request: Request, env: WorkerEnv): Promise<Response> {
    const url = new URL(request.url);
    if (url.pathname === "/test/call") {
      const value = await called(env, callSchema.parse(await request.json()));
      return Response.json({ value: value ?? null });
    }
    if (url.pathname === "/test/watch") return watched(env, url.searchParams.get("topic") ?? "");
    return worker.fetch(request, env);
  },
};
