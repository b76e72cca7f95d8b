/** Where a person writes. Enter sends, Ctrl+Enter stops what runs and sends, Shift+Enter makes a line, and
 *  a draft survives a reload. */

import { useEffect, useLayoutEffect, useRef, useState, type KeyboardEvent, type ReactNode } from "react";

import { chosenIn } from "../reducer";
import { MAX_FILES, type Attachment } from "../wire";
import { ChosenFiles, DropZone, FileButton, pastedFiles, waitsFor } from "./Chosen";
import { Icon } from "./parts";
import { useApp, useSession } from "./use";

export function Composer(props: {
  /** Under which the draft is kept. */
  thread: string;
  name: string;
  hint: string | null;
  /** Whether something runs that a message could stop. */
  busy: boolean;
  onSend: (text: string, attachments: readonly Attachment[], mode?: "interrupt") => void;
}): ReactNode {
  const { kept, uploads } = useSession();
  const { thread } = props;
  const chosen = chosenIn(useApp(), thread);
  const [leftOut, setLeftOut] = useState(0);
  const [text, setText] = useState(() => kept.draft(thread));
  const area = useRef<HTMLTextAreaElement>(null);
  const empty = text.trim() === "" && chosen.length === 0;

  useEffect(() => kept.keepDraft(thread, text), [kept, thread, text]);
  useLayoutEffect(() => fit(area.current), [text]);
  useEffect(() => {
    focusOn(area.current);
  }, [thread]);
  useEffect(() => uploads.restore(thread), [uploads, thread]);

  const add = (files: readonly File[]): void => {
    setLeftOut(uploads.add(thread, files));
    area.current?.focus();
  };
  const send = (mode?: "interrupt"): void => {
    const attachments = uploads.ready(thread);
    if (attachments === null || (text.trim() === "" && attachments.length === 0)) return;
    props.onSend(text.trim(), attachments, mode);
    uploads.sent(thread);
    setText("");
    setLeftOut(0);
    area.current?.focus();
  };
  const onKey = (event: KeyboardEvent): void => {
    // While an input method composes, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send(event.ctrlKey || event.metaKey ? "interrupt" : undefined);
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
      <DropZone name={props.name} onFiles={add} />
      <div className="composer-box">
        <FileButton onFiles={add} />
        <textarea
          ref={area}
          rows={1}
          aria-label={`Message ${props.name}`}
          placeholder={`Message ${props.name}`}
          enterKeyHint="send"
          maxLength={200_000}
          value={text}
          onChange={(event) => setText(event.target.value)}
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
          disabled={empty || chosen.some((one) => one.state !== "there")}
        >
          <Icon name="send" />
        </button>
      </div>
      <p className="composer-hint">
        {waitsFor(chosen) ?? props.hint ?? (
          <span className="keys">
            <kbd>Enter</kbd> {props.busy ? "sends, it waits its turn" : "sends"} ·{" "}
            {props.busy && (
              <>
                <kbd>Ctrl</kbd> <kbd>Enter</kbd> stops what runs and goes first ·{" "}
              </>
            )}
            <kbd>Shift</kbd> <kbd>Enter</kbd> new line
          </span>
        )}
      </p>
    </form>
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
