/** What the page knows. */

import type { RunView } from "./run";
import type {
  Agent,
  Approval,
  Attachment,
  Chain,
  Conversation,
  DeliveryTrace,
  Host,
  Message,
  Mode,
  User,
} from "./wire";
import type { Wish } from "./wishes";

export interface Thread {
  /** Message ids, oldest first. */
  order: readonly string[];
  /** Where older messages go on; null when the first one is here. */
  older: string | null;
}

/** A message that this page has not yet got an answer for; kept in the browser until it has. */
export interface Outgoing {
  key: string;
  agent_id: string;
  /** Null: a new conversation, to be made with `conversation_key`. */
  conversation_id: string | null;
  text: string;
  /** Files that are on the server already. */
  attachments?: readonly Attachment[];
  /** Of a message that was not to wait for the turn that is under way. */
  mode?: Mode;
  wish?: Wish;
  written_at: string;
  state: "sending" | "waiting" | "refused";
  problem: { detail: string; next: string | null } | null;
  /** The newest event known when it was sent: its message cannot be older. */
  after: number;
}

/** A file that was chosen for a message that is still being written. */
export interface Chosen {
  /** Of its upload: the same again is the same file. */
  key: string;
  /** The draft that it belongs to. */
  thread: string;
  name: string;
  size_bytes: number;
  state: "waiting" | "uploading" | "there" | "failed";
  /** Bytes that have left. */
  sent_bytes: number;
  /** What the server made of it; null before it is there. */
  attachment: Attachment | null;
  problem: { detail: string; next: string | null } | null;
}

export type Session = "unknown" | "signed_out" | "signed_in";
export type Link = "connecting" | "live" | "lost";

export interface State {
  session: Session;
  user: User | null;
  /** Whether agents, hosts and conversations have been fetched. */
  ready: boolean;
  link: Link;
  /** The newest kept event that was applied; null before the stream has said where it is. */
  cursor: number | null;
  hosts: Readonly<Record<string, Host>>;
  agents: Readonly<Record<string, Agent>>;
  conversations: Readonly<Record<string, Conversation>>;
  messages: Readonly<Record<string, Message>>;
  threads: Readonly<Record<string, Thread>>;
  traces: Readonly<Record<string, DeliveryTrace>>;
  runs: Readonly<Record<string, RunView>>;
  /** Those that have paused, and what the stream has told of others. */
  chains: Readonly<Record<string, Chain>>;
  /** What waits for a person, and what the stream has told of since. */
  approvals: Readonly<Record<string, Approval>>;
  outgoing: readonly Outgoing[];
  chosen: readonly Chosen[];
  /** Conversations with something new since they were last in view. */
  unread: ReadonlySet<string>;
  /** First words of conversations without a title. */
  openings: Readonly<Record<string, string>>;
  /** Which event last changed a thing: what was asked for before must not undo it. */
  touched: Readonly<Record<string, number>>;
}

export const initial: State = {
  session: "unknown",
  user: null,
  ready: false,
  link: "connecting",
  cursor: null,
  hosts: {},
  agents: {},
  conversations: {},
  messages: {},
  threads: {},
  traces: {},
  runs: {},
  chains: {},
  approvals: {},
  outgoing: [],
  chosen: [],
  unread: new Set(),
  openings: {},
  touched: {},
};

/** For sorting. */
export function compare<T>(a: T, b: T): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
