/** All steps under the names of their commands: what an executor is given. */
import { confirm } from "./confirm.ts";
import { prepare, restoreBundle, settle, stage, unstage } from "./destination.ts";
import { inspectDestination } from "./destination-inspection.ts";
import { finish } from "./finish.ts";
import { abort, perform } from "./perform.ts";
import type { Steps } from "./ports.ts";
import { restore } from "./restore.ts";
import { begin, exportBundle } from "./source.ts";
import { inspectSource } from "./source-inspection.ts";

export const steps: Steps = {
  inspectSource,
  inspectDestination,
  export: exportBundle,
  stage,
  begin,
  prepare,
  perform,
  abort,
  finish,
  confirm,
  settle,
  restore,
  unstage,
  restoreBundle,
};
