/**
 * Whether a person's statement "this host is fenced" may be taken. It takes the place of a receipt (I2), so what can be
 * known against it is asked first: a host that was heard of lately, or whose shim answers at this moment, is not fenced,
 * whatever anybody says. A refusal here costs a person half a minute; a wrong yes may cost a disk.
 */
import type { Side } from "#protocol/command";
import { unresolvable } from "../core/resolution.ts";
import type { MigrationState } from "../core/state.ts";
import type { Ports } from "../ports.ts";
import { isConnected } from "../refusals.ts";
import { hostNamed } from "./fleet.ts";
import { fault } from "./problem.ts";

/** Time for the shim's answer. A host that was powered off leaves its socket open for a while; nobody answers on it. */
const answerMsMax = 3_000;

/** The side that a statement is about. Throws `host.absent`, `request.conflict`. */
export async function fencedSide(ports: Ports, state: MigrationState, nameOrId: string): Promise<Side> {
  const side = (["source", "destination"] as const).find((one) => [state[one].id, state[one].name].includes(nameOrId));
  if (side === undefined) {
    const { name } = await hostNamed(ports, nameOrId);
    throw conflict(
      `Host ${name} takes no part in ${state.id}: it goes from ${state.source.name} to ${state.destination.name}.`,
      `Name one of these two, the one that stays away: vmferry migration show ${state.id}.`,
    );
  }
  const why = unresolvable(state, side);
  if (why !== null)
    throw conflict(`There is nothing to resolve: ${why}`, `Look at it: vmferry migration show ${state.id}.`);
  await refuseIfAlive(ports, state, side);
  return side;
}

async function refuseIfAlive(ports: Ports, state: MigrationState, side: Side): Promise<void> {
  const { id, name } = state[side];
  const host = await ports.hosts.byId(id);
  const goOn = `If ${name} is to run, leave it: the migration goes on by itself. If not, power it off and say this again`;
  if (host !== null && isConnected(host, ports))
    throw conflict(
      `Host ${name} was heard of at ${host.lastSeenAt}: a host that speaks is not fenced.`,
      `${goOn} ${Math.ceil(ports.pace.offlineAfterMs / 1_000)} s later.`,
    );
  // What is stored lags behind after an outage of the store; the shim itself does not.
  const answer = await ports.sockets.query(id, { kind: "describeDomain", domain: state.domain }, answerMsMax);
  if (answer !== null) throw conflict(`Host ${name} answers: a host that answers is not fenced.`, `${goOn}.`);
}

const conflict = (cause: string, action: string) => fault("request.conflict", cause, action);
