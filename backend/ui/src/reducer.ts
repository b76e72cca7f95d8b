/** The page's whole state, and how the event log changes it. Pure: no browser, no framework.
 *
 *  Everything here is safe to repeat and safe to be late: the stream is cut and resumed, and what is
 *  fetched may be older than what the stream has said meanwhile. */

import { emptyRun, isLive, withDelta, withEvents, withRun, type RunView } from "./run";
import type {
  Agent,
  Approval,
  Attachment,
  Chain,
  Conversation,
  Delta,
  DeliveryTrace,
  Host,
  LogEvent,
  Message,
  Mode,
  Run,
  RunEvent,
  User,
} from "./wire";
import { OVER } from "./wire";
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

/** `since` is the cursor at the time when the answer was asked for. */
export type Action =
  | { type: "session"; session: Session; user: User | null }
  | { type: "link"; link: Link }
  | { type: "cursor"; cursor: number }
  | { type: "event"; event: LogEvent }
  | { type: "overview"; since: number; hosts: Host[]; agents: Agent[]; conversations: Conversation[]; chains: Chain[]; approvals: Approval[] }
  | { type: "approval"; approval: Approval }
  | { type: "hosts"; hosts: Host[] }
  | { type: "agents"; agents: Agent[] }
  | { type: "conversations"; conversations: Conversation[] }
  | { type: "chain"; chain: Chain }
  | { type: "messages"; messages: Message[] }
  | { type: "forget"; id: string }
  | { type: "thread"; conversation_id: string; messages: Message[]; older: string | null; fresh: boolean }
  | { type: "traces"; traces: DeliveryTrace[] }
  | { type: "run"; run: Run; events: RunEvent[] | null }
  | { type: "sent"; message: Message }
  | { type: "changed"; message: Message }
  | { type: "opening"; conversation_id: string; text: string }
  | { type: "read"; conversation_id: string }
  | { type: "outgoing"; outgoing: Outgoing }
  | { type: "outgoing_gone"; key: string }
  | { type: "chosen"; chosen: Chosen }
  | { type: "chosen_gone"; keys: readonly string[] }
  | { type: "resync"; cursor: number }
  | { type: "reset" };

export function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "session":
      return { ...state, session: action.session, user: action.user };
    case "link":
      return state.link === action.link ? state : { ...state, link: action.link };
    case "cursor":
      return { ...state, cursor: action.cursor };
    case "event":
      return applyEvent(state, action.event);
    case "overview":
      return {
        ...state,
        ready: true,
        hosts: fetched(state, state.hosts, action.hosts, action.since),
        agents: fetched(state, state.agents, action.agents, action.since),
        conversations: fetched(state, state.conversations, action.conversations, action.since),
        chains: fetched(state, state.chains, action.chains, action.since),
        approvals: fetched(state, state.approvals, action.approvals, action.since),
      };
    case "hosts":
      return { ...state, hosts: put(state.hosts, action.hosts) };
    case "agents":
      return { ...state, agents: put(state.agents, action.agents) };
    case "conversations":
      return { ...state, conversations: put(state.conversations, action.conversations) };
    case "chain":
      return { ...state, chains: put(state.chains, [action.chain]) };
    case "approval":
      return { ...state, approvals: put(state.approvals, [further(state.approvals[action.approval.id], action.approval)]) };
    case "messages":
      // Of other conversations: what was fetched here and there is no part of their threads.
      return { ...state, messages: { ...Object.fromEntries(action.messages.map((m) => [m.id, m])), ...state.messages } };
    case "forget":
      return {
        ...state,
        hosts: without(state.hosts, action.id),
        agents: without(state.agents, action.id),
      };
    case "thread":
      return withThread(state, action);
    case "traces":
      return action.traces.reduce(withTrace, state);
    case "run":
      return updateRun(state, action.run.id, action.run.conversation_id, action.run.agent_id, (view) =>
        withEvents(withRun(view, action.run), action.events ?? [], action.events !== null),
      );
    case "sent":
      return state.messages[action.message.id] === undefined ? withMessage(state, action.message, false) : state;
    case "changed":
      return withMessage(state, action.message, false);
    case "opening":
      return { ...state, openings: { ...state.openings, [action.conversation_id]: action.text } };
    case "read":
      return state.unread.has(action.conversation_id)
        ? { ...state, unread: new Set([...state.unread].filter((id) => id !== action.conversation_id)) }
        : state;
    case "outgoing":
      return {
        ...state,
        outgoing: withKey(state.outgoing, action.outgoing),
      };
    case "outgoing_gone":
      return { ...state, outgoing: state.outgoing.filter((o) => o.key !== action.key) };
    case "chosen":
      return { ...state, chosen: withKey(state.chosen, action.chosen) };
    case "chosen_gone":
      return { ...state, chosen: state.chosen.filter((one) => !action.keys.includes(one.key)) };
    case "resync":
      // Something was missed: what is running is to be asked for again from its first event.
      return {
        ...state,
        cursor: action.cursor,
        touched: {},
        runs: Object.fromEntries(
          Object.entries(state.runs).map(([id, view]) => [id, isLive(view) ? { ...view, complete: false } : view]),
        ),
      };
    case "reset":
      return { ...initial, outgoing: state.outgoing };
  }
}

// --- the event log ----------------------------------------------------------------------

/** Events that the log does not keep: their id says where the log is, not that we have read so far. */
const NOT_KEPT = new Set(["run.delta", "ping", "resync"]);

function applyEvent(state: State, event: LogEvent): State {
  if (NOT_KEPT.has(event.type)) {
    if (event.type === "run.delta") return applyDelta(state, event.data as unknown as Delta);
    return state.cursor === null ? { ...state, cursor: event.id } : state;
  }
  if (state.cursor !== null && event.id <= state.cursor) return state;
  return { ...applyKept(state, event), cursor: event.id };
}

function applyDelta(state: State, delta: Delta): State {
  return updateRun(state, delta.run_id, delta.conversation_id, delta.agent_id ?? null, (view) =>
    withDelta(view, delta),
  );
}

function applyKept(state: State, event: LogEvent): State {
  const data = event.data;
  switch (event.type) {
    case "message.created":
    case "message.updated":
      return withMessage(touch(state, event), data as unknown as Message, event.type === "message.created");
    case "delivery.updated":
      return withTrace(state, data as unknown as DeliveryTrace);
    case "run.started":
    case "run.finished":
    case "run.updated": {
      const run = data as unknown as Run;
      return updateRun(state, run.id, run.conversation_id, run.agent_id, (view) => {
        const next = withRun(view, run);
        // A run that starts before our eyes is followed from its first event.
        return event.type === "run.started" && !next.complete ? { ...next, complete: true } : next;
      });
    }
    case "run.event": {
      const { run_id, conversation_id, agent_id, event: inner } = data as unknown as {
        run_id: string;
        conversation_id: string;
        agent_id: string;
        event: RunEvent;
      };
      return updateRun(state, run_id, conversation_id, agent_id, (view) => withEvents(view, [inner]));
    }
    case "chain.updated": {
      const next = touch(state, event);
      return { ...next, chains: put(next.chains, [data as unknown as Chain]) };
    }
    case "approval.requested":
    case "approval.resolved": {
      const next = touch(state, event);
      const told = data as unknown as Approval;
      return { ...next, approvals: put(next.approvals, [further(next.approvals[told.id], told)]) };
    }
    case "host.updated": {
      const next = touch(state, event);
      if (data["deleted"] === true) return { ...next, hosts: without(next.hosts, String(data["id"])) };
      return { ...next, hosts: put(next.hosts, [data as unknown as Host]) };
    }
    case "agent.updated": {
      const next = touch(state, event);
      if (data["deleted"] === true) return { ...next, agents: without(next.agents, String(data["id"])) };
      return { ...next, agents: put(next.agents, [data as unknown as Agent]) };
    }
    default:
      return state;
  }
}

function touch(state: State, event: LogEvent): State {
  return { ...state, touched: { ...state.touched, [String(event.data["id"])]: event.id } };
}

// --- its parts ----------------------------------------------------------------------------

function withMessage(state: State, message: Message, isNew: boolean): State {
  const known = state.messages[message.id] !== undefined;
  const messages = { ...state.messages, [message.id]: message };
  const thread = state.threads[message.conversation_id];
  const threads =
    thread === undefined || thread.order.includes(message.id)
      ? state.threads
      : {
          ...state.threads,
          [message.conversation_id]: { ...thread, order: byTime([...thread.order, message.id], messages) },
        };
  const conversation = state.conversations[message.conversation_id];
  const conversations =
    conversation !== undefined && (conversation.last_message_at ?? "") < message.created_at
      ? put(state.conversations, [{ ...conversation, last_message_at: message.created_at }])
      : state.conversations;
  const unread =
    isNew && !known && message.author.type !== "user"
      ? new Set([...state.unread, message.conversation_id])
      : state.unread;
  return { ...state, messages, threads, conversations, unread };
}

/** A trace only ever grows, so of two the longer one is the newer. */
function withTrace(state: State, trace: DeliveryTrace): State {
  const had = state.traces[trace.id];
  if (had !== undefined && had.rungs.length > trace.rungs.length) return state;
  return { ...state, traces: { ...state.traces, [trace.id]: trace } };
}

function updateRun(
  state: State,
  id: string,
  conversation_id: string,
  agent_id: string | null,
  change: (view: RunView) => RunView,
): State {
  const had = state.runs[id] ?? emptyRun(id, conversation_id, agent_id);
  const next = change(had);
  return next === state.runs[id] ? state : { ...state, runs: { ...state.runs, [id]: next } };
}

function withThread(state: State, got: Extract<Action, { type: "thread" }>): State {
  const messages = { ...state.messages };
  // What the stream has said of a message is newer than what was asked for before.
  for (const message of got.messages)
    if (messages[message.id] === undefined || state.touched[message.id] === undefined) messages[message.id] = message;
  const had = state.threads[got.conversation_id];
  const order = had?.order ?? [];
  const meets = got.messages.length === 0 || got.messages.some((message) => order.includes(message.id));
  // A newest page that does not meet what we have leaves a hole: begin from it again.
  const kept = got.fresh && !meets ? order.filter((id) => id > (got.messages[0]?.id ?? "")) : order;
  const ids = new Set([...kept, ...got.messages.map((message) => message.id)]);
  const older = had !== undefined && got.fresh && meets && order.length > 0 ? had.older : got.older;
  return {
    ...state,
    messages,
    threads: { ...state.threads, [got.conversation_id]: { order: byTime([...ids], messages), older } },
  };
}

function byTime(ids: string[], messages: Readonly<Record<string, Message>>): string[] {
  const time = (id: string) => messages[id]?.created_at ?? "";
  return ids.sort((a, b) => compare(Date.parse(time(a)), Date.parse(time(b))) || compare(a, b));
}

function compare<T>(a: T, b: T): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function put<T extends { id: string }>(had: Readonly<Record<string, T>>, things: T[]): Record<string, T> {
  const next = { ...had };
  for (const thing of things) next[thing.id] = thing;
  return next;
}

/** In the place of the one with its key; else at the end. */
function withKey<T extends { key: string }>(had: readonly T[], one: T): readonly T[] {
  return had.some((other) => other.key === one.key) ? had.map((other) => (other.key === one.key ? one : other)) : [...had, one];
}

function without<T>(had: Readonly<Record<string, T>>, id: string): Readonly<Record<string, T>> {
  if (had[id] === undefined) return had;
  const { [id]: _, ...rest } = had;
  return rest;
}

/** A fetched list replaces what we have, but for what the stream has changed since it was asked for. */
function fetched<T extends { id: string }>(
  state: State,
  had: Readonly<Record<string, T>>,
  list: T[],
  since: number,
): Record<string, T> {
  const newer = (id: string) => (state.touched[id] ?? -1) > since;
  const next: Record<string, T> = {};
  for (const thing of list) if (!newer(thing.id)) next[thing.id] = thing;
  for (const thing of Object.values(had)) if (newer(thing.id)) next[thing.id] = thing;
  return next;
}

// --- questions --------------------------------------------------------------------------

export function hostOf(state: State, agent: Agent | undefined): Host | undefined {
  return agent === undefined ? undefined : state.hosts[agent.host_machine_id];
}

export function agentsByName(state: State): Agent[] {
  return Object.values(state.agents).sort((a, b) => a.name.localeCompare(b.name) || compare(a.id, b.id));
}

/** An agent's conversations, the latest first. */
export function conversationsOf(state: State, agent_id: string): Conversation[] {
  const at = (c: Conversation) => Date.parse(c.last_message_at ?? c.created_at);
  return Object.values(state.conversations)
    .filter((c) => c.agent_ids.includes(agent_id))
    .sort((a, b) => at(b) - at(a) || compare(b.id, a.id));
}

/** Whether a person's message has never left the server: then it can be changed, and has a place in a line. */
export function waitsHere(state: State, message: Message): boolean {
  return (
    message.author.type === "user" &&
    message.deliveries.length > 0 &&
    message.deliveries.every((delivery) => {
      const trace = state.traces[delivery.id];
      return trace?.state === "queued" && delivery.retry_of == null && !trace.rungs.some((rung) => rung.rung === "sent");
    })
  );
}

/** Whether nothing of a person's message has begun yet, be it here or on its machine. */
export function waitsForTurn(state: State, message: Message): boolean {
  return (
    message.author.type === "user" &&
    message.deliveries.length > 0 &&
    message.deliveries.every((delivery) => {
      const trace = state.traces[delivery.id];
      return trace !== undefined && !OVER.has(trace.state) && delivery.retry_of == null && !trace.rungs.some((rung) => rung.rung === "started");
    })
  );
}

/** Whether a message lies on its machine and has not begun: it can be taken back, and written anew. What goes
 *  with files cannot: those went with this message. */
export function canBeWrittenAnew(state: State, message: Message): boolean {
  const asked = message.deliveries.some((delivery) => state.traces[delivery.id]?.interrupted_by != null);
  return message.text !== "" && (message.attachments ?? []).length === 0 && !asked && waitsForTurn(state, message);
}

/** Deliveries of a conversation that are with its machine, or nearly, while nothing runs there. */
export function onTheWay(state: State, conversation_id: string): DeliveryTrace[] {
  const order = state.threads[conversation_id]?.order ?? [];
  return Object.values(state.traces).filter(
    (trace) =>
      trace.conversation_id === conversation_id &&
      !OVER.has(trace.state) &&
      trace.state !== "queued" &&
      order.includes(trace.message_id),
  );
}

/** Chains that wait for a person's decision, and touch a conversation. */
export function pausedIn(state: State, conversation_id: string): Chain[] {
  return Object.values(state.chains).filter(
    (chain) => chain.state === "paused" && chain.conversation_ids.includes(conversation_id),
  );
}

/** How far a request has come; of two stories the further one is the newer. */
const PROGRESS = { pending: 0, answered: 1, resolved: 2, expired: 2, cancelled: 2 };

function further(had: Approval | undefined, got: Approval): Approval {
  return had !== undefined && PROGRESS[had.state] > PROGRESS[got.state] ? had : got;
}

/** What waits for a person, who has waited longest first. */
export function pending(state: State): Approval[] {
  return Object.values(state.approvals)
    .filter((approval) => approval.state === "pending")
    .sort((a, b) => compare(a.id, b.id));
}

/** Those, and what is answered and has not reached its machine. */
export function unsettled(state: State): Approval[] {
  const answered = Object.values(state.approvals).filter((approval) => approval.state === "answered");
  return [...pending(state), ...answered];
}

/** What a conversation shows of requests: those that wait, are on their way to the machine, or came too late. */
export function approvalsIn(state: State, conversation_id: string): Approval[] {
  const shown = (one: Approval) =>
    one.state === "pending" || one.state === "answered" || (one.state === "cancelled" && one.decided_by != null);
  return Object.values(state.approvals)
    .filter((one) => one.conversation_id === conversation_id && shown(one))
    .sort((a, b) => compare(a.id, b.id));
}

/** Its agent by the name or id of an address: an id wins, then the exact name. */
export function agentBySlug(state: State, slug: string): Agent | undefined {
  return (
    state.agents[slug] ??
    Object.values(state.agents).find((agent) => agent.name === slug) ??
    Object.values(state.agents).find((agent) => agent.name.toLowerCase() === slug.toLowerCase())
  );
}

/** Whether somebody has asked to stop what is alive of a run, and then to end it at once. */
export function stopOf(state: State, run_id: string): "none" | "asked" | "ended" {
  const alive = Object.values(state.traces).filter((trace) => trace.run_id === run_id && !OVER.has(trace.state));
  if (alive.some((trace) => trace.ended_by != null)) return "ended";
  return alive.some((trace) => trace.interrupted_by != null) ? "asked" : "none";
}

export function runsOf(state: State, conversation_id: string): RunView[] {
  return Object.values(state.runs).filter((view) => view.conversation_id === conversation_id);
}

/** Messages of this page that are still to be shown as being sent: not those whose stored message has
 *  come over the stream before the answer to the request has. */
export function outgoingIn(state: State, conversation_id: string): Outgoing[] {
  const arrived = (state.threads[conversation_id]?.order ?? [])
    .map((id) => state.messages[id])
    .filter((m): m is Message => m?.author.type === "user");
  const taken = new Set<string>();
  return state.outgoing.filter((out) => {
    if (out.conversation_id !== conversation_id) return false;
    const match = arrived.find(
      (m) => m.text === out.text && sameFiles(m, out) && (state.touched[m.id] ?? -1) > out.after && !taken.has(m.id),
    );
    if (match === undefined || out.state === "refused") return true;
    taken.add(match.id);
    return false;
  });
}

function sameFiles(message: Message, out: Outgoing): boolean {
  const ids = (files: readonly Attachment[] | undefined) => (files ?? []).map((file) => file.id).join(" ");
  return ids(message.attachments) === ids(out.attachments);
}

/** The files of a draft, in the order in which they were chosen. */
export function chosenIn(state: State, thread: string): Chosen[] {
  return state.chosen.filter((one) => one.thread === thread);
}
