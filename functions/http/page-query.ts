/** Query parameters that lists share. */
import * as z from "zod/mini";
import { pageRowsMax } from "../core/limits.ts";

const pageRowsDefault = 50;

export const limitSchema = z._default(
  z.coerce.number().check(z.multipleOf(1), z.minimum(1), z.maximum(pageRowsMax)),
  pageRowsDefault,
);
export const cursorSchema = z.optional(z.string().check(z.minLength(1), z.maxLength(2_000)));
export const pageQuerySchema = z.strictObject({ limit: limitSchema, cursor: cursorSchema });

/** Of lists whose items end: `active=true` asks for those that have not. */
export const activePageQuerySchema = z.strictObject({
  ...pageQuerySchema.shape,
  active: z.optional(z.enum(["true", "false"])),
});

/** The same in the words of the stores. */
export const activePage = ({ limit, cursor, active }: z.infer<typeof activePageQuerySchema>) => ({
  limit,
  cursor: cursor ?? null,
  active: active === "true",
});

/** A page of a list; `cursor` null: there is no more. */
export const pageOf = <T extends z.ZodMiniType>(item: T) =>
  z.object({ items: z.array(item), cursor: z.nullable(z.string()) });
