/** The door of shims: what it says where, and why a proof does not hold. */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { beforeEach, describe, test } from "node:test";
import { createApp } from "#functions/http/app";
import { problemSchema } from "#functions/http/problem";
import { connectHeader, connectSignedText, doorPath, doorSchema, formatConnectProof } from "#protocol/identity";
import { hostId, type MemoryFleet, memoryFleet, refusal } from "#test/fake/memory-fleet";

const { publicKey, privateKey } = generateKeyPairSync("ed25519");
const nonce = "n".repeat(43);
let fleet: MemoryFleet;

beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, { publicKey: publicKey.export({ format: "jwk" }).x ?? "" });
});

function proofOf(id = hostId(1), key = privateKey): string {
  const proof = { hostId: id, atMs: Date.parse(fleet.ports.clock.now()), nonce };
  return formatConnectProof({
    ...proof,
    signature: sign(null, Buffer.from(connectSignedText({ ...proof, socket: "" })), key).toString("base64url"),
  });
}

const ask = (header?: string, query = "") =>
  fleet.ask(`${doorPath}${query}`, {
    token: null,
    ...(header === undefined ? {} : { headers: { [connectHeader]: header } }),
  });

describe("the door", () => {
  test("of a control plane with its socket beside it", async () => {
    const response = await ask();
    assert.equal(response.status, 200);
    assert.deepEqual(await response.json(), {
      socket: null,
      hello: "challenge",
      atMs: Date.parse(fleet.ports.clock.now()),
    });
  });

  test("of one whose socket is elsewhere and hears the shim first", async () => {
    const door = { socket: "wss://sockets.example/prod", hello: "connect" as const };
    const { ports, runner, evacuations } = fleet;
    const app = createApp({ ports, runner, evacuations, adminTokenSha256: null, door });
    const answered = doorSchema.parse(await (await app.request(`http://api.test${doorPath}`)).json());
    assert.deepEqual(answered, { ...door, atMs: Date.parse(fleet.ports.clock.now()) });
  });

  test("says nothing against a proof that holds, however often it is asked", async () => {
    for (const _ of [1, 2]) assert.equal((await ask(proofOf(), `?host=${hostId(1)}`)).status, 200);
  });

  test("says why a proof does not hold: 401 with cause and action", async () => {
    for (const [header, query, cause] of [
      ["nonsense", "", /malformed/],
      ["", "", /no proof/],
      [proofOf(hostId(7)), "", /not enrolled/],
      [proofOf(), `?host=${hostId(2)}`, /another host/],
      [proofOf(hostId(1), generateKeyPairSync("ed25519").privateKey), "", /signature/],
    ] as const) {
      const response = await ask(header, query);
      const problem = problemSchema.parse(await response.clone().json());
      assert.match(problem.cause, cause);
      assert.notEqual(problem.action, "");
      assert.deepEqual(await refusal(response), [401, "shim.unauthorised"]);
    }
  });

  test("takes no host that is none", async () => {
    assert.deepEqual(await refusal(await ask(undefined, "?host=alpha")), [400, "request.malformed"]);
  });
});
