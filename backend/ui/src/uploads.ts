/** Uploads the files of a draft, one after the other, as soon as they are chosen.
 *
 *  A message is sent when all of its files are there, and names them by id: so no message is ever on its
 *  way without its files. Until then they are the draft's: what is there survives a reload, of what is not
 *  the browser forgets the bytes, and asks before it leaves the page. */

import { explain, Problem, remove, Unreachable, upload } from "./api";
import type { Kept } from "./kept";
import { chosenIn } from "./selectors";
import type { Chosen } from "./state";
import type { Store } from "./store";
import { MAX_FILES, type Attachment } from "./wire";
import { sizeText } from "./words";

/** A backend's largest file, unless its operator says otherwise (cloudagent_protocol/attachments.py). */
const USUAL_MOST_BYTES = 25 * 1_048_576;

export class Uploads {
  /** By their keys: what is not on the server. */
  readonly #files = new Map<string, File>();
  /** Those that the network failed: they are tried again when it is back. */
  readonly #cutOff = new Set<string>();
  #now: { key: string; stop: AbortController } | null = null;

  constructor(
    private readonly store: Store,
    private readonly kept: Kept,
  ) {}

  open(): void {
    addEventListener("online", this.again);
    addEventListener("beforeunload", this.#onLeave);
  }

  close(): void {
    removeEventListener("online", this.again);
    removeEventListener("beforeunload", this.#onLeave);
    this.#files.clear();
    this.#now?.stop.abort();
  }

  /** Takes up what an earlier visit had uploaded for a draft. */
  restore(thread: string): void {
    const known = new Set(chosenIn(this.store.state, thread).map((one) => one.attachment?.id));
    for (const attachment of this.kept.draftFiles(thread))
      if (!known.has(attachment.id)) this.#put({ ...blank(thread, attachment), state: "there", attachment });
  }

  /** How many are left out, because a message takes no more. */
  add(thread: string, files: readonly File[]): number {
    const room = Math.max(0, MAX_FILES - chosenIn(this.store.state, thread).length);
    for (const file of files.slice(0, room)) {
      const chosen = blank(thread, { name: file.name, size_bytes: file.size });
      this.#files.set(chosen.key, file);
      this.#put(chosen);
    }
    void this.#work();
    return Math.max(0, files.length - room);
  }

  /** Takes one out of its draft, and off the server. */
  remove(key: string): void {
    const chosen = this.#find(key);
    if (chosen === undefined) return;
    this.#drop([chosen]);
    if (this.#now?.key === key) this.#now.stop.abort();
    if (chosen.attachment !== null) forget(chosen.attachment);
  }

  retry(key: string): void {
    const chosen = this.#find(key);
    if (chosen?.state !== "failed") return;
    this.#put({ ...chosen, state: "waiting", sent_bytes: 0, problem: null });
    void this.#work();
  }

  /** Tries those again that the network failed. */
  readonly again = (): void => {
    for (const key of [...this.#cutOff]) this.retry(key);
  };

  /** What can be sent with a draft's text; null while not all of it is there. */
  ready(thread: string): Attachment[] | null {
    const files = chosenIn(this.store.state, thread).map((one) => one.attachment);
    return files.every((file) => file !== null) ? files : null;
  }

  /** A draft is in the outbox, with these: from now on they are the message's. */
  sent(thread: string): void {
    this.#drop(chosenIn(this.store.state, thread));
  }

  async #work(): Promise<void> {
    if (this.#now !== null) return;
    for (let next = this.#next(); next !== undefined; next = this.#next()) await this.#upload(next);
  }

  #next(): Chosen | undefined {
    return this.store.state.chosen.find((one) => one.state === "waiting" && this.#files.has(one.key));
  }

  async #upload(chosen: Chosen): Promise<void> {
    const { key } = chosen;
    const file = this.#files.get(key) as File;
    const stop = new AbortController();
    this.#now = { key, stop };
    this.#cutOff.delete(key);
    this.#change(key, { state: "uploading", sent_bytes: 0 });
    try {
      const attachment = await upload(file, key, (sent_bytes) => this.#change(key, { sent_bytes }), stop.signal);
      // Taken out meanwhile: then nobody wants it.
      if (this.#find(key) === undefined) return forget(attachment);
      this.#files.delete(key);
      this.#change(key, { state: "there", name: attachment.name, size_bytes: attachment.size_bytes, attachment });
      this.#keep(chosen.thread);
    } catch (error) {
      if (error instanceof Unreachable && this.#find(key) !== undefined) this.#cutOff.add(key);
      this.#change(key, { state: "failed", problem: problemOf(error, file) });
    } finally {
      this.#now = null;
    }
  }

  #find(key: string): Chosen | undefined {
    return this.store.state.chosen.find((one) => one.key === key);
  }

  #change(key: string, change: Partial<Chosen>): void {
    const chosen = this.#find(key);
    if (chosen !== undefined) this.#put({ ...chosen, ...change });
  }

  #put(chosen: Chosen): void {
    this.store.dispatch({ type: "chosen", chosen });
  }

  #drop(gone: readonly Chosen[]): void {
    for (const { key } of gone) {
      this.#files.delete(key);
      this.#cutOff.delete(key);
    }
    this.store.dispatch({ type: "chosen_gone", keys: gone.map((one) => one.key) });
    for (const thread of new Set(gone.map((one) => one.thread))) this.#keep(thread);
  }

  #keep(thread: string): void {
    const there = chosenIn(this.store.state, thread).flatMap((one) => one.attachment ?? []);
    this.kept.keepDraftFiles(thread, there);
  }

  readonly #onLeave = (event: BeforeUnloadEvent): void => {
    if (this.#files.size > 0) event.preventDefault();
  };
}

function blank(thread: string, file: { name: string; size_bytes: number }): Chosen {
  return {
    key: crypto.randomUUID(),
    thread,
    name: file.name,
    size_bytes: file.size_bytes,
    state: "waiting",
    sent_bytes: 0,
    attachment: null,
    problem: null,
  };
}

/** Off the server. If that fails, the server does it by itself after a day. */
function forget(attachment: Attachment): void {
  remove(`/v1/attachments/${attachment.id}`).catch(() => undefined);
}

function problemOf(error: unknown, file: File): { detail: string; next: string | null } {
  const size = sizeText(file.size);
  if (error instanceof Problem && error.code === "too_large")
    return { detail: `It has ${size}: more than this server takes.`, next: "Send a smaller one, or put it where the agent can fetch it." };
  if (!(error instanceof Unreachable)) return explain(error);
  // A server hangs up on what is too large, and its answer may not get through.
  if (file.size > USUAL_MOST_BYTES)
    return { detail: `It was cut off. It has ${size}; most servers take ${sizeText(USUAL_MOST_BYTES)}.`, next: null };
  return { detail: "The connection was lost.", next: "It is tried again when it is back." };
}
