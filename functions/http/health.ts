/**
 * Health and metrics. `/healthz` says that this process serves, and asks nothing else so that a slow store kills no isolate. `/metrics` is honest about what an
 * isolate can know: the requests and the adapters' counts since *it* began, labelled with the isolate, and the active
 * migrations, which are counted in the store at that moment.
 */
import type { AppDeps } from "./deps.ts";
import { healthSchema } from "./health-resource.ts";
import { type Route, route } from "./route.ts";

interface Sample {
  name: string;
  help: string;
  type: "counter" | "gauge";
  labels: Record<string, string>;
  value: number;
}

/** Requests that this isolate has answered. */
export class RequestCounts {
  readonly #counts = new Map<string, { labels: Record<string, string>; value: number }>();

  /** `path` is the route's pattern, never what was asked: names in a label would grow without bound. */
  count(method: string, path: string, status: number): void {
    const key = `${method} ${path} ${status}`;
    const known = this.#counts.get(key);
    if (known === undefined) this.#counts.set(key, { labels: { method, path, status: String(status) }, value: 1 });
    else known.value += 1;
  }

  *samples(isolate: string): Iterable<Sample> {
    for (const { labels, value } of this.#counts.values())
      yield {
        name: "vmferry_http_requests_total",
        help: "Requests that this isolate has answered since it began.",
        type: "counter",
        labels: { ...labels, isolate },
        value,
      };
  }
}

const escaped = (text: string) => text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");

/** Prometheus' text format 0.0.4: HELP and TYPE once for each name. */
function prometheusText(samples: Iterable<Sample>): string {
  const families = new Map<string, string[]>();
  for (const { name, help, type, labels, value } of samples) {
    const lines = families.get(name) ?? [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`];
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text)}"`);
    lines.push(`${name}${pairs.length > 0 ? `{${pairs.join(",")}}` : ""} ${value}`);
    families.set(name, lines);
  }
  return `${[...families.values()].flat().join("\n")}\n`;
}

export function healthRoutes(deps: AppDeps, requests: RequestCounts, isolate: () => string): Route[] {
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
    route({
      method: "GET",
      path: "/metrics",
      tag: "health",
      summary: "Prometheus metrics of this isolate, and the active migrations in the store",
      access: "token",
      reply: { status: 200, description: "Text format 0.0.4", mediaType: "text/plain" },
      faults: ["store.unreachable"],
      async handle() {
        const active = await deps.ports.migrations.activeMigrations();
        const text = prometheusText([
          {
            name: "vmferry_active_migrations",
            help: "Domains locked by a migration or a bundle task, counted in the store now.",
            type: "gauge",
            labels: {},
            value: active.length,
          },
          ...requests.samples(isolate()),
        ]);
        return new Response(`${text}${deps.storeMetrics?.() ?? ""}`, {
          headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
        });
      },
    }),
  ];
}
