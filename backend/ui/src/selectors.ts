/** What views ask of the state. Pure. */

import type { RunView } from "./run";
import type { Agent, Approval, Attachment, Chain, Conversation, DeliveryTrace, Host, Message } from "./wire";
import { OVER } from "./wire";
import { compare, type Chosen, type Outgoing, type State } from "./state";

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
