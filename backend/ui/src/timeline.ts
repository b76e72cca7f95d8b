/** A conversation as it is shown, top to bottom: messages, and the runs between them. Pure. */

import type { State } from "./state";
import { runsOf, waitsForTurn } from "./selectors";
import type { RunView } from "./run";
import type { Message } from "./wire";

export type Entry =
  | { kind: "message"; key: string; at: string; message: Message }
  | { kind: "run"; key: string; at: string; view: RunView };

/** Messages of other conversations that are worked on in this one: what an agent was answered that had
 *  asked another one (docs/decisions/0012). Those before the first message that is here wait for theirs. */
function guests(state: State, conversation_id: string, first: Message | null | undefined): Message[] {
  const found = new Map<string, Message>();
  for (const trace of Object.values(state.traces)) {
    const message = trace.conversation_id === conversation_id ? state.messages[trace.message_id] : undefined;
    if (message === undefined || message.conversation_id === conversation_id) continue;
    if (first == null || Date.parse(message.created_at) >= Date.parse(first.created_at)) found.set(message.id, message);
  }
  return [...found.values()];
}

/** A person's messages stand where they have their turn: what waits at the end, in the order in which it will go; what
 *  has waited behind what was answered before it began. */
function inTurn(state: State, messages: Message[]): Message[] {
  const waiting = messages.filter((message) => waitsForTurn(state, message));
  const rest = waiting.length === 0 ? messages : messages.filter((message) => !waiting.includes(message));
  waiting.sort((a, b) => place(a) - place(b));
  return [...behindAnswers(state, rest), ...waiting];
}

const place = (message: Message): number => Math.min(...message.deliveries.map((delivery) => delivery.seq));
const time = (message: Message): number => Date.parse(message.created_at);

/** When work on a message began is told by its machine's clock, and compared with nothing but that. */
function behindAnswers(state: State, messages: Message[]): Message[] {
  const begun: { message: Message; at: number }[] = [];
  const answered = new Map<string, number>();
  for (const message of messages) {
    const at = begunAt(state, message);
    if (at !== null) begun.push({ message, at });
    const cause = message.author.type === "agent" ? message.caused_by : null;
    if (cause != null) answered.set(cause, Math.max(answered.get(cause) ?? 0, time(message)));
  }
  begun.sort((a, b) => a.at - b.at);
  const later = new Map<Message, number>();
  let last = 0;
  for (const { message } of begun) {
    if (last > time(message)) later.set(message, last);
    last = Math.max(last, answered.get(message.id) ?? 0);
  }
  if (later.size === 0) return messages;
  const key = (message: Message): number => later.get(message) ?? time(message);
  // Of the same time: first what was said, then what waited for it.
  return [...messages].sort((a, b) => key(a) - key(b) || Number(later.has(a)) - Number(later.has(b)));
}

function begunAt(state: State, message: Message): number | null {
  if (message.author.type !== "user") return null;
  const started = message.deliveries.flatMap((d) => state.traces[d.id]?.rungs.find((rung) => rung.rung === "started") ?? []);
  return started.length === 0 ? null : Math.min(...started.map((rung) => Date.parse(rung.at)));
}

function merged(own: Message[], others: Message[]): Message[] {
  if (others.length === 0) return own;
  return [...own, ...others].sort((a, b) => time(a) - time(b) || (a.id < b.id ? -1 : 1));
}

function behindSaid(messages: Message[], from: number, began_at: string): number {
  let at = from;
  for (let next = messages[at]; next !== undefined; next = messages[at]) {
    if (next.author.type === "user" || time(next) > Date.parse(began_at)) break;
    at += 1;
  }
  return at;
}

/** A run stands before the first message that it sent; without one, after the message that it is about and after
 *  what others than people had said before it began (a host's clock may be wrong, so its message comes first). */
export function timeline(state: State, conversation_id: string): Entry[] {
  const thread = state.threads[conversation_id];
  const own = (thread?.order ?? []).map((id) => state.messages[id]).filter((m) => m !== undefined);
  const shown = merged(own, guests(state, conversation_id, thread?.older == null ? null : own[0]));
  const messages = inTurn(state, shown);
  const place = new Map<string, number>();
  messages.forEach((message, at) => message.deliveries.forEach((d) => place.set(d.id, at)));
  const before = new Map<number, RunView[]>();
  for (const view of runsOf(state, conversation_id)) {
    const run = view.run;
    if (run === null) continue;
    const anchors = run.delivery_ids.map((id) => place.get(id)).filter((at) => at !== undefined);
    const sent = messages.findIndex((message) => message.run_id === run.id);
    if (anchors.length === 0 && sent < 0) continue; // its messages are further up, not fetched yet
    const at = sent >= 0 ? sent : behindSaid(messages, Math.max(...anchors) + 1, run.started_at);
    before.set(at, [...(before.get(at) ?? []), view]);
  }
  const entries: Entry[] = [];
  for (let at = 0; at <= messages.length; at += 1) {
    for (const view of (before.get(at) ?? []).sort((a, b) => (a.id < b.id ? -1 : 1)))
      entries.push({ kind: "run", key: view.id, at: view.run?.started_at ?? "", view });
    const message = messages[at];
    if (message !== undefined) entries.push({ kind: "message", key: message.id, at: message.created_at, message });
  }
  return entries;
}
