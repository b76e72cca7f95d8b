/** Calls to the backend. The page's cookie says who asks; the header says that the page asks. */

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly next: string | null,
    readonly retryAfterMs: number | null,
  ) {
    super(detail);
  }
}

/** There was no answer: the network, or a backend that is not running. */
export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached.");
  }
}

const TIMEOUT_MS = 30_000;

export async function call<T>(method: string, path: string, body?: unknown, key?: string): Promise<T> {
  const headers: Record<string, string> = { accept: "application/json", "x-cloudagent": "1" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key !== undefined) headers["idempotency-key"] = key;
  let response: Response;
  let text: string;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await response.text();
  } catch {
    throw new Unreachable();
  }
  const value = json(text);
  if (response.ok) return value as T;
  throw problemOf(response, value);
}

export const get = <T>(path: string): Promise<T> => call<T>("GET", path);
export const post = <T>(path: string, body?: unknown, key?: string): Promise<T> =>
  call<T>("POST", path, body, key);
export const patch = <T>(path: string, body: unknown): Promise<T> => call<T>("PATCH", path, body);
export const remove = (path: string): Promise<void> => call<void>("DELETE", path);

/** What to tell a person: what happened, and what to do about it. */
export function explain(error: unknown): { detail: string; next: string | null } {
  if (error instanceof Problem) return { detail: error.detail, next: error.next };
  if (error instanceof Unreachable)
    return { detail: error.message, next: "Check your network, and that the server is running." };
  return { detail: "Something went wrong on this page.", next: "Reload it." };
}

function problemOf(response: Response, value: unknown): Problem {
  const problem = (typeof value === "object" && value !== null ? value : {}) as Record<string, unknown>;
  const word = (name: string): string | null =>
    typeof problem[name] === "string" ? problem[name] : null;
  const wait = Number(response.headers.get("retry-after"));
  return new Problem(
    response.status,
    word("code") ?? "unknown",
    word("detail") ?? `The server answered ${response.status}.`,
    word("next"),
    Number.isFinite(wait) && wait > 0 ? wait * 1000 : null,
  );
}

function json(text: string): unknown {
  if (text === "") return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
