/** The small things that every view is made of. */

import { useEffect, useRef, useState, type MouseEvent, type ReactNode } from "react";

import { explain } from "../api";
import { go } from "../router";
import type { Tone } from "../words";

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "m6 6 12 12M18 6 6 18",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V6m-6 5.5L12 5.5l6 6",
  down: "M12 5v13m6-5.5-6 6-6-6",
  chevron: "m9 6 6 6-6 6",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zm5-2 4.5 4.5",
  host: "M4 6.5A1.5 1.5 0 0 1 5.5 5h13A1.5 1.5 0 0 1 20 6.5V15H4zM2.5 18.5h19",
  chat: "M5 5h14a1.5 1.5 0 0 1 1.5 1.5v9A1.5 1.5 0 0 1 19 17h-7l-4.5 3.5V17H5a1.5 1.5 0 0 1-1.5-1.5v-9A1.5 1.5 0 0 1 5 5z",
  out: "M14 5H6v14h8M10.5 12H21m-3.5-3.5L21 12l-3.5 3.5",
  gear: "M4 8h9m5 0h2M4 16h2m5 0h9M15.5 10.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zm-7 8a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5z",
  check: "m5 12.5 4.5 4.5L19 7.5",
  cross: "m7 7 10 10M17 7 7 17",
  warn: "M12 8v5m0 3.2v.1M10.6 4.4 3 18a1.6 1.6 0 0 0 1.4 2.4h15.2A1.6 1.6 0 0 0 21 18L13.4 4.4a1.6 1.6 0 0 0-2.8 0z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  tool: "m5 7 5 5-5 5m7 0h7",
  pause: "M9 6v12M15 6v12",
  back: "m14 6-6 6 6 6",
  clip: "m19.5 11.5-7.6 7.6a4.8 4.8 0 0 1-6.8-6.8l8-8a3.2 3.2 0 0 1 4.5 4.5l-7.9 7.9a1.6 1.6 0 0 1-2.2-2.2l7.2-7.2",
  file: "M13.5 4H7a1.5 1.5 0 0 0-1.5 1.5v13A1.5 1.5 0 0 0 7 20h10a1.5 1.5 0 0 0 1.5-1.5V9zm0 0v5h5",
  save: "M12 4v11m4.5-4.5L12 15l-4.5-4.5M5 19.5h14",
} as const;

export function Icon({ name }: { name: keyof typeof ICONS }): ReactNode {
  return (
    <svg className="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={ICONS[name]} />
    </svg>
  );
}

export function Stop(): ReactNode {
  return (
    <svg className="icon solid" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <rect x="6.5" y="6.5" width="11" height="11" rx="2.5" />
    </svg>
  );
}

/** A link within the page; the browser's own ways to open it elsewhere stay. */
export function Link(props: {
  to: string;
  className?: string;
  label?: string;
  current?: boolean;
  replace?: boolean;
  onGo?: () => void;
  children: ReactNode;
}): ReactNode {
  const follow = (event: MouseEvent): void => {
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(props.to, props.replace ? "replace" : "push");
    props.onGo?.();
  };
  return (
    <a
      href={props.to}
      className={props.className}
      aria-label={props.label}
      aria-current={props.current ? "page" : undefined}
      onClick={follow}
    >
      {props.children}
    </a>
  );
}

export function Avatar({ name, id, small }: { name: string; id: string; small?: boolean }): ReactNode {
  let sum = 0;
  for (const letter of id) sum = (sum * 31 + letter.charCodeAt(0)) % 997;
  const first = String.fromCodePoint(name.codePointAt(0) ?? 63).toUpperCase();
  return (
    <span className={`avatar hue-${sum % 6}${small ? " small" : ""}`} aria-hidden="true">
      {first}
    </span>
  );
}

export function Dot({ tone }: { tone: Tone }): ReactNode {
  return <span className={`dot ${tone}`} aria-hidden="true" />;
}

/** A sentence of the server's or of a machine's: what stands between backticks is to be typed. */
export function Prose({ text }: { text: string }): ReactNode {
  return text.split(/`([^`]+)`/).map((part, i) => (i % 2 === 1 ? <code key={i}>{part}</code> : part));
}

/** A failure in words, with the way out. */
export function Failure({ error }: { error: unknown }): ReactNode {
  if (error === null) return null;
  const { detail, next } = explain(error);
  return (
    <div className="failure" role="alert">
      <Icon name="warn" />
      <p>
        <Prose text={detail} />
        {next !== null && (
          <span className="next">
            {" "}
            <Prose text={next} />
          </span>
        )}
      </p>
    </div>
  );
}

export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

/** The clipboard's own interface needs https or loopback; a team's server may have neither. */
function copyBySelection(text: string): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr-only";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

export function CopyButton({ text, label }: { text: string; label: string }): ReactNode {
  const [said, setSaid] = useState<string | null>(null);
  useEffect(() => {
    if (said === null) return;
    const timer = setTimeout(() => setSaid(null), 2000);
    return () => clearTimeout(timer);
  }, [said]);
  return (
    <button
      type="button"
      className="button copy"
      aria-label={label}
      onClick={() => void copyText(text).then((done) => setSaid(done ? "Copied" : "Select it by hand"))}
    >
      <Icon name={said === "Copied" ? "check" : "copy"} />
      <span aria-live="polite">{said ?? "Copy"}</span>
    </button>
  );
}

/** A command to paste into a terminal. */
export function Command({ text, label, secret }: { text: string; label: string; secret?: boolean }): ReactNode {
  return (
    <div className="command">
      <pre tabIndex={0} role="group" aria-label={label}>
        <code className={secret ? "secret" : undefined}>{text}</code>
      </pre>
      <CopyButton text={text} label={`Copy: ${label}`} />
    </div>
  );
}

/** A question that must be answered before something cannot be undone. */
export function Confirm(props: {
  title: string;
  children: ReactNode;
  action: string;
  /** What the other button says, and whether the action takes something away for good. */
  keep?: string;
  harmless?: boolean;
  onAnswer: (yes: boolean) => void;
}): ReactNode {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} className="confirm" aria-labelledby="confirm-title" onClose={() => props.onAnswer(false)}>
      <h2 id="confirm-title">{props.title}</h2>
      <div className="confirm-body">{props.children}</div>
      <div className="actions">
        <button type="button" className="button" onClick={() => props.onAnswer(false)}>
          {props.keep ?? "Keep it"}
        </button>
        <button type="button" className={props.harmless ? "button primary" : "button danger"} onClick={() => props.onAnswer(true)}>
          {props.action}
        </button>
      </div>
    </dialog>
  );
}

export function Spinner({ label }: { label: string }): ReactNode {
  return (
    <span className="spinner">
      <span className="sr-only">{label}</span>
    </span>
  );
}
