/** `vmferry restore`: brings home what evacuations have taken from a host. */
import type { Run } from "./command.ts";
import { listed, move, wishes } from "./evacuate-command.ts";

export const restore: Run = (context, invocation) => {
  const host = encodeURIComponent(invocation.positional("HOST"));
  const body = { skip: listed(invocation.texts("skip")), ...wishes(invocation) };
  return move(context, invocation, { path: `/v1/hosts/${host}/restore`, body });
};
