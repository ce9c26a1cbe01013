/** The version of vmferry; a test compares it with package.json, which is not shipped beside the bundle. */
export const version = "0.2.0";
