/** Where a person writes. Enter sends, Ctrl+Enter sends what shall not wait for the end of what runs, Shift+Enter
 *  makes a line, and a draft survives a reload. */

import { useEffect, useLayoutEffect, useRef, useState, type KeyboardEvent, type ReactNode } from "react";

import { chosenIn } from "../selectors";
import { MAX_FILES, type Agent, type Attachment, type Mode } from "../wire";
import { within, type Wish } from "../wishes";
import { ChosenFiles, DropZone, FileButton, pastedFiles, waitsFor } from "./Chosen";
import { Icon } from "./parts";
import { useApp, useSession } from "./use";
import { WishPicker } from "./WishPicker";

export interface Given {
  text: string;
}

/** What goes with a message's words. */
export interface With {
  attachments: readonly Attachment[];
  wish: Wish;
  mode?: Mode | undefined;
}

export function Composer(props: {
  /** Under which the draft is kept. */
  thread: string;
  agent: Agent;
  /** What a person takes back to write it anew; each time another object. */
  given: Given | null;
  hint: string | null;
  /** What Ctrl+Enter means for what runs; null if nothing runs. */
  urgent: Mode | null;
  onSend: (text: string, more: With) => void;
  /** The first letter is written. */
  onBegin: () => void;
}): ReactNode {
  const { kept, uploads } = useSession();
  const { thread, agent } = props;
  const chosen = chosenIn(useApp(), thread);
  const [leftOut, setLeftOut] = useState(0);
  const [text, setText] = useState(() => kept.draft(thread));
  const [wished, setWished] = useState(() => kept.wish(thread));
  const wish = within(wished, agent);
  const area = useRef<HTMLTextAreaElement>(null);
  const unready = (text.trim() === "" && chosen.length === 0) || chosen.some((one) => one.state !== "there");

  useEffect(() => kept.keepDraft(thread, text), [kept, thread, text]);
  useLayoutEffect(() => fit(area.current), [text]);
  useEffect(() => {
    focusOn(area.current);
  }, [thread]);
  useEffect(() => {
    if (props.given === null) return;
    const back = props.given.text;
    setText((had) => (had.trim() === "" ? back : `${had}\n\n${back}`));
    area.current?.focus();
  }, [props.given]);
  useEffect(() => uploads.restore(thread), [uploads, thread]);

  const add = (files: readonly File[]): void => {
    setLeftOut(uploads.add(thread, files));
    area.current?.focus();
  };
  const send = (mode?: Mode): void => {
    const attachments = uploads.ready(thread);
    if (attachments === null || (text.trim() === "" && attachments.length === 0)) return;
    props.onSend(text.trim(), { attachments, wish, mode });
    uploads.sent(thread);
    setText("");
    setLeftOut(0);
    area.current?.focus();
  };
  const onKey = (event: KeyboardEvent): void => {
    // While an input method composes, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send(event.ctrlKey || event.metaKey ? (props.urgent ?? undefined) : undefined);
  };
  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <ChosenFiles chosen={chosen} onGone={() => area.current?.focus()} />
      {leftOut > 0 && (
        <p className="left-out" role="alert">
          A message takes {MAX_FILES} files: {leftOut} {leftOut === 1 ? "was" : "were"} left out. Send them with another one.
        </p>
      )}
      <DropZone name={agent.name} onFiles={add} />
      <div className="composer-box">
        <FileButton onFiles={add} />
        <textarea
          ref={area}
          rows={1}
          aria-label={`Message ${agent.name}`}
          placeholder={`Message ${agent.name}`}
          enterKeyHint="send"
          maxLength={200_000}
          value={text}
          onChange={(event) => {
            if (text === "") props.onBegin();
            setText(event.target.value);
          }}
          onKeyDown={onKey}
          onPaste={(event) => {
            const files = pastedFiles(event.clipboardData);
            if (files.length === 0) return;
            event.preventDefault();
            add(files);
          }}
        />
        <button
          type="submit"
          className="button primary icon-only send"
          aria-label="Send"
          disabled={unready}
        >
          <Icon name="send" />
        </button>
      </div>
      <div className="composer-hint">
        <p>{waitsFor(chosen) ?? props.hint ?? <Keys urgent={props.urgent} />}</p>
        <WishPicker
          agent={agent}
          wish={wish}
          onWish={(next) => {
            setWished(next);
            kept.keepWish(thread, next);
          }}
          onDone={() => focusOn(area.current)}
        />
        {props.urgent !== null && !unready && (
          <button type="button" className="text-button" onClick={() => send(props.urgent ?? undefined)}>
            {URGENT[props.urgent].button}
          </button>
        )}
      </div>
    </form>
  );
}

const URGENT: Record<Mode, { button: string; keys: string }> = {
  steer: { button: "Tell it now", keys: "tells it now, in the middle of its turn" },
  interrupt: { button: "Stop it and send", keys: "stops what runs and goes first" },
};

/** Not shown where there are no keys. */
function Keys({ urgent }: { urgent: Mode | null }): ReactNode {
  return (
    <span className="keys">
      <kbd>Enter</kbd> {urgent === null ? "sends" : "sends, it waits its turn"} ·{" "}
      {urgent !== null && (
        <>
          <kbd>Ctrl</kbd> <kbd>Enter</kbd> {URGENT[urgent].keys} ·{" "}
        </>
      )}
      <kbd>Shift</kbd> <kbd>Enter</kbd> new line
    </span>
  );
}

function fit(area: HTMLTextAreaElement | null): void {
  if (area === null) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

// On a touch screen the keyboard would cover what one came to read.
function focusOn(area: HTMLTextAreaElement | null): void {
  if (matchMedia("(pointer: fine)").matches) area?.focus();
}

/** Where what had the focus is gone; elsewhere the focus stays. */
export function focusComposer(): void {
  if (document.activeElement === null || document.activeElement === document.body || !document.activeElement.isConnected)
    focusOn(document.querySelector<HTMLTextAreaElement>(".composer textarea"));
}
