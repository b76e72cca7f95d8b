/** Who can be written to, and where they are. */

import { useEffect, useRef, type ReactNode } from "react";

import { agentBySlug, agentsByName, conversationsOf, hostOf, pausedIn, pending } from "../selectors";
import type { State } from "../state";
import { chatPath, type Route } from "../router";
import type { Agent } from "../wire";
import { agentWords, since } from "../words";
import { Logo } from "./Logo";
import { Avatar, Dot, Icon, Link } from "./parts";
import { useApp, useSession } from "./use";

interface Props {
  route: Route;
  hidden: boolean;
  /** Null where the list always stands beside the view. */
  onClose: (() => void) | null;
  onSwitch: () => void;
}

export function Sidebar({ route, hidden, onClose, onSwitch }: Props): ReactNode {
  const session = useSession();
  const state = useApp();
  const nav = useRef<HTMLElement>(null);
  const opened = onClose !== null && !hidden;
  useEffect(() => {
    if (opened) nav.current?.querySelector<HTMLElement>("button, a")?.focus();
  }, [opened]);
  const chosen = route.view === "chat" || route.view === "settings" ? agentBySlug(state, route.agent) : undefined;
  const done = onClose ?? undefined;
  const agents = agentsByName(state);
  const online = Object.values(state.hosts).filter((host) => host.state === "online").length;
  const hosts = Object.keys(state.hosts).length;
  const waiting = pending(state).length;
  return (
    <nav ref={nav} className="sidebar" aria-label="Agents" inert={hidden}>
      <div className="brand">
        <Logo />
        <span className="brand-name">cloudagent</span>
        {onClose !== null && (
          <button type="button" className="button icon-only" aria-label="Close the list of agents" onClick={onClose}>
            <Icon name="close" />
          </button>
        )}
      </div>
      {agents.length > 0 && (
        <button type="button" className="search" onClick={onSwitch}>
          <Icon name="search" />
          <span>Find an agent</span>
          <kbd aria-hidden="true">Ctrl K</kbd>
        </button>
      )}
      <div className="sidebar-scroll" tabIndex={-1}>
        <div className="section">
          <h2>Agents</h2>
          <Link to="/agents/new" className="button icon-only quiet" label="Add an agent" {...(done && { onGo: done })}>
            <Icon name="plus" />
          </Link>
        </div>
        {agents.length === 0 && state.ready && <p className="sidebar-empty">None yet. Your first one is two steps away.</p>}
        <ul className="agents">
          {agents.map((agent) => (
            <li key={agent.id}>
              <AgentRow agent={agent} state={state} chosen={agent === chosen} {...(done && { onGo: done })} />
              {agent === chosen && route.view === "chat" && (
                <Conversations agent={agent} route={route} {...(done && { onGo: done })} />
              )}
            </li>
          ))}
        </ul>
      </div>
      <div className="sidebar-foot">
        {(waiting > 0 || route.view === "approvals") && (
          <Link to="/approvals" className="foot-link" current={route.view === "approvals"} {...(done && { onGo: done })}>
            <Icon name="warn" />
            <span>Waiting for you</span>
            {waiting > 0 && <span className="badge">{waiting}</span>}
          </Link>
        )}
        <Link
          to="/hosts"
          className="foot-link"
          current={route.view === "hosts" || route.view === "new_host"}
          {...(done && { onGo: done })}
        >
          <Icon name="host" />
          <span>Host machines</span>
          {hosts > 0 && (
            <span className="count">
              {online} of {hosts} online
            </span>
          )}
        </Link>
        <div className="person">
          <span className="person-name" title={state.user?.email}>
            {state.user?.name || state.user?.email}
          </span>
          <button type="button" className="button icon-only quiet" aria-label="Sign out" onClick={() => void session.signOut()}>
            <Icon name="out" />
          </button>
        </div>
      </div>
    </nav>
  );
}

function AgentRow(props: { agent: Agent; state: State; chosen: boolean; onGo?: () => void }): ReactNode {
  const { agent, state } = props;
  const words = agentWords(agent, hostOf(state, agent));
  const own = conversationsOf(state, agent.id);
  const news = own.filter((c) => state.unread.has(c.id)).length;
  const asks = pending(state).some((approval) => approval.agent_id === agent.id);
  const paused = asks || own.some((c) => pausedIn(state, c.id).length > 0);
  return (
    <Link
      to={chatPath(agent.name)}
      className={`agent-row${props.chosen ? " chosen" : ""}`}
      current={props.chosen}
      {...(props.onGo && { onGo: props.onGo })}
    >
      <span className="agent-face">
        <Avatar name={agent.name} id={agent.id} />
        <Dot tone={words.tone} />
      </span>
      <span className="agent-text">
        <span className="agent-name">{agent.name}</span>
        <span className="agent-status">{words.text}</span>
      </span>
      {paused && (
        <span className="mark" title="Waits for your decision">
          <Icon name="pause" />
          <span className="sr-only">waits for your decision</span>
        </span>
      )}
      {news > 0 && !props.chosen && (
        <span className="badge">
          {news}
          <span className="sr-only"> new</span>
        </span>
      )}
    </Link>
  );
}

const SHOWN = 12;

function Conversations(props: {
  agent: Agent;
  route: Extract<Route, { view: "chat" }>;
  onGo?: () => void;
}): ReactNode {
  const session = useSession();
  const state = useApp();
  const { agent, route } = props;
  const list = conversationsOf(state, agent.id).slice(0, SHOWN);
  const current = route.fresh ? null : (route.conversation ?? list.find((c) => c.kind !== "agents")?.id ?? null);
  const unnamed = list.filter((c) => c.title === null && state.openings[c.id] === undefined).map((c) => c.id).join(" ");
  useEffect(() => {
    for (const id of unnamed.split(" ").filter(Boolean)) void session.opening(id);
  }, [session, unnamed]);
  if (list.length === 0) return null;
  return (
    <ul className="conversations" aria-label={`Conversations with ${agent.name}`}>
      {list.map((conversation) => (
        <li key={conversation.id}>
          <Link
            to={chatPath(agent.name, conversation.id)}
            className={`conversation-row${conversation.id === current ? " chosen" : ""}`}
            current={conversation.id === current}
            {...(props.onGo && { onGo: props.onGo })}
          >
            <span className="conversation-title">
              {conversation.title ??
                (conversation.kind === "agents"
                  ? `With ${conversation.agent_ids
                      .filter((id) => id !== agent.id)
                      .map((id) => state.agents[id]?.name ?? "a removed agent")
                      .join(", ")}`
                  : state.openings[conversation.id] || "New conversation")}
            </span>
            {pausedIn(state, conversation.id).length > 0 ? (
              <span className="badge warn">paused</span>
            ) : state.unread.has(conversation.id) ? (
              <span className="badge">
                new
              </span>
            ) : (
              <time dateTime={conversation.last_message_at ?? conversation.created_at}>
                {since(conversation.last_message_at ?? conversation.created_at)}
              </time>
            )}
          </Link>
        </li>
      ))}
    </ul>
  );
}
