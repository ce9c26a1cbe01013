/** The crossing through the Worker, as `vmferry up` runs it. */
import { guestCrossings, otherCrossings } from "./crossing-cases.ts";
import { World } from "./world.ts";

const startWorld = () => World.start({ hosts: 2 });
guestCrossings("through the Worker", startWorld);
otherCrossings("through the Worker", startWorld);
