/**
 * The recovery tables for people (docs/recovery.md) and for a reviewer (recovery-table.txt, one line a row), both made from
 * the tables themselves, so that neither can say something else than the shim does.
 */
import { type DestinationAction, destinationRecovery } from "#shim/destination-recovery";
import { destinationMoments, type Found, founds, sourceMoments } from "#shim/moment";
import type { Row, Rows } from "#shim/recovery";
import { type SourceAction, sourceRecovery } from "#shim/source-recovery";

export type Action = SourceAction | DestinationAction;

const foundNames = Object.keys(founds) as Found[];

/** What an action is, for the page. A name without a text does not compile. */
const actions: Record<Action, string> = {
  goOn: "The step is carried out.",
  refuse: "The step is refused; what is here is left alone.",
  completeTree:
    "The missing records come back from the bundle (this host's file, else the bucket), then the step goes on.",
  callOff: "Perform is not called; the domain is left as it is.",
  lookAgain: "It is looked again.",
  abortJob: "The job is aborted, and it is looked again.",
  handOver: "The destination is told how Perform ended; the domain stays as it is until the receipt is here.",
  onlyHandOver:
    "The destination is told that Perform has failed; here nothing is done while the job lasts, whatever the receipt says.",
  withdraw: "The destination is asked to end its copy although Perform has succeeded.",
  leave: "It is left alone.",
  giveUp: "Confirm; the source's copy and its definition go.",
  takeBack: "Confirm (cancelled); the guest goes on.",
  endJob: "Confirm (cancelled); the guest stays paused as its owner left it.",
  keep: "Nothing has to be done to the domain.",
  done: "Nothing is left to do.",
  restoreTree: "Tree and autostart are made what they were, and compared.",
  reportAbsent: "Its absence is reported, and the way back ends.",
  stage: "Definition and tree are made.",
  prepare: "Prepare is called.",
  callFinish: "libvirt is asked to end the incoming domain as it was decided.",
  stateStarted: "The receipt says `started`.",
  stateDestroyed: "The receipt says `destroyed`.",
  settle: "Tree, current snapshot and autostart are verified and set.",
  endIncoming: "Giving up is decided, and Finish (cancelled) ends the incoming domain.",
  sweep: "The definition goes with its records.",
  sweepIfProven: "The definition goes if it holds exactly the bundle's tree; else it is left.",
};
const endTexts = { completed: "moved", rolledBack: "as it was on the source", either: "either" } as const;

/** moment | found -> what is done, how it ends. */
export function recoveryTable(): string {
  const lines = (side: string, table: Readonly<Record<string, Rows<Action>>>) =>
    Object.entries(table).flatMap(([moment, rows]) =>
      foundNames.map((found) => {
        const row = rows[found];
        if (row.do === "strand") return `${side} ${moment} | ${found} -> strand`;
        const later = row.otherwise === undefined ? "" : `, after ${row.patienceMs} ms ${row.otherwise}`;
        return `${side} ${moment} | ${found} -> ${row.do}${later} (${row.ends})`;
      }),
    );
  return `${[...lines("source", sourceRecovery), ...lines("destination", destinationRecovery)].join("\n")}\n`;
}

export function recoveryPage(): string {
  return [
    `# Recovery

<!-- Made from shim/source-recovery.ts and shim/destination-recovery.ts by test/unit/recovery.test.ts; VMFERRY_RECORD=1 writes it anew. -->

What a shim does when it takes a migration up again: after its own restart, a restart of libvirt's daemon, a lost
connection to libvirt, or a reboot of its host. It reads two things: the **moment**, from its journal, and what it
**finds**, by asking libvirt for the domain. No answer is never an answer: libvirt is asked until it gives one. Each row
ends by itself, or it is *stranded*, says what is known of both sides, and names the next command.

| what happened | what it leaves |
|---|---|
| the shim was restarted | its libvirt connections closed: an incoming domain is destroyed by libvirt, an outgoing job goes on to its end and is then dropped, and the source stays paused by the migration |
| libvirt's daemon was restarted | an incoming domain that was not finished is killed; a Perform that had not ended is cancelled and the source goes on; after a Perform that had ended the source stays paused |
| the connection to libvirt was lost | the same as a restart of the shim, for this migration |
| the source's host was rebooted | the guest is lost there (\`inactive\`, or \`absent\` if it was transient); before Perform had ended the migration goes back, after it the destination's journal decides |
| the destination's host was rebooted | the incoming guest is gone, and what was staged is \`inactive\`; the source goes on by a receipt that says so |

In what a person is told, \`UUID\`, \`NAME\` and \`MIGRATION\` are filled in, and the facts of both sides stand beside it.

Between Prepare and the decision of Finish there is nothing to recover on the destination: the incoming domain is there
and waits, or it went with its connection, and then the functions are told.
`,
    `## What is found\n\n| found | is |\n|---|---|\n${foundNames.map((found) => `| ${found} | ${founds[found]} |`).join("\n")}\n`,
    chapter("On the source", sourceMoments, sourceRecovery),
    chapter("On the destination", destinationMoments, destinationRecovery),
  ].join("\n");
}

function chapter(
  title: string,
  moments: Readonly<Record<string, string>>,
  table: Readonly<Record<string, Rows<Action>>>,
): string {
  const parts = Object.entries(table).map(([moment, rows]) => {
    // What is answered alike is one line.
    const groups = new Map<Row<Action>, Found[]>();
    for (const found of foundNames) {
      const same = [...groups.keys()].find((row) => JSON.stringify(row) === JSON.stringify(rows[found]));
      groups.set(same ?? rows[found], [...(groups.get(same ?? rows[found]) ?? []), found]);
    }
    const lines = [...groups].map(([row, found]) => `| ${found.join(", ")} | ${cells(row)} |`);
    return `### ${moment}\n\n${sentence(moments[moment] ?? "")}\n\n| found | what happens | why | ends |\n|---|---|---|---|\n${lines.join("\n")}\n`;
  });
  return `## ${title}\n\n${parts.join("\n")}`;
}

const sentence = (text: string) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

function cells(row: Row<Action>): string {
  if (row.do === "strand") return `**Stranded.** ${row.cause} | a person is needed: ${row.action} | stranded`;
  const text = actions[row.do];
  const later =
    row.otherwise === undefined
      ? ""
      : ` When nothing has changed after ${(row.patienceMs ?? 0) / 1000} s: ${actions[row.otherwise]}`;
  return `${text}${later} | ${row.why} | ${endTexts[row.ends]} |`.replace(/ \|$/, "");
}
