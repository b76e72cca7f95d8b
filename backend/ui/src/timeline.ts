/** A conversation as it is shown, top to bottom: messages, and the runs between them. Pure. */

import type { State } from "./reducer";
import { runsOf, waitsHere } from "./reducer";
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

/** What waits on the server stands at the end, in the order in which it will go. */
function queueLast(state: State, messages: Message[]): Message[] {
  const waiting = messages.filter((message) => waitsHere(state, message));
  if (waiting.length === 0) return messages;
  const place = (message: Message) => Math.min(...message.deliveries.map((delivery) => delivery.seq));
  waiting.sort((a, b) => place(a) - place(b));
  return [...messages.filter((message) => !waiting.includes(message)), ...waiting];
}

function merged(own: Message[], others: Message[]): Message[] {
  if (others.length === 0) return own;
  const time = (message: Message) => Date.parse(message.created_at);
  return [...own, ...others].sort((a, b) => time(a) - time(b) || (a.id < b.id ? -1 : 1));
}

/** A run stands before the first message that it sent; without one, after the message that it is about
 *  and after what was written before it began (a host's clock may be wrong, so its message comes first). */
export function timeline(state: State, conversation_id: string): Entry[] {
  const thread = state.threads[conversation_id];
  const own = (thread?.order ?? []).map((id) => state.messages[id]).filter((m) => m !== undefined);
  const shown = merged(own, guests(state, conversation_id, thread?.older == null ? null : own[0]));
  const messages = queueLast(state, shown);
  const place = new Map<string, number>();
  messages.forEach((message, at) => message.deliveries.forEach((d) => place.set(d.id, at)));
  const before = new Map<number, RunView[]>();
  for (const view of runsOf(state, conversation_id)) {
    const run = view.run;
    if (run === null) continue;
    const anchors = run.delivery_ids.map((id) => place.get(id)).filter((at) => at !== undefined);
    const sent = messages.findIndex((message) => message.run_id === run.id);
    if (anchors.length === 0 && sent < 0) continue; // its messages are further up, not fetched yet
    const written = messages.filter((m) => Date.parse(m.created_at) <= Date.parse(run.started_at)).length;
    const at = sent >= 0 ? sent : Math.max(Math.max(...anchors) + 1, written);
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
