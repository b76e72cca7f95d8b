/** What an agent does during a run: its text as it is written, its tools, and how it went wrong. */

import { memo, useState, type ReactNode } from "react";

import { finishedEvent, isFailure, isLive, items, modelOf, type Item, type RunView } from "../run";
import { driverName, duration, between, oneLine, plain, reasonWords, runSummary, sendsMessage, toolWords } from "../words";
import { Markdown } from "./Markdown";
import { Head } from "./Messages";
import { Icon, Spinner } from "./parts";
import { useApp, useSession } from "./use";

interface Props {
  view: RunView;
  name: string;
  head: boolean;
  /** Texts that stand below as messages of their own. */
  said: readonly string[];
  /** What its message wanted for this turn; null: the agent's own. */
  asked: string | null;
}

export const Activity = memo(function Activity({ view, name, head, said, asked }: Props): ReactNode {
  const session = useSession();
  const live = isLive(view);
  const [open, setOpen] = useState<boolean | null>(null);
  const story = items(view).filter((item) => live || !standsBelow(item, said));
  const failed = isFailure(view.run);
  const shown = open ?? live;
  const toggle = (): void => {
    setOpen(!shown);
    if (!view.complete) void session.fetchRun(view.id);
  };
  return (
    <article className="message from run" aria-label={`${name} at work`}>
      {head && <Head name={name} id={view.agent_id ?? view.id} at={view.run?.started_at ?? ""} />}
      <div className="turn-body">
        {!live && (
          <button
            type="button"
            className="run-summary"
            aria-expanded={shown}
            disabled={view.complete && story.length === 0 && asked === null}
            onClick={toggle}
          >
            {(story.length > 0 || asked !== null || !view.complete) && <Icon name="chevron" />}
            <span>{runSummary(view)}</span>
          </button>
        )}
        {shown && (
          <div className={live ? "story live" : "story"}>
            {asked !== null && <AskedFor words={asked} view={view} />}
            {story.map((item) => (
              <Step key={item.key} item={item} />
            ))}
            {story.length === 0 && live && <span className="caret" aria-hidden="true" />}
            {!view.complete && !live && <Spinner label="Loading what it did" />}
            {story.length === 0 && view.complete && !live && <p className="hint">Nothing came before its end.</p>}
          </div>
        )}
        {failed && <FailedRun view={view} />}
      </div>
    </article>
  );
}, (a, b) => a.view === b.view && a.head === b.head && a.name === b.name && a.asked === b.asked && a.said.join("\0") === b.said.join("\0"));

/** What the turn was to be like, and the model that the program says it is. */
function AskedFor({ words, view }: { words: string; view: RunView }): ReactNode {
  const model = modelOf(view);
  return (
    <p className="note quiet">
      <Icon name="gear" />
      <span>
        Asked for {words}
        {model !== null && ` · ran with ${plain(model)}`}
      </span>
    </p>
  );
}

/** Whether it is a message that the person reads as such. */
function standsBelow(item: Item, said: readonly string[]): boolean {
  if (item.kind === "text") return said.includes(item.text.trim());
  if (item.kind !== "tool" || !sendsMessage(item.call.name) || item.result?.is_error === true) return false;
  return typeof item.call.input.text === "string" && said.includes(item.call.input.text.trim());
}

function Step({ item }: { item: Item }): ReactNode {
  switch (item.kind) {
    case "text":
      return (
        <div className={item.writing ? "writing" : undefined}>
          <Markdown text={item.text} />
        </div>
      );
    case "tool":
      return <ToolCard item={item} />;
    case "note":
      if (item.event.type === "steered") return <TakenUp id={item.event.message_id} />;
      if (item.event.type === "stderr") return <pre className="stderr" tabIndex={0} role="group" aria-label="Output of the program">{plain(item.event.text)}</pre>;
      return (
        <p className="note">
          <Icon name="warn" />
          {reasonWords(item.event.reason)}, trying again
          {item.event.delay_s ? ` in ${duration(item.event.delay_s * 1000)}` : ""} (attempt {item.event.attempt})
        </p>
      );
  }
}

/** A message that was put into the turn: what follows knows of it. */
function TakenUp({ id }: { id: string }): ReactNode {
  const text = useApp().messages[id]?.text;
  return (
    <p className="note quiet">
      <Icon name="check" />
      Took up {text === undefined ? "another message" : `“${oneLine(text, 80)}”`}
    </p>
  );
}

const LONG = 4_000;

const ToolCard = memo(
  function ToolCard({ item }: { item: Extract<Item, { kind: "tool" }> }): ReactNode {
    const { call, result, ended } = item;
    const [open, setOpen] = useState(false);
    const words = toolWords(call.name, call.input);
    const state = result === null ? (ended ? "none" : "busy") : result.is_error === true ? "bad" : "good";
    return (
      <div className={`tool ${state}`}>
        <button type="button" className="tool-head" aria-expanded={open} onClick={() => setOpen(!open)}>
          <span className="tool-mark">
            {state === "busy" ? <Spinner label="running" /> : <Icon name={state === "good" ? "check" : state === "bad" ? "cross" : "tool"} />}
          </span>
          <span className="tool-name">{words.name}</span>
          <span className="tool-detail">{words.detail}</span>
          {state === "bad" && <span className="sr-only">failed</span>}
          {result !== null && <span className="tool-time">{duration(between(call.at, result.at))}</span>}
          <Icon name="chevron" />
        </button>
        {open && (
          <div className="tool-body">
            <Output label="Input" text={inputText(call.input)} />
            {result !== null && (
              <Output label={result.is_error === true ? "Error" : "Output"} text={plain(result.output)} cut={result.truncated === true} />
            )}
          </div>
        )}
      </div>
    );
  },
  (a, b) => a.item.call === b.item.call && a.item.result === b.item.result && a.item.ended === b.item.ended,
);

function inputText(input: Record<string, unknown>): string {
  const entries = Object.entries(input);
  const only = entries.length === 1 ? entries[0]?.[1] : undefined;
  if (typeof only === "string") return plain(only);
  // As one reads it, not as it is packed: a name and its value, long values below their names.
  return plain(
    entries
      .map(([key, value]) => {
        const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
        return text.includes("\n") ? `${key}:\n${text.replace(/^/gm, "  ")}` : `${key}: ${text}`;
      })
      .join("\n"),
  );
}

function Output({ label, text, cut = false }: { label: string; text: string; cut?: boolean }): ReactNode {
  const [all, setAll] = useState(false);
  const long = text.length > LONG;
  return (
    <div className="output">
      <h3>{label}</h3>
      <pre tabIndex={0} role="group" aria-label={label}>
        {text === "" ? "(nothing)" : long && !all ? `${text.slice(0, LONG)}\n…` : text}
      </pre>
      {long && !all && (
        <button type="button" className="text-button" onClick={() => setAll(true)}>
          Show all {text.length.toLocaleString()} characters
        </button>
      )}
      {cut && <p className="hint">The middle was left out on the machine.</p>}
    </div>
  );
}

function FailedRun({ view }: { view: RunView }): ReactNode {
  const end = finishedEvent(view);
  const reason = end?.reason ?? view.run?.reason ?? null;
  const tail = end?.stderr_tail ?? "";
  return (
    <div className="failed-run">
      <div className="failed-head">
        <Icon name="warn" />
        <h3>{reasonWords(reason)}</h3>
        <span className="failed-driver">
          {driverName(view.run?.driver ?? "")}
          {end?.exit_code != null && end.exit_code !== 0 && ` · exit ${end.exit_code}`}
        </span>
      </div>
      {end?.detail ? <p>{plain(end.detail)}</p> : null}
      {tail !== "" && (
        <>
          <p className="hint">Last words of the program</p>
          <pre className="stderr" tabIndex={0} role="group" aria-label="Last words of the program">
            {plain(tail)}
          </pre>
        </>
      )}
    </div>
  );
}
