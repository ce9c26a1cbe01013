/** A namespace of Durable Objects as the adapters use it: one object for each name, reached by a typed stub. */
export interface ObjectNamespace<Stub> {
  idFromName(name: string): ObjectId;
  get(id: ObjectId): Stub;
}
interface ObjectId {
  toString(): string;
}

/** The object of that name; made when it is first used. */
export const objectOf = <Stub>(namespace: ObjectNamespace<Stub>, name: string): Stub =>
  namespace.get(namespace.idFromName(name));
