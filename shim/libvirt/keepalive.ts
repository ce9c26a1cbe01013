/**
 * The keepalive program (src/rpc/virkeepaliveprotocol.x): a PING is answered with a PONG at once, on the read path, in
 * front of everything that waits. A daemon that gets no PONG for interval x (count + 1), 30 s by default, drops the
 * connection, and on a destination between Prepare and Finish that destroys the incoming domain.
 *
 * The daemon pings only clients that ask for feature 10 (PROGRAM_KEEPALIVE). vmferry does not ask by default: on a unix
 * socket the death of this process closes the connection anyway, and a busy event loop must not cost a domain.
 */
import { encodeFrame, type Frame, FrameStatus, FrameType, Program, programVersion } from "./frame.ts";

const ping = 1;
const pong = 2;

function keepaliveFrame(procedure: number): Uint8Array {
  return encodeFrame({
    program: Program.KEEPALIVE,
    version: programVersion,
    procedure,
    type: FrameType.MESSAGE,
    serial: 0,
    status: FrameStatus.OK,
    payload: new Uint8Array(0),
  });
}

export const pingFrame = keepaliveFrame(ping);
export const pongFrame = keepaliveFrame(pong);

/** What to send back for a frame of the keepalive program: the PONG for a PING, nothing for the rest. */
export function keepaliveAnswer(frame: Frame): Uint8Array | undefined {
  return frame.procedure === ping ? pongFrame : undefined;
}
