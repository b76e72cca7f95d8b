/** One message: who, what, and for a person's own where it is. */

import { memo, useContext, useState, type KeyboardEvent, type ReactNode } from "react";

import { canBeWrittenAnew, waitsHere } from "../selectors";
import type { Outgoing, State } from "../state";
import type { DeliveryTrace, Message, Rung } from "../wire";
import { wishWords } from "../wishes";
import { between, clock, duration, fullTime, ladder, plain, preciseClock, reasonWords, rungWords, since } from "../words";
import { Cause, Origin } from "./Chains";
import { Files } from "./Files";
import { Markdown } from "./Markdown";
import { Avatar, Dot, Failure, Icon, Prose } from "./parts";
import { TakeBackContext, useAttempt, useSession } from "./use";

interface Own {
  message: Message;
  state: State;
  /** The message that waits in front of it, if this one waits as well. */
  above: string | null;
}

export const OwnMessage = memo(function OwnMessage({ message, state, above }: Own): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const [editing, setEditing] = useState(false);
  const waits = waitsHere(state, message);
  const takeBack = useContext(TakeBackContext);
  const writable = !waits && canBeWrittenAnew(state, message);
  const writeAnew = (): void =>
    void attempt(async () => {
      await session.cancel(message.id);
      takeBack(message.text);
    });
  return (
    <article className={`message own${waits ? " waits" : ""}`} id={message.id} aria-label={`You, ${clock(message.created_at)}`}>
      {editing ? (
        <Edit message={message} onDone={() => setEditing(false)} />
      ) : (
        <div className="bubble" title={fullTime(message.created_at)}>
          {message.text !== "" && <p className="typed">{plain(message.text)}</p>}
          <Files files={message.attachments} sent />
        </div>
      )}
      <Ladders message={message} state={state}>
        {writable && (
          <button type="button" className="text-button" disabled={busy} title="Takes it back from the machine, to where you write" onClick={writeAnew}>
            Edit
          </button>
        )}
        {waits && !editing && (
          <>
            <button type="button" className="text-button" onClick={() => setEditing(true)}>
              Edit
            </button>
            {above !== null && (
              <button
                type="button"
                className="text-button"
                disabled={busy}
                onClick={() => void attempt(() => session.move(message.id, above))}
              >
                Move up
              </button>
            )}
          </>
        )}
      </Ladders>
      <Failure error={error} />
    </article>
  );
}, (a, b) => a.above === b.above && sameMessage(a, b));

/** Other words for a message that waits. A machine may take it meanwhile: then nothing typed here is lost. */
function Edit({ message, onDone }: { message: Message; onDone: () => void }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const [text, setText] = useState(message.text);
  const save = (): void =>
    void attempt(async () => {
      await session.edit(message.id, text.trim());
      onDone();
    });
  const onKey = (event: KeyboardEvent): void => {
    if (event.nativeEvent.isComposing) return;
    if (event.key === "Escape") onDone();
    else if (event.key !== "Enter" || event.shiftKey || text.trim() === "") return;
    else save();
    event.preventDefault();
  };
  return (
    <div className="bubble editing">
      <textarea
        autoFocus
        aria-label="Change the message"
        rows={Math.min(12, text.split("\n").length + 1)}
        maxLength={200_000}
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={onKey}
      />
      <Failure error={error} />
      <div className="edit-actions">
        <button type="button" className="button" onClick={onDone}>
          {error === null ? "Keep it as it was" : "Close"}
        </button>
        <button type="button" className="button primary" disabled={busy || text.trim() === ""} onClick={save}>
          Save
        </button>
      </div>
    </div>
  );
}

function Ladders({ message, state, children }: { message: Message; state: State; children?: ReactNode }): ReactNode {
  return message.deliveries.map((delivery, at) => {
    const trace = state.traces[delivery.id];
    return (
      trace !== undefined && (
        <Whereabouts
          key={delivery.id}
          trace={trace}
          state={state}
          asked={wishWords(message)}
          several={message.author.type !== "user" || message.deliveries.some((other) => other.agent_id !== delivery.agent_id)}
          over={message.deliveries.some((other) => other.retry_of === delivery.id)}
        >
          {at === 0 && children}
        </Whereabouts>
      )
    );
  });
}

/** A message changes with its ladders and with where its machine is; not with what other agents do. */
function sameMessage(a: { message: Message; state: State }, b: { message: Message; state: State }): boolean {
  if (a.message !== b.message) return false;
  const cause = a.message.caused_by ?? "";
  if (a.state.messages[cause] !== b.state.messages[cause]) return false;
  if (a.state.hosts !== b.state.hosts || a.state.agents !== b.state.agents) return false;
  return a.message.deliveries.every((d) => {
    const [was, is] = [a.state.traces[d.id], b.state.traces[d.id]];
    return was === is && a.state.runs[was?.run_id ?? ""]?.run === b.state.runs[is?.run_id ?? ""]?.run;
  });
}

function Whereabouts(props: {
  trace: DeliveryTrace;
  state: State;
  /** What the message wants for its turn. */
  asked: string | null;
  several: boolean;
  /** Whether it has been tried again: then the later delivery counts. */
  over: boolean;
  /** What else can be done about it. */
  children: ReactNode;
}): ReactNode {
  const { trace, state, asked, several, over } = props;
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const [open, setOpen] = useState(false);
  const agent = state.agents[trace.agent_id];
  const host = agent && state.hosts[agent.host_machine_id];
  const words = ladder(trace, agent, host, state.runs[trace.run_id ?? ""]);
  return (
    <div className="ladder-of">
      <div className={`ladder ${words.tone}`}>
        {props.children}
        {words.cancellable && (
          <button
            type="button"
            className="text-button"
            disabled={busy}
            onClick={() => void attempt(() => session.cancel(trace.message_id))}
          >
            {busy ? "Cancelling…" : "Cancel"}
          </button>
        )}
        {words.continuable && (
          <button
            type="button"
            className="text-button"
            disabled={busy}
            onClick={() => void attempt(() => session.goOn(trace.message_id))}
          >
            Continue
          </button>
        )}
        {words.retriable && !over && (
          <button
            type="button"
            className="text-button"
            disabled={busy}
            onClick={() => void attempt(() => session.retry(trace.message_id))}
          >
            {busy ? "Trying…" : "Try again"}
          </button>
        )}
        <button type="button" className="ladder-words" aria-expanded={open} onClick={() => setOpen(!open)}>
          <Dot tone={words.tone} />
          <span>
            {`${clock(trace.rungs[0]?.at ?? "")} · `}
            {several && `${agent?.name ?? "agent"}: `}
            {asked !== null && `${asked} · `}
            {trace.retry_of != null && !words.continuable && "tried again · "}
            {words.text}
          </span>
          <Icon name="chevron" />
        </button>
      </div>
      {open && <Rungs trace={trace} where={host?.name ?? "its machine"} />}
      <Failure error={error} />
    </div>
  );
}

function Rungs({ trace, where }: { trace: DeliveryTrace; where: string }): ReactNode {
  return (
    <ol className="rungs" aria-label="Where this message has been">
      {trace.rungs.map((rung, at) => (
        <li key={at} className={rung.rung === "failed" || rung.rung === "dead" ? "bad" : ""}>
          <time dateTime={rung.at}>{preciseClock(rung.at)}</time>
          <span>
            {rungWords(rung)}
            {rung.rung === "sent" && ` ${where}`}
            {rung.rung === "received" && ` · ${rung.actor}`}
            {rung.detail || rung.reason ? <span className="muted"> · {plain(rung.detail || reasonWords(rung.reason))}</span> : null}
          </span>
          <span className="muted step">{step(trace.rungs, at)}</span>
        </li>
      ))}
    </ol>
  );
}

/** How long it took to get here from the rung before: where the time went. */
function step(rungs: readonly Rung[], at: number): string {
  const [before, here] = [rungs[at - 1], rungs[at]];
  return before === undefined || here === undefined ? "" : `+${duration(between(before.at, here.at))}`;
}

interface Said {
  message: Message;
  head: boolean;
  /** The conversation that it is shown in. */
  here: string;
  state: State;
}

export const AgentMessage = memo(function AgentMessage({ message, head, here, state }: Said): ReactNode {
  const system = message.author.type === "system";
  return (
    <article className={`message from${system ? " system" : ""}`} id={message.id} aria-label={`${message.author.name}, ${clock(message.created_at)}`}>
      {head && <Head name={message.author.name} id={message.author.id} at={message.created_at} />}
      <div className="turn-body">
        <Origin message={message} here={here} state={state} />
        {message.conversation_id === here && <Cause message={message} state={state} />}
        <Markdown text={message.text} />
        <Files files={message.attachments} sent />
        <Ladders message={message} state={state} />
      </div>
    </article>
  );
}, (a, b) => a.head === b.head && a.here === b.here && sameMessage(a, b));

export function Head({ name, id, at }: { name: string; id: string; at: string }): ReactNode {
  return (
    <div className="turn-head">
      <Avatar name={name} id={id} small />
      <h2>{name}</h2>
      <time dateTime={at} title={fullTime(at)}>
        {clock(at)}
      </time>
    </div>
  );
}

/** A message that the server has not yet answered for. */
export function Pending({ out, lost }: { out: Outgoing; lost: boolean }): ReactNode {
  const session = useSession();
  const refused = out.state === "refused";
  const asked = wishWords({ model: out.wish?.model ?? null, permission_mode: out.wish?.mode ?? null });
  return (
    <article className={`message own pending${refused ? " refused" : ""}`} aria-label="You, being sent">
      <div className="bubble">
        {out.text !== "" && <p className="typed">{plain(out.text)}</p>}
        <Files files={out.attachments} />
      </div>
      {refused ? (
        <div className="failure" role="alert">
          <Icon name="warn" />
          <p>
            Not sent: <Prose text={`${out.problem?.detail ?? ""} ${out.problem?.next ?? ""}`} />
            <span className="failure-actions">
              <button type="button" className="button" onClick={() => session.outbox.retry(out)}>
                Try again
              </button>
              <button type="button" className="button" onClick={() => session.outbox.discard(out.key)}>
                Discard
              </button>
            </span>
          </p>
        </div>
      ) : (
        <div className="ladder">
          <Dot tone={out.state === "waiting" ? "warn" : "busy"} />
          <span>
            {asked !== null && `${asked} · `}
            {out.state === "waiting" || lost
              ? `no connection · kept here since ${since(out.written_at)}, goes out when it is back`
              : "sending…"}
          </span>
          {out.state === "waiting" && (
            <button type="button" className="text-button" onClick={() => session.outbox.discard(out.key)}>
              Discard
            </button>
          )}
        </div>
      )}
    </article>
  );
}
