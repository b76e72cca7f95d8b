/** A conversation with an agent. */

import { Fragment, useCallback, useEffect, useState, type ReactNode } from "react";

import { get } from "../api";
import { threadOf } from "../kept";
import {
  conversationsOf,
  hostOf,
  onTheWay,
  outgoingIn,
  pending,
  runsOf,
  stopOf,
  waitsForTurn,
  waitsHere,
} from "../selectors";
import type { State } from "../state";
import { chatPath, go, type Route } from "../router";
import { isFailure, isLive, type RunView } from "../run";
import { timeline, type Entry } from "../timeline";
import type { Agent, Message } from "../wire";
import { STEERABLE } from "../wire";
import { wishWords } from "../wishes";
import { agentWords, busyWords, dayOf, driverName, duration, hostWords, obstacle } from "../words";
import { Activity } from "./Activity";
import { Asked } from "./Approvals";
import { PausedAgent } from "./Budget";
import { PausedChains } from "./Chains";
import { Changes } from "./Changes";
import { Composer, focusComposer, type Given, type With } from "./Composer";
import { Log } from "./Log";
import { AgentMessage, OwnMessage, Pending } from "./Messages";
import { Avatar, Dot, Failure, Icon, Link, Spinner } from "./parts";
import { StopButton } from "./StopButton";
import { TopBar } from "./TopBar";
import { TakeBackContext, useApp, useAttempt, useNow, useSession, useTitle } from "./use";

type ChatRoute = Extract<Route, { view: "chat" }>;

export function Chat(props: { agent: Agent; route: ChatRoute; onMenu: (() => void) | null }): ReactNode {
  const { agent, route } = props;
  const session = useSession();
  const state = useApp();
  const host = hostOf(state, agent);
  const words = agentWords(agent, host);
  const id = useConversation(agent, route, state);
  // Keys of messages that this view has sent into a conversation that is still to be made.
  const [begun, setBegun] = useState<string | null>(null);
  const [sent, setSent] = useState(0);
  const [given, setGiven] = useState<Given | null>(null);
  const takeBack = useCallback((text: string) => setGiven({ text }), []);

  const made = state.outgoing.find((out) => out.key === begun);
  const conversation = id ?? made?.conversation_id ?? null;
  useEffect(() => session.openConversation(conversation), [session, conversation]);
  useEffect(() => {
    if (conversation !== null && state.unread.has(conversation) && document.visibilityState === "visible")
      session.store.dispatch({ type: "read", conversation_id: conversation });
  });
  useEffect(() => {
    if (route.fresh && conversation !== null) go(chatPath(agent.name, conversation), "replace");
  }, [route.fresh, conversation, agent.name]);

  const working = conversation === null ? [] : runsOf(state, conversation).filter(isLive);
  const news = state.unread.size > 0 ? `(${state.unread.size}) ` : "";
  useTitle(`${news}${agent.name}${working.length > 0 ? " · working" : ""} · cloudagent`);

  const send = (text: string, more: With): void => {
    const key = session.outbox.send(agent.id, conversation, text, more);
    if (conversation === null) setBegun(key);
    setSent((count) => count + 1);
  };
  const outgoing =
    conversation === null
      ? state.outgoing.filter((out) => out.conversation_id === null && out.agent_id === agent.id)
      : outgoingIn(state, conversation);
  const offline = host !== undefined && host.state === "offline";
  const hindered = obstacle(agent, host);
  const other = partner(state, agent, conversation);
  return (
    <>
      <TopBar
        onMenu={props.onMenu}
        actions={
          <>
            <Link to={`/a/${encodeURIComponent(agent.name)}/settings`} className="button icon-only quiet" label={`Settings of ${agent.name}`}>
              <Icon name="gear" />
            </Link>
            <Link to={`/a/${encodeURIComponent(agent.name)}/new`} className="button" label="New conversation">
              <Icon name="plus" />
              <span className="wide-only">New</span>
            </Link>
          </>
        }
      >
        <Avatar name={agent.name} id={agent.id} />
        <div className="title-text">
          <h1>{agent.name}</h1>
          <p>
            <Dot tone={words.tone} />
            {words.text}
            <span className="wide-only">
              {" "}
              · {other === null ? driverName(agent.driver) : `with ${other}`}
              {other === null && agent.cwd !== null && ` · ${agent.cwd}`}
            </span>
          </p>
        </div>
      </TopBar>
      {state.link === "lost" && <LostLink />}
      <TakeBackContext value={takeBack}>
        <Thread
          key={conversation ?? "new"}
          agent={agent}
          conversation={conversation}
          target={route.message}
          sent={sent}
          outgoing={outgoing}
          state={state}
        />
      </TakeBackContext>
      <div className="dock">
        <Asked conversation={conversation} />
        <PausedAgent agent={agent} />
        <PausedChains conversation={conversation} />
        <Busy conversation={conversation} agent={agent} state={state} />
        <Composer
          key={`${agent.id}/${conversation ?? "new"}`}
          thread={threadOf(agent.id, conversation)}
          agent={agent}
          given={given}
          hint={
            offline
              ? `${hostWords(host).text}. What you write waits on the server and goes out when it ${host.last_seen_at === null ? "does" : "is back"}.`
              : state.link === "lost"
                ? "No connection. What you write is kept here and goes out when it is back."
                : hindered !== null
                  ? `${words.text}: ${hindered.problem ?? ""}`
                  : other !== null
                    ? `What ${agent.name} and ${other} say to each other. What you write here goes to ${agent.name}.`
                    : null
          }
          urgent={working.length === 0 ? null : STEERABLE.has(agent.driver) ? "steer" : "interrupt"}
          onSend={send}
          onBegin={() => conversation !== null && session.expect(conversation)}
        />
      </div>
    </>
  );
}

/** With whom an agent talks in a conversation of agents. */
function partner(state: State, agent: Agent, id: string | null): string | null {
  const conversation = state.conversations[id ?? ""];
  if (conversation?.kind !== "agents") return null;
  const other = conversation.agent_ids.find((one) => one !== agent.id) ?? "";
  return state.agents[other]?.name ?? "a removed agent";
}

/** The conversation of the address; of an agent alone, the latest. */
function useConversation(agent: Agent, route: ChatRoute, state: State): string | null {
  const [found, setFound] = useState<string | null>(null);
  const wanted = route.message;
  useEffect(() => {
    if (wanted === null) return;
    get<Message>(`/v1/messages/${encodeURIComponent(wanted)}`).then(
      (message) => setFound(message.conversation_id),
      () => go(chatPath(agent.name), "replace"),
    );
  }, [wanted, agent.name]);
  if (wanted !== null) return state.messages[wanted]?.conversation_id ?? found;
  if (route.fresh) return null;
  // What agents say to each other is to be looked for: it is nobody's latest conversation with an agent.
  const own = conversationsOf(state, agent.id).find((conversation) => conversation.kind !== "agents");
  return route.conversation ?? own?.id ?? null;
}

function Thread(props: {
  agent: Agent;
  conversation: string | null;
  target: string | null;
  sent: number;
  outgoing: State["outgoing"];
  state: State;
}): ReactNode {
  const session = useSession();
  const { agent, conversation, state, outgoing } = props;
  const thread = conversation === null ? undefined : state.threads[conversation];
  if (conversation !== null && thread === undefined)
    return (
      <div className="center">
        <Spinner label="Loading the conversation" />
      </div>
    );
  const entries = conversation === null ? [] : timeline(state, conversation);
  if (entries.length === 0 && outgoing.length === 0) return <Greeting agent={agent} state={state} />;
  const older = thread?.older != null && conversation !== null ? () => session.older(conversation) : null;
  const last = entries.at(-1);
  return (
    <Log
      version={`${entries.length} ${last?.kind === "run" ? `${last.view.events.length} ${length(last)}` : ""} ${outgoing.length}`}
      sent={props.sent}
      label={`Conversation with ${agent.name}`}
      older={older}
      target={thread === undefined ? null : props.target}
    >
      {entries.map((entry, at) => (
        <Fragment key={entry.key}>
          <DayLine entry={entry} before={entries[at - 1]} />
          <Line entry={entry} before={entries[at - 1]} state={state} entries={entries} here={conversation ?? ""} />
        </Fragment>
      ))}
      {outgoing.map((out) => (
        <Pending key={out.key} out={out} lost={state.link === "lost"} />
      ))}
      <Announcer entries={entries} agent={agent} state={state} />
    </Log>
  );
}

function length(entry: Extract<Entry, { kind: "run" }>): number {
  let sum = 0;
  for (const partial of entry.view.partials.values()) sum += partial.length;
  return sum;
}

function DayLine({ entry, before }: { entry: Entry; before: Entry | undefined }): ReactNode {
  const day = dayOf(entry.at);
  if (before !== undefined && dayOf(before.at) === day) return null;
  return (
    <p className="day">
      <span>{day}</span>
    </p>
  );
}

function Line(props: {
  entry: Entry;
  before: Entry | undefined;
  entries: Entry[];
  state: State;
  here: string;
}): ReactNode {
  const { entry, before, state, here } = props;
  const head = before === undefined || authorOf(before) !== authorOf(entry);
  if (entry.kind === "run") {
    const name = state.agents[entry.view.agent_id ?? ""]?.name ?? "agent";
    const said = props.entries.flatMap((other) =>
      other.kind === "message" && other.message.run_id === entry.view.id ? [other.message.text.trim()] : [],
    );
    return (
      <>
        <Activity view={entry.view} name={name} head={head} said={said} asked={askedOf(entry.view, state)} />
        {said.length === 0 && <Changes run={entry.view.run} />}
      </>
    );
  }
  if (entry.message.author.type === "user") {
    const above = before?.kind === "message" && waitsHere(state, before.message) ? before.message.id : null;
    return <OwnMessage message={entry.message} state={state} above={above} />;
  }
  return (
    <>
      <AgentMessage message={entry.message} head={head} here={here} state={state} />
      {isLastOfRun(entry.message, props.entries) && <Changes run={state.runs[entry.message.run_id ?? ""]?.run} />}
    </>
  );
}

/** What the message that a run works on wanted for its turn. */
function askedOf(view: RunView, state: State): string | null {
  const message = state.messages[state.traces[view.run?.delivery_ids[0] ?? ""]?.message_id ?? ""];
  return message === undefined ? null : wishWords(message);
}

function isLastOfRun(message: Message, entries: Entry[]): boolean {
  const last = entries.findLast((other) => other.kind === "message" && other.message.run_id === message.run_id);
  return message.run_id != null && last?.key === message.id;
}

function authorOf(entry: Entry): string {
  return entry.kind === "run" ? (entry.view.agent_id ?? "") : entry.message.author.id;
}

/** Says to a screen reader, once each, what happens: not every token. */
function Announcer({ entries, agent, state }: { entries: Entry[]; agent: Agent; state: State }): ReactNode {
  const last = entries.findLast((entry) => entry.kind === "run" || !waitsForTurn(state, entry.message));
  let text = "";
  if (last?.kind === "run") {
    if (isLive(last.view)) text = `${agent.name} is working`;
    else text = isFailure(last.view.run) ? `${agent.name} failed` : `${agent.name} is done`;
  } else if (last?.message.author.type === "agent") {
    text = `${agent.name} replied`;
  }
  return (
    <p className="sr-only" role="status">
      {text}
    </p>
  );
}

/** Stands above the composer while something runs, so that Stop is always in view. */
function Busy({ conversation, agent, state }: { conversation: string | null; agent: Agent; state: State }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const [asked, setAsked] = useState<string | null>(null);
  const live = conversation === null ? undefined : runsOf(state, conversation).find(isLive);
  const coming = conversation === null || live !== undefined ? [] : onTheWay(state, conversation);
  const starting = coming.length > 0;
  const now = useNow(live !== undefined);
  const shown = live !== undefined || starting;
  const what = live?.id ?? "start";
  const stop = (now = false): void => {
    if (conversation === null) return;
    setAsked(what);
    void attempt(() => session.stop(conversation, now));
  };
  useEffect(() => {
    if (!shown) return;
    const onKey = (event: globalThis.KeyboardEvent): void => {
      if (event.key !== "Escape" || event.isComposing || event.defaultPrevented) return;
      if (document.querySelector("dialog[open], .menu-open") !== null) return;
      stop();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });
  useEffect(() => {
    if (!shown) return;
    // With the button goes the focus, if it had it: to where one writes on.
    return () => focusComposer();
  }, [shown]);
  if (!shown) return <Failure error={error} />;
  const known = live === undefined ? "none" : stopOf(state, live.id);
  const stopping = known !== "none" || (asked === what && error === null);
  const asks = pending(state).some((approval) => approval.conversation_id === conversation);
  const words = busyWords(live !== undefined, asks, coming);
  return (
    <>
      <div className="busy-bar">
        <Dot tone={stopping ? "busy" : words.tone} />
        <span className="busy-text">
          {known === "ended" ? "Ending…" : stopping ? "Stopping…" : `${agent.name} ${words.text}`}
          {live?.run != null && <span className="busy-time"> {elapsed(live.run.started_at, now)}</span>}
        </span>
        <StopButton
          key={what}
          asked={stopping && live !== undefined}
          ended={known === "ended"}
          busy={busy}
          onStop={stop}
        />
      </div>
      <Failure error={error} />
    </>
  );
}

/** In whole seconds: what counts up should not flicker. */
function elapsed(from: string, now: number): string {
  return duration(Math.max(1, Math.floor((now - Date.parse(from)) / 1000)) * 1000);
}

function LostLink(): ReactNode {
  return (
    <p className="lost" role="status">
      <Spinner label="" /> Reconnecting… nothing is lost: what you write is kept, and what you missed will follow.
    </p>
  );
}

function Greeting({ agent, state }: { agent: Agent; state: State }): ReactNode {
  const host = hostOf(state, agent);
  return (
    <div className="center greeting">
      <Avatar name={agent.name} id={agent.id} />
      <h2>Say something to {agent.name}</h2>
      <p className="muted">
        {driverName(agent.driver)} answers on {host?.name ?? "its machine"}
        {agent.cwd !== null && (
          <>
            , in <code>{agent.cwd}</code>
          </>
        )}
        {agent.driver === "scripted" ? ", without any model: it says back what you write. " : ". "}
        It remembers this conversation, and you can close this page while it works.
      </p>
    </div>
  );
}
