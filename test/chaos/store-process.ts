/**
 * The chaos runs' DynamoDB: the embedded store in a process of its own, so that its work delays no moment at which a fault is to
 * fall, and the death of the control plane is not the death of the store. Ends at SIGTERM.
 */
import { openDynalite } from "../../functions/cli/up-dynalite.ts";
import { readyText } from "./store-text.ts";

const folder = process.argv[2];
if (folder === undefined) throw new Error("usage: store-process.ts FOLDER");
const store = await openDynalite(folder);
process.once("SIGTERM", () => {
  void store.close().then(() => process.exit(0));
});
console.log(`${readyText}${store.endpoint}`);
