/** Medians and ratios. A ratio is the median of one way by the median of the other; its spread is that of the rounds. */

export interface Figure {
  median: number;
  min: number;
  max: number;
  samples: number[];
}

export interface Ratio {
  /** Median of the first way by the median of the second. */
  ratio: number;
  /** The smallest and the largest of the ratios of single rounds, in which both ways ran right after each other. */
  min: number;
  max: number;
}

/** Throws when there is nothing to take a median of: a figure that was not measured must not look like one. */
export function median(samples: readonly number[]): number {
  const sorted = samples.toSorted((one, other) => one - other);
  const upper = sorted[Math.floor(sorted.length / 2)];
  const lower = sorted[Math.floor((sorted.length - 1) / 2)];
  if (upper === undefined || lower === undefined) throw new Error("no samples");
  return (upper + lower) / 2;
}

export function figure(samples: readonly number[]): Figure {
  return { median: median(samples), min: Math.min(...samples), max: Math.max(...samples), samples: [...samples] };
}

/** Samples of the same index belong to the same round. */
export function ratio(one: readonly number[], other: readonly number[]): Ratio {
  if (one.length !== other.length) throw new Error(`${one.length} samples against ${other.length}`);
  const rounds = one.map((value, index) => value / (other[index] ?? Number.NaN));
  return { ratio: median(one) / median(other), min: Math.min(...rounds), max: Math.max(...rounds) };
}
