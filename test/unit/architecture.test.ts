/**
 * The architecture as a test: imports run one way (design, section 3), no circles, no barrels, no file beyond 500 lines.
 * Adding a room or an arrow means changing the table here, where a reviewer sees it.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { describe, test } from "node:test";

const root = join(import.meta.dirname, "../..");

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".ts"))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

const files = ["functions", "shim", "infra", "test"].flatMap(sources);

/** Rooms, most special first. */
const rooms = [
  ["shim/protocol/", "protocol"],
  ["shim/libvirt/", "libvirt"],
  ["shim/", "shim"],
  ["functions/core/", "core"],
  ["functions/store/", "store"],
  ["functions/bundle/", "bundle"],
  ["functions/socket/", "socket"],
  ["functions/http/", "http"],
  ["functions/entry/", "entry"],
  ["functions/cli/", "cli"],
  ["functions/ports.ts", "ports"],
  ["functions/", "runner"],
  ["infra/", "infra"],
  ["test/lab/", "lab"],
  ["test/", "test"],
] as const;
type Room = (typeof rooms)[number][1];

/** What each room may import besides itself, Node and packages. */
const allowed: Record<Room, readonly Room[]> = {
  protocol: [],
  libvirt: [],
  shim: ["protocol", "libvirt"],
  core: ["protocol"],
  ports: ["protocol", "core"],
  store: ["protocol", "core", "ports"],
  bundle: ["protocol", "core", "ports"],
  socket: ["protocol", "core", "ports", "runner"],
  runner: ["protocol", "core", "ports"],
  http: ["protocol", "core", "ports", "runner"],
  entry: ["protocol", "core", "ports", "runner", "http", "store", "bundle", "socket"],
  cli: [
    "protocol",
    "core",
    "ports",
    "runner",
    "http",
    "store",
    "bundle",
    "socket",
    "entry",
    "shim",
    "libvirt",
    "infra",
    "lab",
  ],
  infra: ["cli", "store"],
  lab: [],
  test: rooms.map(([, room]) => room),
};

/** The pure rooms may use these packages and no others: no SDK, no clock, no random, no I/O. */
const packages: Partial<Record<Room, RegExp>> = {
  protocol: /^(zod\/mini|node:(crypto|fs|fs\/promises|stream|stream\/promises|zlib|buffer|util|os|path|events))$/,
  core: /^zod\/mini$/,
  libvirt: /^(node:.*|zod\/mini)$/,
  shim: /^(node:.*|zod\/mini|ws|saxes)$/,
};

const roomOf = (file: string): Room => {
  const found = rooms.find(([prefix]) => file.startsWith(prefix));
  assert.ok(found, `${file} is in no room`);
  return found[1];
};

const aliases: Record<string, string> = {
  protocol: "shim/protocol",
  libvirt: "shim/libvirt",
  shim: "shim",
  core: "functions/core",
  functions: "functions",
  lab: "test/lab",
  test: "test",
};

interface Import {
  file: string;
  specifier: string;
  /** The imported file of ours; null for Node and packages. */
  target: string | null;
  typeOnly: boolean;
}

function importsOf(file: string): Import[] {
  const text = readFileSync(join(root, file), "utf8");
  const pattern =
    /^\s*(?:import|export)\s(?<type>type\s)?[^;"'`]*?from\s+"(?<from>[^"]+)"|^\s*import\s+"(?<bare>[^"]+)"|\bimport\("(?<lazy>[^"]+)"\)/gm;
  return [...text.matchAll(pattern)].map((match) => {
    const groups = match.groups ?? {};
    const specifier = groups.from ?? groups.bare ?? groups.lazy ?? "";
    return { file, specifier, target: resolve(file, specifier), typeOnly: groups.type !== undefined };
  });
}

function resolve(file: string, specifier: string): string | null {
  if (specifier.startsWith(".")) return join(dirname(file), specifier);
  const alias = /^#(?<name>[a-z]+)\/(?<rest>.+)$/.exec(specifier)?.groups;
  return alias === undefined ? null : `${aliases[alias.name ?? ""] ?? "unknown"}/${alias.rest}.ts`;
}

const imports = files.flatMap(importsOf);

describe("architecture", () => {
  test("the scan sees the code", () => {
    assert.ok(files.length > 60, `${files.length} files`);
    assert.ok(imports.length > 200, `${imports.length} imports`);
    assert.ok(
      imports.some(({ file, target }) => file === "functions/runner.ts" && target === "functions/core/transition.ts"),
    );
  });

  test("imports run one way", () => {
    const wrong = imports.filter(({ file, target }) => {
      if (target === null) return false;
      const [from, to] = [roomOf(file), roomOf(target)];
      return from !== to && !allowed[from].includes(to);
    });
    assert.deepEqual(
      wrong.map(({ file, specifier }) => `${file} imports ${specifier}`),
      [],
    );
  });

  test("every import of ours leads to a file", () => {
    const known = new Set(files);
    const lost = imports.filter(({ target }) => target?.endsWith(".ts") === true && !known.has(target));
    assert.deepEqual(
      lost.map(({ file, specifier }) => `${file} imports ${specifier}`),
      [],
    );
  });

  test("the pure rooms use no package but the schema library", () => {
    const wrong = imports.filter(
      ({ file, specifier, target }) => target === null && packages[roomOf(file)]?.test(specifier) === false,
    );
    assert.deepEqual(
      wrong.map(({ file, specifier }) => `${file} imports ${specifier}`),
      [],
    );
  });

  test("the core knows no clock, no random and waits for nothing", () => {
    for (const file of files.filter((candidate) => roomOf(candidate) === "core")) {
      const code = readFileSync(join(root, file), "utf8").replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
      assert.doesNotMatch(
        code,
        /\b(await|async|setTimeout|setInterval|Math\.random|randomUUID)\b|Date\.now|new Date\(\)/,
        file,
      );
    }
  });

  test("no circles", () => {
    const graph = new Map<string, string[]>();
    for (const { file, target, typeOnly } of imports)
      if (target !== null && !typeOnly) graph.set(file, [...(graph.get(file) ?? []), target]);
    const done = new Set<string>();
    const walk = (file: string, path: readonly string[]): void => {
      assert.ok(!path.includes(file), `a circle: ${[...path.slice(path.indexOf(file)), file].join(" -> ")}`);
      if (done.has(file)) return;
      for (const next of graph.get(file) ?? []) walk(next, [...path, file]);
      done.add(file);
    };
    for (const file of graph.keys()) walk(file, []);
  });

  test("no barrels, kebab-case names, no file over 500 lines", () => {
    for (const file of files) {
      assert.match(file, /^[a-z0-9-./]+$/, file);
      assert.doesNotMatch(file, /(^|\/)(index|utils?|helpers?)\.ts$/);
      const lines = readFileSync(join(root, file), "utf8").split("\n").length - 1;
      assert.ok(lines <= 500, `${file} has ${lines} lines`);
    }
  });
});
