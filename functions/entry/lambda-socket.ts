/** The shims' websocket on API Gateway: $connect, $disconnect and $default lead here. It decodes and holds no logic. */
import { createSocketHandler, type SocketReply } from "../socket/api-gateway-handler.ts";
import { invoked, wireAws } from "./aws-wiring.ts";
import { decodeSocketEvent } from "./lambda-event.ts";

export async function handler(event: unknown, context?: { awsRequestId?: string }): Promise<SocketReply> {
  invoked(context?.awsRequestId);
  return createSocketHandler(wireAws(process.env))(decodeSocketEvent(event));
}
