/** A batch on several threads: runs are wholly apart, so they scale with the cores. */
import { Worker } from "node:worker_threads";
import { type Batch, type Figures, merge, noFigures, runBatch } from "./batch.ts";

export async function runOnThreads(batch: Batch, threads: number): Promise<Figures> {
  if (threads <= 1) return runBatch(batch);
  const all = noFigures();
  const parts = await Promise.all(
    Array.from({ length: threads }, (_, first) => inWorker({ batch, first, step: threads })),
  );
  for (const part of parts) merge(all, part);
  return all;
}

function inWorker(job: { batch: Batch; first: number; step: number }): Promise<Figures> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("./pool-worker.ts", import.meta.url), { workerData: job });
    worker.once("message", resolve);
    worker.once("error", reject);
    worker.once("exit", (code) => {
      if (code !== 0) reject(new Error(`a thread of the simulation ended with ${code}`));
    });
  });
}
