/**
 * One minor release either way: what a kept release says is understood here, what is said here was understood there, and what
 * neither knows yet is passed over. Held three ways: by messages that were recorded, by its own decoder, and by its schemas,
 * which find also what nobody happened to say.
 */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import * as z from "zod/mini";
import { decodeDown, decodeUp } from "#protocol/codec";
import { commandKindSchema } from "#protocol/command";
import { Fault } from "#protocol/fault";
import {
  type DownMessage,
  downMessageSchema,
  offeredFeatures,
  protocolFeatures,
  protocolVersions,
  type UpMessage,
  upMessageSchema,
} from "#protocol/message";
import { keptReleases, releaseFile } from "#test/releases/release";
import { schemas } from "#test/releases/schema-recorder";
import { historiesOf, linesOf } from "./history-reader.ts";
import { gaps, Schema } from "./skew-schema.ts";

interface Codec {
  decodeDown(text: string): unknown;
  decodeUp(text: string): unknown;
}

const isCodec = (value: unknown): value is Codec =>
  typeof value === "object" && value !== null && "decodeDown" in value && "decodeUp" in value;

/** The decoder of a kept release, as it was shipped. */
async function codecOf(release: string): Promise<Codec> {
  const codec: unknown = await import(pathToFileURL(releaseFile(release, "protocol.mjs")).href);
  assert.ok(isCodec(codec));
  return codec;
}

const lineSchema = z.union([
  z.object({ down: z.looseObject({ type: z.string() }) }),
  z.object({ up: z.looseObject({ type: z.string() }) }),
]);
type Recorded = { way: "down" | "up"; message: Record<string, unknown> & { type: string } };

const recorded = (release: string): Recorded[] =>
  linesOf(release, "messages.jsonl").map((line) => {
    const told = lineSchema.parse(line);
    return "down" in told ? { way: "down", message: told.down } : { way: "up", message: told.up };
  });

const recordedSchema = z.object({ name: z.string(), written: z.unknown(), read: z.unknown() });

/** What a release writes and reads, by name. */
const schemasOf = (release: string) =>
  new Map(
    linesOf(release, "schemas.jsonl").map((line) => {
      const { name, ...schema } = recordedSchema.parse(line);
      return [name, schema] as const;
    }),
  );

const present: Codec = { decodeDown, decodeUp };
const decode = (codec: Codec, { way, message }: Recorded) =>
  way === "down" ? codec.decodeDown(JSON.stringify(message)) : codec.decodeUp(JSON.stringify(message));

/** Every object in it has a field that nobody knows. */
function withNews(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withNews);
  if (typeof value !== "object" || value === null) return value;
  const known = Object.entries(value).map(([name, each]) => [name, isOpen(name) ? each : withNews(each)]);
  return { ...Object.fromEntries(known), newsOfTomorrow: { kind: "unheard" } };
}

/** Records, not objects: each of their names is known. */
const isOpen = (name: string) => name === "headers" || name === "labels";

const newest = <T extends UpMessage | DownMessage>(...messages: T[]): T[] => messages;
const id = "01JD0000000000000000000001";
/** What this release says that the one before did not. */
const newsUp = (hello: UpMessage, inventory: UpMessage) => {
  assert.ok(hello.type === "hello" && inventory.type === "inventory");
  return newest<UpMessage>(
    { ...hello, renews: id },
    { ...inventory, series: { id, part: 0, parts: 1 } },
    { ...hello, features: [...hello.features, "unheard.1"] },
  );
};
const newsDown = (welcome: DownMessage) => {
  assert.ok(welcome.type === "welcome");
  return newest<DownMessage>(
    { ...welcome, renewAfterMs: 6_900_000, progressMs: 5_000 },
    { ...welcome, features: [...welcome.features, "unheard.1"] },
  );
};

const typesOf = (schema: { def: { options: readonly unknown[] } }) => {
  const shapes = z.array(z.looseObject({ shape: z.looseObject({ type: z.looseObject({ def: z.unknown() }) }) }));
  return shapes.parse(schema.def.options).map(({ shape }) => {
    const { values } = z.object({ values: z.array(z.string()) }).parse(shape.type.def);
    return values[0];
  });
};

for (const release of keptReleases)
  describe(`skew with ${release}`, () => {
    const messages = recorded(release);
    const one = (type: string) => {
      const found = messages.find(({ message }) => message.type === type);
      assert.ok(found, `${release} said no ${type}`);
      return found;
    };

    test("every type of message and every kind of command was recorded", async () => {
      const said = (way: Recorded["way"]) =>
        new Set(messages.flatMap((each) => (each.way === way ? [each.message.type] : [])));
      const old = schemasOf(release);
      const known = (way: Recorded["way"]) =>
        new Schema(old.get(way)?.read).alternatives.map((each) => each.of(each.node.properties?.type).literals?.[0]);
      assert.deepEqual([...said("down")].sort(), known("down").sort());
      assert.deepEqual([...said("up")].sort(), known("up").sort());
      // The lab sees the common kinds; the histories have those of the ways back.
      const text = [...messages.map(({ message }) => message), ...historiesOf(release).flatMap(({ down }) => down)]
        .map((each) => JSON.stringify(each))
        .join("\n");
      const kinds = commandKindSchema.options.filter((kind) => !text.includes(`:${kind}:`));
      assert.deepEqual(kinds, []);
    });

    test("what it said is decoded here, whole", () => {
      for (const each of messages) assert.deepEqual(decode(present, each), each.message);
    });

    test("what is said here is decoded there: what is new is passed over, the rest arrives whole", async () => {
      const codec = await codecOf(release);
      const up = newsUp(
        decodeUp(JSON.stringify(one("hello").message)),
        decodeUp(JSON.stringify(one("inventory").message)),
      );
      const down = newsDown(decodeDown(JSON.stringify(one("welcome").message)));
      for (const message of up) {
        const heard = codec.decodeUp(JSON.stringify(message));
        const { renews, series, ...known } = { renews: undefined, series: undefined, ...message };
        assert.deepEqual(heard, known);
      }
      for (const message of down) {
        const heard = codec.decodeDown(JSON.stringify(message));
        const { renewAfterMs, progressMs, ...known } = { renewAfterMs: 0, progressMs: 0, ...message };
        assert.deepEqual(heard, known);
      }
      for (const each of messages) {
        const here = decode(present, each);
        assert.deepEqual(decode(codec, { ...each, message: z.looseObject({ type: z.string() }).parse(here) }), here);
      }
    });

    test("no value that may be said or stored is refused on the other side", () => {
      const were = schemasOf(release);
      for (const [name, are] of Object.entries(schemas())) {
        const was = were.get(name);
        assert.ok(was, `${release} has no schema of ${name}`);
        assert.deepEqual(gaps(new Schema(was.written), new Schema(are.read)), [], `${name} from ${release} to here`);
        const backward = gaps(new Schema(are.written), new Schema(was.read))
          .filter((gap) => !isOfPlansOnly(gap))
          .filter((gap) => !isOfGatedTypeOnly(gap));
        assert.deepEqual(backward, [], `${name} from here to ${release}`);
      }
    });
  });

/** Whoever adds a type names its feature here; those of the first release need none. */
const gated: Readonly<Record<string, string>> = { journals: "journals.1", shutdown: "shutdown.1" };
/** Only ever said in answer to a gated message, to the shim that has just said it. */
const answers: Readonly<Record<string, string>> = { shutdownHeard: "shutdown" };

/** A type that is only said to who has offered its feature; that somebody does is tested below. */
const isOfGatedTypeOnly = (gap: string): boolean => {
  const [, type = ""] = /^\.type: (\w+) is not known$/.exec(gap) ?? [];
  return Object.hasOwn(gated, type) || Object.hasOwn(answers, type);
};

/** Codes of plans and of evacuations: the functions keep and show them, and neither a shim nor a migration's item ever holds one (the test below). */
const isOfPlansOnly = (gap: string): boolean => /code: placement\.\w+ is not known$/.test(gap);

test("the codes of plans are made in the planner's and the evacuations' rooms and nowhere else", () => {
  const root = join(import.meta.dirname, "../..");
  const makers = ["functions", "shim"]
    .flatMap((folder) => globSync(`${folder}/**/*.ts`, { cwd: root }))
    .filter((file) => /"placement\.\w+"/.test(readFileSync(join(root, file), "utf8")));
  const allowed =
    /^(functions\/(core\/(placement|evacuation)|http\/evacuation|cli\/evacua|evacuation|placement|preflights|rule)|shim\/protocol\/fault\.ts)/;
  assert.deepEqual(
    makers.filter((file) => !allowed.test(file)),
    [],
  );
  assert.ok(makers.length > 1);
});

describe("what comes after this release", () => {
  const messages = keptReleases.flatMap(recorded);

  test("fields that nobody knows here are passed over, wherever they are", () => {
    for (const each of messages) {
      const message = z.looseObject({ type: z.string() }).parse(withNews(each.message));
      assert.notDeepEqual(message, each.message);
      assert.deepEqual(decode(present, { ...each, message }), each.message);
    }
  });

  test("features that nobody knows here are heard and passed over", () => {
    for (const each of messages.filter(({ message }) => "features" in message)) {
      const features = z.array(z.string()).parse(each.message.features);
      const message = { ...each.message, features: [...features, "unheard.1"] };
      assert.deepEqual(decode(present, { ...each, message }), message);
    }
  });

  test("a type of message that nobody knows here is malformed: it may only be said to who has offered the feature", () => {
    for (const codec of [decodeDown, decodeUp])
      assert.throws(
        () => codec(JSON.stringify({ type: "unheard" })),
        (error) => error instanceof Fault && error.code === "message.malformed",
      );
    const bare = {
      down: ["challenge", "welcome", "refused", "command", "acknowledged", "granted", "grantRefused", "query"],
      up: ["hello", "heartbeat", "inventory", "report", "progress", "lost", "grant", "answered"],
    };
    for (const [way, schema] of Object.entries({ down: downMessageSchema, up: upMessageSchema })) {
      const known: readonly string[] = way === "down" ? bare.down : bare.up;
      for (const type of typesOf(schema)) {
        if (type === undefined || known.includes(type)) continue;
        if (way === "down" && gated[answers[type] ?? ""] !== undefined) continue;
        const feature = gated[type];
        assert.ok(feature !== undefined, `${type} (${way}) is new and has no feature`);
        const offered: readonly string[] = way === "up" ? offeredFeatures : protocolFeatures;
        assert.ok(offered.includes(feature), `nobody offers ${feature}, so ${type} is never said`);
      }
    }
  });

  test("the versions of the protocol overlap with those of every kept release", async () => {
    for (const release of keptReleases) {
      const challenge = recorded(release).find(({ message }) => message.type === "challenge");
      const { protocols } = z
        .object({ protocols: z.object({ min: z.int(), max: z.int() }) })
        .parse(challenge?.message ?? null);
      assert.ok(protocols.min <= protocolVersions.max && protocolVersions.min <= protocols.max, release);
    }
  });
});

describe("the comparison of schemas", () => {
  test("sees a single fault code that an older release would take for a malformed message", () => {
    const { up } = schemas();
    assert.ok(up);
    const known = '"internal"]';
    const text = JSON.stringify(up.written);
    assert.ok(text.includes(known));
    const wider: unknown = JSON.parse(text.replaceAll(known, '"internal","unheard.code"]'));
    const found = gaps(new Schema(wider), new Schema(up.read));
    assert.ok(found.length > 0);
    for (const each of found) assert.match(each, /unheard\.code is not known$/);
  });

  const of = (schema: z.ZodMiniType) => new Schema(z.toJSONSchema(schema, { reused: "ref" }));

  test("sees what an older reader would refuse", () => {
    const read = z.discriminatedUnion("type", [
      z.object({ type: z.literal("a"), code: z.enum(["one", "two"]), text: z.string().check(z.maxLength(5)) }),
    ]);
    const wider = z.discriminatedUnion("type", [
      z.object({ type: z.literal("a"), code: z.enum(["one", "two", "three"]), text: z.string().check(z.maxLength(9)) }),
      z.object({ type: z.literal("b") }),
    ]);
    assert.deepEqual(gaps(of(wider), of(read)), [
      ".code: three is not known",
      ".text: maxLength is 9, 5 is read",
      ".type: b is not known",
    ]);
    const less = z.object({ type: z.literal("a"), code: z.optional(z.literal("one")), text: z.nullable(z.string()) });
    assert.deepEqual(gaps(of(less), of(read)).length, 3);
    assert.deepEqual(gaps(of(read), of(wider)), []);
  });
});
