/** What a run changed in its repository: a line of numbers, which opens to the diff. */

import { memo, useState, type ReactNode } from "react";

import { diffLines } from "../run";
import type { FileDiff, Run, RunDiff } from "../wire";
import { changeWords, diffNotes, plain } from "../words";
import { Failure, Icon, Spinner } from "./parts";
import { useAttempt, useSession } from "./use";

/** So many files are open at once. */
const FEW = 3;
/** Of a file, so many lines are shown until one asks for more. */
const LINES = 400;

export const Changes = memo(
  function Changes({ run }: { run: Run | null | undefined }): ReactNode {
    const session = useSession();
    const { busy, error, attempt } = useAttempt();
    const [open, setOpen] = useState(false);
    const [diff, setDiff] = useState<RunDiff | null>(null);
    const changes = run?.changes;
    if (run == null || changes == null) return null;
    const toggle = (): void => {
      setOpen(!open);
      if (!open && diff === null) void attempt(async () => setDiff(await session.diff(run.id)));
    };
    return (
      <section className="message from run changes" aria-label="What it changed">
        <div className="turn-body">
          {changes.files > 0 ? (
            <button type="button" className="run-summary" aria-expanded={open} onClick={toggle}>
              <Icon name="chevron" />
              <span>{changeWords(changes)}</span>
              <Counts additions={changes.additions} deletions={changes.deletions} />
            </button>
          ) : (
            <p className="hint">{plain(changes.problem ?? "The agent was faster than the first look at its folder: what it changed is not known.")}</p>
          )}
          {open && (
            <div className="diff">
              {busy && <Spinner label="Loading what it changed" />}
              <Failure error={error} />
              {diff !== null && <Files diff={diff} />}
            </div>
          )}
        </div>
      </section>
    );
  },
  (a, b) => a.run?.id === b.run?.id && a.run?.changes === b.run?.changes,
);

function Counts({ additions, deletions }: { additions: number; deletions: number }): ReactNode {
  if (additions === 0 && deletions === 0) return null;
  return (
    <span className="counts">
      <span className="added">
        +{additions.toLocaleString()}
        <span className="sr-only"> {additions === 1 ? "line" : "lines"} added,</span>
      </span>{" "}
      <span className="removed">
        −{deletions.toLocaleString()}
        <span className="sr-only"> removed</span>
      </span>
    </span>
  );
}

function Files({ diff }: { diff: RunDiff }): ReactNode {
  return (
    <>
      {diffNotes(diff).map((note) => (
        <p key={note} className="hint">
          {plain(note)}
        </p>
      ))}
      <ul className="diff-files" aria-label="Files">
        {diff.files.map((file, at) => (
          <File key={file.path} file={file} opens={diff.files.length <= FEW || at === 0} />
        ))}
      </ul>
    </>
  );
}

function File({ file, opens }: { file: FileDiff; opens: boolean }): ReactNode {
  const [open, setOpen] = useState(opens);
  const [all, setAll] = useState(false);
  const lines = diffLines(file.patch);
  const name = plain(file.old_path == null ? file.path : `${file.old_path} → ${file.path}`);
  const shown = all ? lines : lines.slice(0, LINES);
  return (
    <li className="diff-file">
      <button type="button" className="diff-head" aria-expanded={lines.length > 0 ? open : undefined} disabled={lines.length === 0} onClick={() => setOpen(!open)}>
        <Icon name="chevron" />
        <span className="diff-name">{name}</span>
        {file.status !== "modified" && <span className="diff-status">{file.status}</span>}
        {lines.length === 0 && file.truncated && <span className="diff-status">too long to show</span>}
        {file.binary ? <span className="diff-status">no text</span> : <Counts additions={file.additions} deletions={file.deletions} />}
      </button>
      {open && lines.length > 0 && (
        <pre className="diff-lines" tabIndex={0} role="group" aria-label={`Changes of ${name}`}>
          {shown.map((line, at) => (
            <span key={at} className={line.kind}>
              {`${plain(line.text)}\n`}
            </span>
          ))}
        </pre>
      )}
      {open && shown.length < lines.length && (
        <button type="button" className="text-button" onClick={() => setAll(true)}>
          Show all {lines.length.toLocaleString()} lines
        </button>
      )}
      {open && file.truncated && lines.length > 0 && <p className="hint">The rest of it was too long, and was left out.</p>}
    </li>
  );
}
