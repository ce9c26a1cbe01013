/** The version of the shim; a test compares it with package.json, which is not shipped beside the bundle. */
export const shimVersion = "0.2.0";
