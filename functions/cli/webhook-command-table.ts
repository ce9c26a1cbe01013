/** The commands of webhooks: only data and lazy imports, as in command-table.ts, of which they are a part. */
import type { CommandSpec, OptionSpec } from "./command.ts";

const json: OptionSpec = { summary: "print JSON" };

export const webhookCommands: readonly CommandSpec[] = [
  {
    words: ["webhooks"],
    positionals: [],
    options: { json },
    summary: "the webhooks that events are posted to, and how their deliveries stand",
    load: async () => (await import("./webhook-commands.ts")).listWebhooks,
  },
  {
    words: ["webhook", "set"],
    positionals: ["NAME"],
    options: {
      url: { value: "URL", summary: "where events are posted: https" },
      type: {
        value: "TYPE,...",
        summary: "only these: migration.ended, rule.run, host; without it all but requests",
        multiple: true,
      },
      json,
    },
    summary: "post what happens from now on, signed; a new one's secret is printed once",
    load: async () => (await import("./webhook-commands.ts")).setWebhook,
  },
  {
    words: ["webhook", "show"],
    positionals: ["NAME"],
    options: { json },
    summary: "one webhook: what was delivered, what waits, and why",
    load: async () => (await import("./webhook-commands.ts")).showWebhook,
  },
  {
    words: ["webhook", "test"],
    positionals: ["NAME"],
    options: { json },
    summary: "post a test event now; exit 0 the receiver took it, 1 it did not",
    load: async () => (await import("./webhook-commands.ts")).testWebhook,
  },
  {
    words: ["webhook", "pause"],
    positionals: ["NAME"],
    options: {},
    summary: "deliver nothing until it is resumed; nothing is lost",
    load: async () => (await import("./webhook-commands.ts")).pauseWebhook,
  },
  {
    words: ["webhook", "resume"],
    positionals: ["NAME"],
    options: {},
    summary: "deliver what happened meanwhile; what waits is tried at once",
    load: async () => (await import("./webhook-commands.ts")).resumeWebhook,
  },
  {
    words: ["webhook", "rotate"],
    positionals: ["NAME"],
    options: {
      overlap: { value: "24h", summary: "how long the former secret signs as well; default 24h" },
      now: { summary: "the former secret signs no longer" },
      json,
    },
    summary: "a new secret, printed once",
    load: async () => (await import("./webhook-commands.ts")).rotateWebhook,
  },
  {
    words: ["webhook", "replay"],
    positionals: ["NAME"],
    options: {
      since: { value: "TIME|2h", summary: "a time such as 2026-11-23T08:00:00Z, or so long ago: 30m, 2h, 3d" },
      json,
    },
    summary: "deliver once more what was written down since then, or leave out what lies before",
    load: async () => (await import("./webhook-commands.ts")).replayWebhook,
  },
  {
    words: ["webhook", "delete"],
    positionals: ["NAME"],
    options: {},
    summary: "delete it and its secrets; what was not delivered is not",
    load: async () => (await import("./webhook-commands.ts")).deleteWebhook,
  },
];
