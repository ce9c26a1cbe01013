/** The Worker: one door for clients, shims and local storage, and the timer. It routes and holds no logic. */
import { hostIdSchema, shimSocketPath } from "#protocol/identity";
import { facePath } from "../bundle/s3-bundles.ts";
import { everyMinute } from "../minute.ts";
import { FeedObject } from "../socket/feed.ts";
import { crowd, HostSocketObject } from "../socket/host-socket.ts";
import { objectOf } from "../socket/object-namespace.ts";
import { WebhookBellObject } from "../socket/webhook-bell.ts";
import { bellName, type WorkerEnv, wire } from "./worker-wiring.ts";

export class HostSocket extends HostSocketObject<WorkerEnv> {
  protected override wire() {
    return wire(this.env);
  }
}

export class MigrationFeed extends FeedObject {}

export class WebhookBell extends WebhookBellObject<WorkerEnv> {
  protected override wireBell() {
    const { ports, webhooks } = wire(this.env);
    return { log: ports.log, runner: webhooks.runner };
  }
}

const refused = (status: number, cause: string) => Response.json({ code: "request.malformed", cause }, { status });

async function shimSocket(request: Request, url: URL, env: WorkerEnv): Promise<Response> {
  if (request.headers.get("upgrade")?.toLowerCase() !== "websocket")
    return refused(426, "Shims connect here by websocket.");
  const hostId = hostIdSchema.safeParse(url.searchParams.get("host"));
  if (!hostId.success) return refused(400, "The query must name the host by its id.");
  // Locally this isolate and one embedded store serve all hosts.
  if (env.OBJECTS !== undefined && !(await crowd.enter(hostId.data)))
    return refused(503, "Many hosts are connecting at this moment; come again in some seconds.");
  const headers = new Headers(request.headers);
  headers.set("x-vmferry-url", env.PUBLIC_URL ?? url.origin);
  return objectOf(env.HOST_SOCKET, hostId.data).fetch(new Request(request, { headers }));
}

export default {
  async fetch(request: Request, env: WorkerEnv): Promise<Response> {
    const { app, face } = wire(env);
    const url = new URL(request.url);
    if (face !== null && url.pathname.startsWith(`${facePath}/`)) return face(request);
    if (url.pathname === shimSocketPath) return shimSocket(request, url, env);
    return app.fetch(request);
  },

  async scheduled(_event: unknown, env: WorkerEnv): Promise<void> {
    const { ports, runner, evacuations, ruleRunner, reconciler, metrics, metricCounter } = wire(env);
    const tasks = {
      migrations: () => runner.tick(),
      evacuations: () => evacuations.tick(),
      rules: () => ruleRunner.tick(),
      drift: () => reconciler.tick(),
      // Delivered there, by a call of its own.
      webhooks: () => objectOf(env.WEBHOOK_BELL, bellName).ring(0),
      metrics: () => metricCounter.tick(),
    };
    await everyMinute(ports.log, tasks, (done) => metrics.succeeded(done, ports.clock.now()));
  },
};
