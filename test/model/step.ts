/** How an actor offers a step: a label for the story, and what the step changes in a copy of the world. */
import type { ModelWorld } from "./world.ts";

export interface Emit {
  (label: string, change: (next: ModelWorld) => void): void;
  /** A step that costs one of the bounded faults. */
  fault(label: string, change: (next: ModelWorld) => void): void;
}

export function copyOf(world: ModelWorld): ModelWorld {
  const { source, destination } = world;
  return {
    ...world,
    source: { ...source, journal: { ...source.journal }, memory: { ...source.memory } },
    destination: { ...destination, journal: { ...destination.journal }, memory: { ...destination.memory } },
    power: { ...world.power },
    late: { ...world.late },
    asked: { ...world.asked },
  };
}
