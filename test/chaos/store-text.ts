/** What the store's process says when it serves; its endpoint follows. Apart from it, so that whoever waits does not start one. */
export const readyText = "store: ready on ";
