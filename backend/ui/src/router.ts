/** The page's addresses: `/`, `/a/<agent>`, `/a/<agent>/new`, `/a/<agent>/c/<conversation>`,
 *  `/a/<agent>/m/<message>`, `/a/<agent>/settings`, `/approvals`, `/agents/new`, `/hosts`, `/hosts/new`, `/device`, `/setup`. */

import { useSyncExternalStore } from "react";

export type Route =
  | { view: "home" }
  | { view: "chat"; agent: string; conversation: string | null; message: string | null; fresh: boolean }
  | { view: "settings"; agent: string }
  | { view: "new_agent"; host: string | null }
  | { view: "approvals" }
  | { view: "hosts" }
  | { view: "new_host" }
  | { view: "device"; code: string | null }
  | { view: "setup" }
  | { view: "nowhere" };

export function parse(path: string, query = ""): Route {
  const [first, second, third, fourth] = path.split("/").filter(Boolean).map(decode);
  if (first === undefined) return { view: "home" };
  if (first === "a" && second !== undefined) {
    if (third === "settings") return { view: "settings", agent: second };
    return {
      view: "chat",
      agent: second,
      conversation: third === "c" ? (fourth ?? null) : null,
      message: third === "m" ? (fourth ?? null) : null,
      fresh: third === "new",
    };
  }
  if (first === "agents" && second === "new")
    return { view: "new_agent", host: new URLSearchParams(query).get("host") };
  if (first === "approvals") return { view: "approvals" };
  if (first === "hosts") return { view: second === "new" ? "new_host" : "hosts" };
  if (first === "device") return { view: "device", code: new URLSearchParams(query).get("code") };
  if (first === "setup") return { view: "setup" };
  return { view: "nowhere" };
}

export const chatPath = (agent: string, conversation?: string | null): string =>
  conversation == null ? `/a/${encodeURIComponent(agent)}` : `/a/${encodeURIComponent(agent)}/c/${conversation}`;

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

const watchers = new Set<() => void>();

export function go(path: string, how: "push" | "replace" = "push"): void {
  if (how === "push") history.pushState(null, "", path);
  else history.replaceState(null, "", path);
  for (const watcher of watchers) watcher();
}

export function useRoute(): Route {
  const address = useSyncExternalStore(watch, () => location.pathname + location.search);
  return parse(...(address.split("?", 2) as [string, string?]));
}

function watch(watcher: () => void): () => void {
  watchers.add(watcher);
  addEventListener("popstate", watcher);
  return () => {
    watchers.delete(watcher);
    removeEventListener("popstate", watcher);
  };
}

/** Takes the one-time key out of the address before anything else can read or remember it. */
export function takeKey(): string | null {
  const url = new URL(location.href);
  const key = url.searchParams.get("k");
  if (key === null) return null;
  url.searchParams.delete("k");
  history.replaceState(null, "", url.pathname + url.search + url.hash);
  return key;
}
