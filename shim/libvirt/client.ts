/**
 * One connection to a libvirt daemon over its unix socket.
 *
 * Rules that others rely on:
 * - A waiting call always ends: with libvirt's answer, with libvirt's error, or with an error that says there is no
 *   answer. An ended connection ends every call on it (I2: no answer is never turned into one).
 * - Only the owner closes a connection. A control-plane hiccup must not: closing a destination's connection between
 *   Prepare and Finish makes libvirt destroy the incoming domain.
 * - Bytes that are not libvirt's frames, or an answer to nothing, end the connection. A payload that does not fit its
 *   shape inside a sound frame fails only its own call, for the reason above.
 * - PING is answered on the read path before anything else.
 */
import { createConnection, type Socket } from "node:net";
import { CallTable, inFlightDefault } from "./call-table.ts";
import { type CloseReason, LibvirtClosedError, LibvirtError, LibvirtProtocolError, remoteError } from "./error.ts";
import { type EventKind, EventTable, events } from "./event.ts";
import { encodeFrame, type Frame, FrameParser, FrameStatus, FrameType, Program, programVersion } from "./frame.ts";
import type { RemoteDomain } from "./handle.ts";
import { openSession, socketFault } from "./handshake.ts";
import { keepaliveAnswer } from "./keepalive.ts";
import { type Procedure, procedures } from "./procedures.ts";
import { decodePayload, encodePayload, type ValueOf } from "./shape.ts";

/** How long close() waits for the daemon's goodbye before it drops the socket. */
const closeWaitMs = 2_000;

export type ConnectOptions = {
  readonly socketPath: string;
  /** Default qemu:///system. */
  readonly uri?: string;
  /** Opens with VIR_CONNECT_RO: the daemon itself then refuses whatever changes something. */
  readonly readOnly?: boolean;
  /** Ask the daemon to ping us (see keepalive.ts). Default false. */
  readonly keepalive?: boolean;
  /** Calls sent at once. Default 4, one below the daemon's own limit. */
  readonly inFlightMax?: number;
  /** Ends the attempt to connect; without effect once connected. */
  readonly signal?: AbortSignal;
  readonly onClose?: (error: LibvirtClosedError) => void;
  /** An event that could not be decoded or a listener that threw. Default: a process warning. */
  readonly onEventFault?: (fault: unknown) => void;
};

export type CallOptions = {
  /**
   * Ends the *waiting*, not the call: rejects with LibvirtNoAnswerError, and the daemon may still do what was asked.
   * Use it to go and ask what is true, never to conclude anything.
   */
  readonly signal?: AbortSignal;
  /** The same after this time. */
  readonly patienceMs?: number;
};

export type Subscription = { readonly callbackId: number; cancel(): Promise<void> };

/** Connects, authenticates (NONE only) and opens `uri`. Rejects with a Libvirt*Error; nothing stays open then. */
export async function connectLibvirt(options: ConnectOptions): Promise<LibvirtConnection> {
  const socket = await openSocket(options.socketPath, options.signal);
  const connection = new SocketConnection(socket, options);
  const abort = (): void => connection.destroy(options.signal?.reason);
  options.signal?.addEventListener("abort", abort, { once: true });
  try {
    await openSession(connection, options);
    return connection;
  } catch (error) {
    connection.destroy(error);
    throw error;
  } finally {
    options.signal?.removeEventListener("abort", abort);
  }
}

function openSocket(socketPath: string, signal: AbortSignal | undefined): Promise<Socket> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) {
      reject(signal.reason);
      return;
    }
    const socket = createConnection({ path: socketPath });
    const settle = (): void => {
      socket.off("connect", onConnect);
      socket.off("error", onError);
      signal?.removeEventListener("abort", onAbort);
    };
    const onConnect = (): void => {
      settle();
      resolve(socket);
    };
    const onError = (error: Error): void => {
      settle();
      reject(socketFault(socketPath, error));
    };
    const onAbort = (): void => {
      settle();
      socket.on("error", () => {});
      socket.destroy();
      reject(signal?.reason);
    };
    socket.on("connect", onConnect);
    socket.on("error", onError);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** What whoever uses a connection knows of it; the simulation has another one (test/simulation). */
export interface LibvirtConnection {
  /** Resolves when the connection has ended, however it ended; never rejects. */
  readonly closed: Promise<LibvirtClosedError>;
  /** True until the connection has ended or close() was called. */
  readonly isOpen: boolean;
  /**
   * Calls a procedure. Rejects with LibvirtError (libvirt said no), XdrError (the arguments break a limit; nothing was
   * sent), or LibvirtClosedError, LibvirtNoAnswerError, LibvirtProtocolError (no answer; see isOutcomeUnknown).
   */
  call<A, R>(procedure: Procedure<A, R>, args: A, options?: CallOptions): Promise<R>;
  /** Lifecycle events of one domain, or of all with `dom` null. The listener must not throw. */
  onLifecycle(
    listener: (message: ValueOf<typeof events.lifecycle.message>) => void,
    dom?: RemoteDomain | null,
  ): Promise<Subscription>;
  /** A job ended, with its final statistics; on the source of a migration this comes before Perform's answer. */
  onJobCompleted(
    listener: (message: ValueOf<typeof events.jobCompleted.message>) => void,
    dom?: RemoteDomain | null,
  ): Promise<Subscription>;
  onMigrationIteration(
    listener: (message: ValueOf<typeof events.migrationIteration.message>) => void,
    dom?: RemoteDomain | null,
  ): Promise<Subscription>;
  /**
   * Says goodbye and ends the connection. Calls that were sent and have no answer by then end with LibvirtClosedError.
   * May be called often; resolves when the socket is gone.
   */
  close(): Promise<void>;
  /** Drops the socket at once. Prefer close(). */
  destroy(cause?: unknown): void;
}

class SocketConnection implements LibvirtConnection {
  readonly #socket: Socket;
  readonly #parser = new FrameParser();
  readonly #calls: CallTable;
  readonly #events: EventTable;
  readonly #onClose: ((error: LibvirtClosedError) => void) | undefined;
  readonly #closedResolve: (error: LibvirtClosedError) => void;
  readonly closed: Promise<LibvirtClosedError>;
  #closedError: LibvirtClosedError | undefined;
  #closing: Promise<void> | undefined;

  /** Use connectLibvirt: a connection is of no use before AUTH_LIST and CONNECT_OPEN. */
  constructor(socket: Socket, options: ConnectOptions) {
    this.#socket = socket;
    this.#onClose = options.onClose;
    const { promise, resolve } = Promise.withResolvers<LibvirtClosedError>();
    this.closed = promise;
    this.#closedResolve = resolve;
    this.#events = new EventTable(options.onEventFault ?? warnOfEvent);
    this.#calls = new CallTable(options.inFlightMax ?? inFlightDefault, (serial, number, payload) => {
      this.#write(encodeFrame({ ...callHeader, procedure: number, serial, payload }));
    });
    socket.on("data", (chunk: Buffer) => this.#read(chunk));
    socket.on("end", () => this.#end("peer", "libvirt closed the connection"));
    socket.on("error", (error) => this.#end("socket", `the socket to libvirt failed: ${error.message}`, error));
    socket.on("close", () => this.#end("socket", "the socket to libvirt closed"));
  }

  get isOpen(): boolean {
    return this.#closedError === undefined && this.#closing === undefined;
  }

  async call<A, R>(procedure: Procedure<A, R>, args: A, options: CallOptions = {}): Promise<R> {
    const payload = encodePayload(procedure.args, args);
    if (this.#closing !== undefined) {
      throw new LibvirtClosedError("local", "the connection is being closed", {
        procedure: procedure.name,
        sent: false,
      });
    }
    const { patienceMs } = options;
    const signal = patienceMs === undefined ? options.signal : AbortSignal.timeout(patienceMs);
    const reply = await this.#calls.call(procedure.name, procedure.number, payload, { signal });
    return readReply(procedure, reply);
  }

  onLifecycle(
    listener: (message: ValueOf<typeof events.lifecycle.message>) => void,
    dom: RemoteDomain | null = null,
  ): Promise<Subscription> {
    return this.#subscribe(events.lifecycle, listener, dom);
  }

  onJobCompleted(
    listener: (message: ValueOf<typeof events.jobCompleted.message>) => void,
    dom: RemoteDomain | null = null,
  ): Promise<Subscription> {
    return this.#subscribe(events.jobCompleted, listener, dom);
  }

  onMigrationIteration(
    listener: (message: ValueOf<typeof events.migrationIteration.message>) => void,
    dom: RemoteDomain | null = null,
  ): Promise<Subscription> {
    return this.#subscribe(events.migrationIteration, listener, dom);
  }

  async #subscribe<M extends { readonly callbackId: number }>(
    kind: EventKind<M>,
    listener: (message: M) => void,
    dom: RemoteDomain | null,
  ): Promise<Subscription> {
    const callbackId = await this.#events.register(kind, listener, () =>
      this.call(procedures.connectDomainEventCallbackRegisterAny, { eventId: kind.eventId, dom }),
    );
    return {
      callbackId,
      cancel: async () => {
        this.#events.forget(kind.number, callbackId);
        if (this.isOpen) await this.call(procedures.connectDomainEventCallbackDeregisterAny, { callbackId });
      },
    };
  }

  close(): Promise<void> {
    this.#closing ??= this.#goodbye();
    return this.#closing;
  }

  destroy(cause?: unknown): void {
    this.#end("local", "the connection was dropped here", cause);
  }

  async #goodbye(): Promise<void> {
    if (this.#closedError === undefined) {
      this.#calls.refuseQueued("the connection is being closed");
      const patience = AbortSignal.timeout(closeWaitMs);
      const { connectClose } = procedures;
      const payload = encodePayload(connectClose.args, {});
      try {
        await this.#calls.call(connectClose.name, connectClose.number, payload, { signal: patience, urgent: true });
      } catch {
        // No goodbye from the daemon is no reason to stay: the socket is dropped either way.
      }
      this.#end("local", "the connection was closed here");
    }
    await this.closed;
  }

  #read(chunk: Buffer): void {
    try {
      this.#parser.push(chunk, (frame) => this.#frame(frame));
    } catch (error) {
      this.#end("protocol", error instanceof Error ? error.message : String(error), error);
    }
  }

  #frame(frame: Frame): void {
    if (this.#closedError !== undefined) return;
    if (frame.version !== programVersion) throw new LibvirtProtocolError(`program version ${frame.version}`);
    if (frame.program === Program.KEEPALIVE) {
      const answer = keepaliveAnswer(frame);
      if (answer !== undefined) this.#write(answer);
      return;
    }
    if (frame.program !== Program.REMOTE) throw new LibvirtProtocolError(`unknown program ${frame.program}`);
    switch (frame.type) {
      case FrameType.MESSAGE:
        this.#events.deliver(frame.procedure, frame.payload);
        return;
      case FrameType.REPLY:
        if (!this.#calls.answer(frame)) {
          throw new LibvirtProtocolError(
            `a reply to serial ${frame.serial}, procedure ${frame.procedure}: no such call`,
          );
        }
        return;
      default:
        throw new LibvirtProtocolError(`a message of type ${frame.type}, which nobody asked for`);
    }
  }

  #write(bytes: Uint8Array): void {
    if (!this.#socket.destroyed) this.#socket.write(bytes);
  }

  /** The one way a connection ends; only the first reason counts. */
  #end(reason: CloseReason, detail: string, cause?: unknown): void {
    if (this.#closedError !== undefined) return;
    const error = new LibvirtClosedError(reason, detail);
    if (cause !== undefined) error.cause = cause;
    this.#closedError = error;
    this.#socket.destroy();
    this.#calls.close(reason, detail, cause);
    this.#closedResolve(error);
    this.#onClose?.(error);
  }
}

const callHeader = {
  program: Program.REMOTE,
  version: programVersion,
  type: FrameType.CALL,
  status: FrameStatus.OK,
} as const;

function readReply<A, R>(procedure: Procedure<A, R>, reply: Frame): R {
  try {
    if (reply.status === FrameStatus.OK) return decodePayload(procedure.result, reply.payload);
    if (reply.status === FrameStatus.ERROR) {
      throw new LibvirtError(procedure.name, decodePayload(remoteError, reply.payload));
    }
  } catch (error) {
    if (error instanceof LibvirtError) throw error;
    throw new LibvirtProtocolError("the answer does not have the shape libvirt documents", {
      procedure: procedure.name,
      cause: error,
    });
  }
  throw new LibvirtProtocolError(`a reply with status ${reply.status}`, { procedure: procedure.name });
}

function warnOfEvent(fault: unknown): void {
  process.emitWarning(fault instanceof Error ? fault : new Error(String(fault)));
}
