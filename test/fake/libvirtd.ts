/**
 * A fake libvirtd: a real unix socket, real frames, and a test that decides every answer.
 *
 * `handlers` answer calls by procedure; what has no handler is refused with error 3 (NO_SUPPORT), so a forgotten answer
 * shows. A handler may wait as long as it likes, which is how replies come late and out of order. A
 * handler that breaks is answered as error 1 with its message, so the test sees it.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AuthType, ErrorCode, ErrorDomain, ErrorLevel } from "#libvirt/constants";
import { type RemoteError, remoteError } from "#libvirt/error";
import type { EventKind } from "#libvirt/event";
import { encodeFrame, type Frame, FrameParser, FrameStatus, FrameType, Program, programVersion } from "#libvirt/frame";
import { pingFrame } from "#libvirt/keepalive";
import { type Procedure, procedures } from "#libvirt/procedures";
import { decodePayload, encodePayload, type Shape } from "#libvirt/shape";

/** Thrown by a handler: the call is answered with this libvirt error. */
export class Refusal extends Error {
  readonly error: RemoteError;

  constructor(code: number, domain: number, text: string) {
    super(text);
    this.error = {
      code,
      domain,
      message: text,
      level: ErrorLevel.ERROR,
      dom: null,
      str1: text,
      str2: null,
      str3: null,
      int1: -1,
      int2: -1,
      net: null,
    };
  }
}

type Handler = (client: FakeClient, frame: Frame) => Promise<Uint8Array>;

/** One connected client, for what a test sends of its own accord. */
export class FakeClient {
  readonly #socket: Socket;
  /** Every frame received, calls and PONGs alike. */
  readonly frames: Frame[] = [];
  readOnly = false;
  readonly #waiting: { readonly match: (frame: Frame) => boolean; readonly resolve: (frame: Frame) => void }[] = [];

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  record(frame: Frame): void {
    this.frames.push(frame);
    for (const waiting of this.#waiting) if (waiting.match(frame)) waiting.resolve(frame);
  }

  /** The first frame received that matches, now or later. */
  received(match: (frame: Frame) => boolean): Promise<Frame> {
    const frame = this.frames.find(match);
    if (frame !== undefined) return Promise.resolve(frame);
    return new Promise((resolve) => this.#waiting.push({ match, resolve }));
  }

  raw(bytes: Uint8Array): void {
    if (!this.#socket.destroyed) this.#socket.write(bytes);
  }

  reply(call: Pick<Frame, "procedure" | "serial">, status: number, payload: Uint8Array): void {
    const { procedure, serial } = call;
    this.raw(
      encodeFrame({
        program: Program.REMOTE,
        version: programVersion,
        type: FrameType.REPLY,
        procedure,
        serial,
        status,
        payload,
      }),
    );
  }

  emit<M extends { readonly callbackId: number }>(kind: EventKind<M>, message: M): void {
    this.raw(
      encodeFrame({
        program: Program.REMOTE,
        version: programVersion,
        procedure: kind.number,
        type: FrameType.MESSAGE,
        serial: 0,
        status: FrameStatus.OK,
        payload: encodePayload(kind.message, message),
      }),
    );
  }

  ping(): void {
    this.raw(pingFrame);
  }

  /** Drops the connection as a dying daemon does. */
  drop(): void {
    this.#socket.destroy();
  }
}

export class FakeLibvirtd {
  readonly socketPath: string;
  readonly clients: FakeClient[] = [];
  readonly #handlers = new Map<number, Handler>();
  readonly #server: Server;
  readonly #folder: string;
  #nextClient: ((client: FakeClient) => void)[] = [];

  private constructor(folder: string) {
    this.#folder = folder;
    this.socketPath = join(folder, "libvirt-sock");
    this.#server = createServer((socket) => this.#serve(socket));
    this.answer(procedures.authList, () => ({ types: [AuthType.NONE] }));
    this.answer(procedures.connectOpen, ({ flags }, client) => {
      client.readOnly = (flags & 1) === 1;
      return {};
    });
    this.answer(procedures.connectClose, () => ({}));
  }

  static async start(): Promise<FakeLibvirtd> {
    const fake = new FakeLibvirtd(await mkdtemp(join(tmpdir(), "vmferry-fake-")));
    await new Promise<void>((resolve) => fake.#server.listen(fake.socketPath, resolve));
    return fake;
  }

  /** Decides how a procedure is answered. Throw Refusal to refuse. */
  answer<A, R>(procedure: Procedure<A, R>, handler: (args: A, client: FakeClient) => R | Promise<R>): void {
    this.#handlers.set(procedure.number, async (client, frame) => {
      const args = decodePayload(procedure.args, frame.payload);
      return encodePayload(procedure.result, await handler(args, client));
    });
  }

  /** Answers with bytes of the test's own, fit or not. */
  answerRaw(procedure: { readonly number: number }, payload: Uint8Array): void {
    this.#handlers.set(procedure.number, async () => payload);
  }

  /** The next client to connect. */
  nextClient(): Promise<FakeClient> {
    return new Promise((resolve) => this.#nextClient.push(resolve));
  }

  async stop(): Promise<void> {
    for (const client of this.clients) client.drop();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
    await rm(this.#folder, { recursive: true, force: true });
  }

  #serve(socket: Socket): void {
    const client = new FakeClient(socket);
    this.clients.push(client);
    const parser = new FrameParser();
    socket.on("data", (chunk: Buffer) => parser.push(chunk, (frame) => void this.#frame(client, frame)));
    // The client may go at any time; that is what many tests are about.
    socket.on("error", () => {});
    for (const resolve of this.#nextClient.splice(0)) resolve(client);
  }

  async #frame(client: FakeClient, frame: Frame): Promise<void> {
    client.record(frame);
    if (frame.program !== Program.REMOTE || frame.type !== FrameType.CALL) return;
    const handler = this.#handlers.get(frame.procedure);
    try {
      if (handler === undefined) {
        throw new Refusal(ErrorCode.NO_SUPPORT, ErrorDomain.RPC, `no answer for procedure ${frame.procedure}`);
      }
      client.reply(frame, FrameStatus.OK, await handler(client, frame));
    } catch (fault) {
      const text = fault instanceof Error ? fault.message : String(fault);
      const refusal = fault instanceof Refusal ? fault : new Refusal(ErrorCode.INTERNAL_ERROR, ErrorDomain.RPC, text);
      client.reply(frame, FrameStatus.ERROR, encodeError(refusal.error));
    }
  }
}

function encodeError(error: RemoteError): Uint8Array {
  const shape: Shape<RemoteError> = remoteError;
  return encodePayload(shape, error);
}
