/** What the browser keeps for a person between visits: drafts, and messages not yet sent. */

import type { Outgoing } from "./state";
import type { Attachment } from "./wire";
import { NO_WISH, wants, type Wish } from "./wishes";

const PREFIX = "cloudagent";

/** Under which a conversation's draft and wishes are kept; null: one that is still to be made. */
export const threadOf = (agent_id: string, conversation_id: string | null): string => `${agent_id}.${conversation_id ?? "new"}`;

export class Kept {
  constructor(private readonly user_id: string) {}

  draft(thread: string): string {
    return read(this.#name("draft", thread)) ?? "";
  }

  keepDraft(thread: string, text: string): void {
    write(this.#name("draft", thread), text === "" ? null : text);
  }

  /** Files of a draft that are on the server. */
  draftFiles(thread: string): Attachment[] {
    try {
      return JSON.parse(read(this.#name("files", thread)) ?? "[]") as Attachment[];
    } catch {
      return [];
    }
  }

  keepDraftFiles(thread: string, files: readonly Attachment[]): void {
    write(this.#name("files", thread), files.length === 0 ? null : JSON.stringify(files));
  }

  /** Which model and mode a conversation's messages get from here. */
  wish(thread: string): Wish {
    try {
      const kept = JSON.parse(read(this.#name("wish", thread)) ?? "{}") as Partial<Wish>;
      return { ...NO_WISH, ...kept };
    } catch {
      return NO_WISH;
    }
  }

  keepWish(thread: string, wish: Wish): void {
    write(this.#name("wish", thread), wants(wish) ? JSON.stringify(wish) : null);
  }

  /** Each message has its own entry: two tabs must not write over each other's. */
  keepOutgoing(out: Outgoing): void {
    write(this.#name("out", out.key), JSON.stringify(out));
  }

  dropOutgoing(key: string): void {
    write(this.#name("out", key), null);
  }

  outgoing(): Outgoing[] {
    const prefix = this.#name("out", "");
    const found: Outgoing[] = [];
    for (const name of names()) {
      if (!name.startsWith(prefix)) continue;
      try {
        found.push(JSON.parse(read(name) ?? "") as Outgoing);
      } catch {
        write(name, null);
      }
    }
    return found.sort((a, b) => a.written_at.localeCompare(b.written_at));
  }

  #name(kind: string, thing: string): string {
    return `${PREFIX}.${kind}.${this.user_id}.${thing}`;
  }
}

// Storage can be full, or switched off: the page works without.

function read(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function write(name: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    return;
  }
}

function names(): string[] {
  try {
    return Object.keys(localStorage);
  } catch {
    return [];
  }
}
