/**
 * A shim of another make: enrols by HTTP and speaks the websocket by hand, so that a test can be a shim of another version.
 * It answers no command, and each query by a fault; what it was sent is kept.
 */
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import WebSocket from "ws";
import * as z from "zod/mini";
import { enrolmentPath, helloSignedText, shimSocketPath } from "#protocol/identity";
import { type DownMessage, downMessageSchema, protocolFeatures, type UpMessage } from "#protocol/message";

const enrolledSchema = z.object({ hostId: z.string(), name: z.string() });

export interface FakeShimOptions {
  url: string;
  joinToken: string;
  name: string;
}

type Hello = Extract<UpMessage, { type: "hello" }>;

export class FakeShim {
  readonly hostId: string;
  readonly received: DownMessage[] = [];
  readonly #url: string;
  readonly #privateKey: KeyObject;
  #socket: WebSocket | undefined;

  private constructor(url: string, hostId: string, privateKey: KeyObject) {
    this.#url = url;
    this.hostId = hostId;
    this.#privateKey = privateKey;
  }

  static async enrol({ url, joinToken, name }: FakeShimOptions): Promise<FakeShim> {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const response = await fetch(`${url}${enrolmentPath}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: joinToken, name, publicKey: publicKey.export({ format: "jwk" }).x }),
    });
    if (response.status !== 201) throw new Error(`enrolment answered ${response.status}: ${await response.text()}`);
    return new FakeShim(url, enrolledSchema.parse(await response.json()).hostId, privateKey);
  }

  /** Connects and says hello with these deviations; resolves with the welcome or the refusal that comes back. */
  async connect(deviation: Partial<Pick<Hello, "protocols" | "features" | "signature">> = {}): Promise<DownMessage> {
    await this.close();
    const socket = new WebSocket(`${this.#url.replace(/^http/, "ws")}${shimSocketPath}?host=${this.hostId}`);
    this.#socket = socket;
    return new Promise((resolve, reject) => {
      socket.once("error", reject);
      socket.once("close", (code) => reject(new Error(`closed with ${code} before an answer`)));
      socket.on("message", (data) => {
        const message = downMessageSchema.parse(JSON.parse(data.toString()));
        this.received.push(message);
        if (message.type === "challenge") socket.send(JSON.stringify(this.#hello(message.nonce, deviation)));
        else if (message.type === "query") socket.send(JSON.stringify(declined(message.queryId)));
        else if (message.type === "welcome" || message.type === "refused") resolve(message);
      });
    });
  }

  #hello(nonce: string, deviation: Partial<Hello>): Hello {
    const text = helloSignedText({ hostId: this.hostId, nonce });
    return {
      type: "hello",
      protocols: { min: 1, max: 1 },
      features: [...protocolFeatures],
      hostId: this.hostId,
      signature: sign(null, Buffer.from(text), this.#privateKey).toString("base64url"),
      facts: {
        shimVersion: "0.0.1",
        nodeVersion: "24.0.0",
        migrationAddress: null,
        libvirt: { reachable: false, cause: "there is none" },
      },
      ...deviation,
    };
  }

  async close(): Promise<void> {
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket === undefined || socket.readyState === WebSocket.CLOSED) return;
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.terminate();
    await closed;
  }
}

const declined = (queryId: string): UpMessage => ({
  type: "answered",
  queryId,
  answer: {
    ok: false,
    fault: { code: "libvirt.unreachable", cause: "There is no libvirt.", action: "None.", retry: "never" },
  },
});
