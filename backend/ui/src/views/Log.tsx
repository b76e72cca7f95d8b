/** The scrolled part of a conversation. It follows what is new only while one is at its end. */

import { useEffect, useLayoutEffect, useRef, useState, type ReactNode } from "react";

import { Icon, Spinner } from "./parts";

const NEAR_PX = 48;

export function Log(props: {
  /** Changes whenever something new is at the end. */
  version: unknown;
  /** Changes when this person has sent something: then the end is where to be. */
  sent: number;
  label: string;
  older: (() => Promise<void>) | null;
  /** A message to go to first, by its id. */
  target: string | null;
  children: ReactNode;
}): ReactNode {
  const log = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const stuck = useRef(true);
  const [away, setAway] = useState(false);
  const [news, setNews] = useState(false);
  const [loading, setLoading] = useState(false);
  const { version, sent, target } = props;

  const toEnd = (): void => {
    stuck.current = true;
    if (log.current !== null) log.current.scrollTop = log.current.scrollHeight;
    setAway(false);
    setNews(false);
  };

  useLayoutEffect(toEnd, [sent]);
  useLayoutEffect(() => {
    if (stuck.current) toEnd();
    else setNews(true);
  }, [version]);
  useLayoutEffect(() => {
    if (target === null) return;
    const message = document.getElementById(target);
    if (message === null) return;
    stuck.current = false;
    message.scrollIntoView({ block: "center" });
    message.classList.add("target");
  }, [target]);
  useEffect(() => {
    // Fonts, a keyboard on a phone, a card that opens: the end moves without a new message.
    const observer = new ResizeObserver(() => {
      if (stuck.current && log.current !== null) log.current.scrollTop = log.current.scrollHeight;
    });
    if (content.current !== null) observer.observe(content.current);
    if (log.current !== null) observer.observe(log.current);
    return () => observer.disconnect();
  }, []);

  const onScroll = (): void => {
    const at = log.current;
    if (at === null) return;
    stuck.current = at.scrollHeight - at.scrollTop - at.clientHeight < NEAR_PX;
    setAway(!stuck.current);
    if (stuck.current) setNews(false);
  };
  const older = props.older;
  const loadOlder = async (): Promise<void> => {
    const at = log.current;
    if (older === null || at === null) return;
    setLoading(true);
    const fromEnd = at.scrollHeight - at.scrollTop;
    await older();
    setLoading(false);
    requestAnimationFrame(() => requestAnimationFrame(() => (at.scrollTop = at.scrollHeight - fromEnd)));
  };
  return (
    <div className="log-frame">
      <div ref={log} className="log" role="log" aria-live="off" aria-label={props.label} tabIndex={0} onScroll={onScroll}>
        <div ref={content} className="column">
          {older !== null && (
            <div className="older">
              <button type="button" className="button" disabled={loading} onClick={() => void loadOlder()}>
                {loading ? <Spinner label="Loading" /> : "Show earlier messages"}
              </button>
            </div>
          )}
          {props.children}
        </div>
      </div>
      {away && (
        <button type="button" className={`pill${news ? " news" : ""}`} onClick={toEnd}>
          <Icon name="down" />
          {news ? "new" : "latest"}
        </button>
      )}
    </div>
  );
}
