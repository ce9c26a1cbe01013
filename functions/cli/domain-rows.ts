/** How a domain stands in a table. */
import type { Domain } from "../http/host-resource.ts";
import { sizeText } from "./terminal.ts";

export const domainHead = ["DOMAIN", "HOST", "STATE", "MEMORY", "VCPUS", "SNAPSHOTS", "CHECKPOINTS", "UUID"];

export const domainRow = (domain: Domain): string[] => [
  domain.name,
  domain.host,
  domain.state,
  sizeText(domain.memoryBytes),
  String(domain.vcpus),
  String(domain.snapshots),
  String(domain.checkpoints),
  domain.uuid,
];
