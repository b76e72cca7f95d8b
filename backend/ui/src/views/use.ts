/** What views share: the session, the state, a clock, a media query, a title. */

import { createContext, useContext, useEffect, useState, useSyncExternalStore } from "react";

import type { State } from "../state";
import type { Session } from "../session";

export const SessionContext = createContext<Session | null>(null);

/** Takes the words of a message that was taken back, to where a person writes. */
export const TakeBackContext = createContext<(text: string) => void>(() => undefined);

export function useSession(): Session {
  const session = useContext(SessionContext);
  if (session === null) throw new Error("a view outside of the session");
  return session;
}

export function useApp(): State {
  const { store } = useSession();
  return useSyncExternalStore(store.subscribe, store.painted);
}

/** The time, every second while `on`. */
export function useNow(on: boolean): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    if (!on) return;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [on]);
  return now;
}

export function useMedia(query: string): boolean {
  return useSyncExternalStore(
    (watcher) => {
      const list = matchMedia(query);
      list.addEventListener("change", watcher);
      return () => list.removeEventListener("change", watcher);
    },
    () => matchMedia(query).matches,
  );
}

export const NARROW = "(max-width: 760px)";

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = title;
  }, [title]);
}

/** Runs something that can fail for a person: busy while it runs, what to say if it failed. */
export function useAttempt(): {
  busy: boolean;
  error: unknown;
  attempt: (work: () => Promise<void>) => Promise<void>;
} {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const attempt = async (work: () => Promise<void>): Promise<void> => {
    setBusy(true);
    setError(null);
    try {
      await work();
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  return { busy, error, attempt };
}
