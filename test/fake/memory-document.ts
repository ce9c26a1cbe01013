/** Holds an answer of the app against the routes that its OpenAPI document is written from. */
import assert from "node:assert/strict";
import { appRoutes } from "#functions/http/app";
import type { AppDeps } from "#functions/http/deps";
import { faultsByStatus } from "#functions/http/openapi";
import { problemMediaType, problemSchema } from "#functions/http/problem";
import type { Route } from "#functions/http/route";

/** Routes are data: their making touches no port. */
const untouched = <T extends object>(): T =>
  new Proxy(Object.create(null), {
    get: (_, name) => {
      assert.fail(`making the routes asked for ${String(name)}`);
    },
  });

const deps: AppDeps = {
  ports: untouched(),
  runner: untouched(),
  evacuations: untouched(),
  adminTokenSha256: null,
};

export const routes: readonly Route[] = appRoutes(deps);

/** Which routes' which statuses were seen, over all tests of this process. */
export const seen = new Set<string>();

const routeOf = (method: string, path: string): Route | undefined => {
  const asked = path.split("?")[0] ?? "";
  return routes.find(
    (route) =>
      route.method === method &&
      new RegExp(`^${route.path.replaceAll(/:[a-z]+/g, "[^/]+").replaceAll(".", "\\.")}$`).test(asked),
  );
};

/** Fails when status, code, media type or a key of this answer is not documented. The answer's body stays unread. */
export async function documented(method: string, path: string, response: Response): Promise<void> {
  const route = routeOf(method, path);
  const what = `${method} ${path} -> ${response.status}`;
  const mediaType = response.headers.get("content-type")?.split(";")[0];
  if (route === undefined) {
    assert.equal(response.status, 404, what);
    return;
  }
  seen.add(`${route.method} ${route.path} ${response.status}`);
  const answers = route.replies.filter(({ status }) => status === response.status);
  const reply = answers.find((each) => each.mediaType === mediaType) ?? answers[0];
  if (reply !== undefined) {
    if (reply.schema === null) {
      if (reply.mediaType !== undefined) assert.equal(mediaType, reply.mediaType, what);
      return;
    }
    assert.equal(mediaType, "application/json", what);
    const value: unknown = await response.clone().json();
    assert.deepEqual(reply.schema.parse(value), value, `${what} has keys that are not documented`);
    return;
  }
  const codes = faultsByStatus(route).get(response.status);
  assert.ok(codes, `${what} is not documented`);
  assert.equal(mediaType, problemMediaType, what);
  const value: unknown = await response.clone().json();
  const problem = problemSchema.parse(value);
  assert.deepEqual(problem, value, what);
  assert.equal(problem.status, response.status);
  assert.ok(codes.includes(problem.code), `${what} with code ${problem.code} is not documented`);
}
