/** One thread's share of a batch. */
import { parentPort, workerData } from "node:worker_threads";
import { type Batch, runBatch } from "./batch.ts";

const { batch, first, step }: { batch: Batch; first: number; step: number } = workerData;
parentPort?.postMessage(await runBatch(batch, first, step));
