/** Sends what a person writes: in order, each once, however often the network fails.
 *
 *  A message comes here when its files are on the server (uploads.ts): what is kept of them is their ids, so
 *  it is whole after a reload, and trying again sends no file twice. The server keeps files for a day that
 *  no message names; a message that waits here for longer is refused, and says so.
 *
 *  A message has its key before the first attempt, and the backend answers the same key with the same
 *  message; so trying again is always safe, after a reload too. */

import { explain, post, Problem, Unreachable } from "./api";
import { threadOf, type Kept } from "./kept";
import type { Outgoing } from "./state";
import type { Store } from "./store";
import type { Attachment, Conversation, Message, Mode } from "./wire";
import { NO_WISH, wants, type Wish } from "./wishes";

const RETRY_MS = [1_000, 2_000, 4_000, 8_000, 15_000];

export class Outbox {
  #busy = false;
  #failures = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly store: Store,
    private readonly kept: Kept,
  ) {}

  /** Takes up what an earlier visit could not send. */
  open(): void {
    for (const out of this.kept.outgoing())
      this.#put({ ...out, state: out.state === "refused" ? "refused" : "waiting" });
    addEventListener("online", this.flush);
    void this.flush();
  }

  close(): void {
    clearTimeout(this.#timer);
    removeEventListener("online", this.flush);
  }

  send(
    agent_id: string,
    conversation_id: string | null,
    text: string,
    more: { mode?: Mode | undefined; attachments?: readonly Attachment[]; wish?: Wish } = {},
  ): string {
    const { mode, attachments = [], wish = NO_WISH } = more;
    const key = crypto.randomUUID();
    this.#put({
      key,
      agent_id,
      conversation_id,
      text,
      ...(mode && { mode }),
      ...(attachments.length > 0 && { attachments }),
      ...(wants(wish) && { wish }),
      written_at: new Date().toISOString(),
      state: "sending",
      problem: null,
      after: this.store.state.cursor ?? 0,
    });
    void this.flush();
    return key;
  }

  retry(out: Outgoing): void {
    this.#put({ ...out, state: "sending", problem: null });
    void this.flush();
  }

  discard(key: string): void {
    this.kept.dropOutgoing(key);
    this.store.dispatch({ type: "outgoing_gone", key });
  }

  readonly flush = async (): Promise<void> => {
    if (this.#busy) return;
    this.#busy = true;
    clearTimeout(this.#timer);
    try {
      for (let out = this.#next(); out !== undefined; out = this.#next()) {
        if (!(await this.#attempt(out))) break;
      }
    } finally {
      this.#busy = false;
    }
  };

  #next(): Outgoing | undefined {
    return this.store.state.outgoing.find((out) => out.state !== "refused");
  }

  /** Whether to go on with the next one. */
  async #attempt(out: Outgoing): Promise<boolean> {
    try {
      await this.#post(out);
      this.#failures = 0;
      return true;
    } catch (error) {
      const again = waitBefore(error, this.#failures);
      if (again === null) {
        this.#put({ ...this.#current(out), state: "refused", problem: explain(error) });
        return true;
      }
      this.#failures += 1;
      this.#put({ ...this.#current(out), state: "waiting" });
      this.#timer = setTimeout(() => void this.flush(), again);
      return false;
    }
  }

  async #post(out: Outgoing): Promise<void> {
    let conversation_id = out.conversation_id;
    if (conversation_id === null) {
      const body = { agent_ids: [out.agent_id] };
      const made = await post<Conversation>("/v1/conversations", body, `${out.key}-c`);
      conversation_id = made.id;
      this.#goesOn(out.agent_id, conversation_id);
      this.store.dispatch({ type: "conversations", conversations: [made] });
      this.store.dispatch({
        type: "thread",
        conversation_id,
        messages: [],
        older: null,
        fresh: true,
      });
      this.#put({ ...out, conversation_id });
    }
    const path = `/v1/conversations/${conversation_id}/messages`;
    const body = {
      text: out.text,
      agent_id: out.agent_id,
      ...(out.mode && { mode: out.mode }),
      ...(out.attachments && { attachments: out.attachments.map((file) => file.id) }),
      ...(out.wish?.model != null && { model: out.wish.model }),
      ...(out.wish?.mode != null && { permission_mode: out.wish.mode }),
    };
    const message = await post<Message>(path, body, out.key);
    this.store.dispatch({ type: "sent", message });
    this.discard(out.key);
  }

  /** What was chosen before the conversation was made counts for it, and for no other new one. */
  #goesOn(agent_id: string, conversation_id: string): void {
    const fresh = threadOf(agent_id, null);
    this.kept.keepWish(threadOf(agent_id, conversation_id), this.kept.wish(fresh));
    this.kept.keepWish(fresh, NO_WISH);
  }

  #current(out: Outgoing): Outgoing {
    return this.store.state.outgoing.find((o) => o.key === out.key) ?? out;
  }

  #put(out: Outgoing): void {
    this.kept.keepOutgoing(out);
    this.store.dispatch({ type: "outgoing", outgoing: out });
  }
}

/** How long to wait before trying again, in milliseconds; null if it is of no use. */
function waitBefore(error: unknown, failures: number): number | null {
  const wait = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)] ?? 15_000;
  if (error instanceof Unreachable) return wait;
  if (!(error instanceof Problem)) return null;
  // 409: an attempt with this key is still being worked on. 429 with a time: asked to come later.
  // 401: signed out meanwhile; it stays until this person is back.
  if (error.status === 409 || error.status === 401 || error.status >= 500) return wait;
  return error.status === 429 && error.retryAfterMs !== null ? Math.max(wait, error.retryAfterMs) : null;
}
