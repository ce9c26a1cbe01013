/**
 * The person whom the destination's shim asks: it has booted since it decided to let the guest run, the domain is off, and only
 * the guest's own disks tell whether it ran there. They show where it ran last, and the person reads them rightly; one who
 * does not look, or has another answer already, does nothing.
 */
import type { FunctionsSide } from "./functions-side.ts";
import type { Rules } from "./rules.ts";
import type { Emit } from "./step.ts";
import type { ModelWorld } from "./world.ts";

export function personSteps(world: ModelWorld, functions: FunctionsSide, rules: Rules, emit: Emit): void {
  const { destination, power, personAsked, ran } = world;
  if (!personAsked || !rules.personLooks || power.destination === "gone") return;
  if (destination.qemu !== "" || !destination.defined) return;
  // Whoever has stated that the host is fenced has decided already, and is told of nothing else.
  if (functions.state(world.functions).receipt !== null) return;
  if (ran)
    emit("a person starts the domain on the destination, where it has run", (next) => {
      next.destination.qemu = "running";
    });
  else
    emit("a person undefines the domain on the destination, where it has never run", (next) => {
      next.destination.defined = false;
    });
}
