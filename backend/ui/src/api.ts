/** Calls to the backend. The page's cookie says who asks; the header says that the page asks. */

import type { Attachment } from "./wire";

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

/** A folder, or a file that was changed or taken away since it was chosen. */
export class Unreadable extends Error {
  constructor() {
    super("The browser cannot read it: it is a folder, or it was changed meanwhile.");
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
  throw problemOf(response.status, response.headers.get("retry-after"), value);
}

/** How long an upload may be without a byte, in milliseconds. */
const SILENCE_MS = 60_000;

/** Uploads a file; the same key again is the same file. Told as it goes: the bytes that have left.
 *  Raises Problem, Unreachable; Unreadable if the browser cannot read it. */
export async function upload(file: File, key: string, onSent: (bytes: number) => void, signal: AbortSignal): Promise<Attachment> {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Unreadable();
  }
  return new Promise((done, failed) => {
    // XMLHttpRequest, because fetch does not tell how much has left.
    const request = new XMLHttpRequest();
    let timer = setTimeout(() => request.abort(), SILENCE_MS);
    const alive = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => request.abort(), SILENCE_MS);
    };
    const lost = (): void => failed(new Unreachable());
    request.upload.onprogress = (event) => {
      alive();
      onSent(event.loaded);
    };
    request.onload = () => {
      const value = json(request.responseText);
      if (request.status >= 200 && request.status < 300) done(value as Attachment);
      else failed(problemOf(request.status, request.getResponseHeader("retry-after"), value));
    };
    request.onerror = lost;
    request.onabort = lost;
    request.onloadend = () => clearTimeout(timer);
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", `/v1/attachments?name=${encodeURIComponent(file.name.slice(-255))}`);
    for (const [name, said] of Object.entries({
      accept: "application/json",
      "content-type": "application/octet-stream",
      "idempotency-key": key,
      "x-cloudagent": "1",
    }))
      request.setRequestHeader(name, said);
    request.send(file);
  });
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
  if (error instanceof Unreadable) return { detail: error.message, next: "Choose it again." };
  return { detail: "Something went wrong on this page.", next: "Reload it." };
}

function problemOf(status: number, retryAfter: string | null, value: unknown): Problem {
  const problem = (typeof value === "object" && value !== null ? value : {}) as Record<string, unknown>;
  const word = (name: string): string | null =>
    typeof problem[name] === "string" ? problem[name] : null;
  const wait = Number(retryAfter);
  return new Problem(
    status,
    word("code") ?? "unknown",
    word("detail") ?? `The server answered ${status}.`,
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
