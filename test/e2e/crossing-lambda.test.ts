/**
 * The crossing through the Lambda handlers, as they are bundled for AWS: the same commands, the same cases. The sockets' life is cut short, so that
 * shims renew them in the middle of it. In the cold variant no process serves two invocations.
 */
import { join } from "node:path";
import { guestCrossings, otherCrossings } from "./crossing-cases.ts";
import { World } from "./world.ts";

const program = join(import.meta.dirname, "lambda-cloud.ts");
/** Renewed after 24 to 28 s of these. */
const lifeMs = 30_000;

const startWorld = (more: readonly string[]) => () =>
  World.start(
    { hosts: 2 },
    {
      controlPlane: ({ port, data }) => [
        program,
        ...["--listen", String(port), "--data", data, "--life", String(lifeMs)],
        ...more,
      ],
    },
  );

guestCrossings("through warm Lambdas", startWorld([]));
otherCrossings("through warm Lambdas", startWorld([]));
guestCrossings("through Lambdas that are cold each time", startWorld(["--cold"]));
