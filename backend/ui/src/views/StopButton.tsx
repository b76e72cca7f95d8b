/** Stop in two stages: the agent is asked first, so that it can leave its work in order. If it does not heed
 *  that, its processes can be killed, by a button of another name, which comes too late for a double click. */

import { useEffect, useState, type ReactNode } from "react";

import { Stop } from "./parts";

/** How long an agent may take to heed, before the person is offered more. */
const PATIENCE_MS = 2_000;

export function StopButton(props: {
  /** Somebody has asked to stop it. */
  asked: boolean;
  /** Somebody has asked to end it at once. */
  ended: boolean;
  busy: boolean;
  onStop: (now: boolean) => void;
}): ReactNode {
  const { asked, ended, busy, onStop } = props;
  const [waited, setWaited] = useState(false);
  useEffect(() => {
    if (!asked) return;
    const timer = setTimeout(() => setWaited(true), PATIENCE_MS);
    return () => clearTimeout(timer);
  }, [asked]);
  const now = asked && waited;
  const idle = !busy && !ended;
  // One element, and never `disabled`, so that it keeps the focus when it becomes the other one.
  return (
    <button
      type="button"
      className={now ? "button stop now" : "button stop"}
      aria-disabled={!idle}
      onClick={() => idle && onStop(now)}
      title={now ? "Kills its processes at once. What it is in the middle of stays as it is." : undefined}
      aria-keyshortcuts={now ? undefined : "Escape"}
    >
      <Stop />
      {now ? "Stop now" : "Stop"}
      {!now && (
        <kbd className="wide-only" aria-hidden="true">
          Esc
        </kbd>
      )}
    </button>
  );
}
