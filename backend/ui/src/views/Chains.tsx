/** What agents say to each other: why a message is there, and whether they may go on. */

import type { ReactNode } from "react";

import { pausedIn } from "../selectors";
import type { State } from "../state";
import type { Chain, Message } from "../wire";
import { oneLine, price } from "../words";
import { Failure, Icon, Link } from "./parts";
import { useApp, useAttempt, useSession } from "./use";

/** Stands above the composer while a chain of this conversation waits for a person's word. */
export function PausedChains({ conversation }: { conversation: string | null }): ReactNode {
  const state = useApp();
  if (conversation === null) return null;
  return pausedIn(state, conversation).map((chain) => (
    <Paused key={`${chain.id} ${chain.pauses}`} chain={chain} here={conversation} state={state} />
  ));
}

function Paused({ chain, here, state }: { chain: Chain; here: string; state: State }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const names = chain.agent_ids.map((id) => state.agents[id]?.name ?? "a removed agent");
  const waiting = chain.waiting === 1 ? "1 message waits" : `${chain.waiting} messages wait`;
  const opening = oneLine(chain.opening, 80);
  const begun = { id: chain.id, conversation_id: chain.conversation_id, author: chain.author };
  return (
    <section className="paused" aria-label="Agents wait for your decision">
      <Icon name="warn" />
      <div className="paused-text">
        <p role="status">
          <strong>{listed(names)} paused</strong> after {chain.turns} turns with each other{used(chain)}. {waiting} for your decision.
        </p>
        <p className="muted">
          It began with{" "}
          {chain.conversation_id === here ? `“${opening}”` : <Link to={messagePath(state, begun)}>“{opening}”</Link>}
        </p>
        <Failure error={error} />
      </div>
      <div className="paused-actions">
        <button type="button" className="button primary" disabled={busy} onClick={() => void attempt(() => session.decide(chain, "continue"))}>
          Continue
        </button>
        <button type="button" className="button" disabled={busy} onClick={() => void attempt(() => session.decide(chain, "stop"))}>
          Stop them
        </button>
      </div>
    </section>
  );
}

/** ", 12,945 tokens and $0.50": as far as their programs tell. */
function used(chain: Chain): string {
  const tokens = (chain.usage?.input_tokens ?? 0) + (chain.usage?.output_tokens ?? 0);
  if (tokens === 0) return "";
  const cost = chain.usage?.cost_usd ?? 0;
  return ` and ${tokens.toLocaleString()} tokens${cost > 0 ? ` (${price(cost)})` : ""}`;
}

/** Why an agent wrote this, where it was not a message of this very conversation. */
export function Cause({ message, state }: { message: Message; state: State }): ReactNode {
  const cause = state.messages[message.caused_by ?? ""];
  if (cause === undefined || cause.conversation_id === message.conversation_id) return null;
  const whose = cause.author.id === state.user?.id ? "your message" : `what ${cause.author.name} said`;
  return (
    <p className="cause">
      because of {whose}: <Link to={messagePath(state, cause)}>“{oneLine(cause.text, 80)}”</Link>
    </p>
  );
}

/** Of a message that stands in another conversation and is worked on here: where that is. */
export function Origin({ message, here, state }: { message: Message; here: string; state: State }): ReactNode {
  if (message.conversation_id === here) return null;
  const to = message.deliveries.map((delivery) => state.agents[delivery.agent_id]?.name ?? "a removed agent");
  return (
    <p className="cause">
      to {listed(to)}, <Link to={messagePath(state, message)}>in their conversation</Link>
    </p>
  );
}

function messagePath(state: State, message: Pick<Message, "id" | "conversation_id" | "author">): string {
  const conversation = state.conversations[message.conversation_id];
  const agent = message.author.type === "agent" ? message.author.id : (conversation?.agent_ids[0] ?? "");
  return `/a/${encodeURIComponent(state.agents[agent]?.name ?? agent)}/m/${message.id}`;
}

function listed(names: string[]): string {
  const unique = [...new Set(names)];
  return unique.length < 2 ? (unique[0] ?? "Agents") : `${unique.slice(0, -1).join(", ")} and ${unique.at(-1) ?? ""}`;
}
