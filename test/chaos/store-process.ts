/**
 * The chaos runs' DynamoDB: the embedded store in a process of its own, so that its work delays no moment at which a fault is to
 * fall, and the death of the control plane is not the death of the store. Ends at SIGTERM.
 */
import { openDynalite } from "../../functions/cli/up-dynalite.ts";
import { readyText } from "./store-text.ts";

const folder = process.argv[2];
if (folder === undefined) throw new Error("usage: store-process.ts FOLDER");
const store = await openDynalite(folder);
// dynalite throws when a client dies in the middle of its request; a store that many use goes on.
process.on("uncaughtException", (error: Error & { code?: string }) => {
  if (error.code === "ECONNRESET") {
    console.error(`store: a client went away in its request: ${error.message}`);
    return;
  }
  console.error(error);
  process.exit(1);
});
process.once("SIGTERM", () => {
  void store.close().then(() => process.exit(0));
});
console.log(`${readyText}${store.endpoint}`);
