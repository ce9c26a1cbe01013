/** A line of the chronicle as the API shows it. */
import * as z from "zod/mini";
import { chronicleEventSchema } from "../core/chronicle-event.ts";
import { pageOf } from "./page-query.ts";

/** `at`: where it stands in the chronicle; a Last-Event-ID as well. */
export const eventLineSchema = z.object({ at: z.string(), event: chronicleEventSchema });
export const eventPageSchema = pageOf(eventLineSchema);
