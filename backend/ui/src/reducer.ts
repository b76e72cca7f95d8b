/** How the event log, and what is fetched, change the page's state. Pure: no browser, no framework.
 *
 *  Everything here is safe to repeat and safe to be late: the stream is cut and resumed, and what is
 *  fetched may be older than what the stream has said meanwhile. */

import { emptyRun, isLive, withDelta, withEvents, withRun, type RunView } from "./run";
import type {
  Agent,
  Approval,
  Chain,
  Conversation,
  Delta,
  DeliveryTrace,
  Host,
  LogEvent,
  Message,
  Run,
  RunEvent,
  User,
} from "./wire";
import {
  compare,
  initial,
  type Chosen,
  type Link,
  type Outgoing,
  type Session,
  type State,
} from "./state";

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

/** How far a request has come; of two stories the further one is the newer. */
const PROGRESS = { pending: 0, answered: 1, resolved: 2, expired: 2, cancelled: 2 };

function further(had: Approval | undefined, got: Approval): Approval {
  return had !== undefined && PROGRESS[had.state] > PROGRESS[got.state] ? had : got;
}
