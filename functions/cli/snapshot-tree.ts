/** A snapshot tree as lines, without recursion: a chain of 500 snapshots is a tree as well. */
import type { SnapshotNode } from "#protocol/message";

/** Draws the nodes given in topological order; a node whose parent is not among them is drawn as a root. */
export function treeLines(nodes: readonly SnapshotNode[]): string[] {
  const children = new Map<string | null, SnapshotNode[]>();
  const names = new Set<string>();
  for (const node of nodes) {
    const parent = node.parent !== null && names.has(node.parent) ? node.parent : null;
    names.add(node.name);
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [node]);
    else siblings.push(node);
  }
  const lines: string[] = [];
  const entries = (parent: string | null, indent: string) =>
    (children.get(parent) ?? []).map((node, index, all) => ({ node, indent, last: index === all.length - 1 }));
  const open = entries(null, "").reverse();
  for (let entry = open.pop(); entry !== undefined; entry = open.pop()) {
    const { node, indent, last } = entry;
    const facts = [
      node.state,
      ...(node.createdAt === null ? [] : [node.createdAt]),
      ...(node.current ? ["<- current"] : []),
    ];
    lines.push(`${indent}${last ? "└─ " : "├─ "}${node.name}  ${facts.join("  ")}`);
    open.push(...entries(node.name, `${indent}${last ? "   " : "│  "}`).reverse());
  }
  return lines;
}
