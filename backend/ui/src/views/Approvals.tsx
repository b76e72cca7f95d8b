/** What agents ask a person: a card in the conversation, and all of them in a list. */

import { useId, useState, type FormEvent, type ReactNode } from "react";

import { approvalsIn, pending, unsettled } from "../selectors";
import type { State } from "../state";
import { chatPath } from "../router";
import type { Approval, ApprovalDecision } from "../wire";
import { plainly, since } from "../words";
import { Failure, Icon, Link } from "./parts";
import { TopBar } from "./TopBar";
import { useApp, useAttempt, useSession, useTitle } from "./use";

/** Stands above the composer while an agent of this conversation waits for a person. */
export function Asked({ conversation }: { conversation: string | null }): ReactNode {
  const state = useApp();
  const asked = conversation === null ? [] : approvalsIn(state, conversation);
  if (asked.length === 0) return null;
  return (
    <div className="asked">
      {asked.map((approval) => (
        <Card key={approval.id} approval={approval} state={state} />
      ))}
    </div>
  );
}

/** Everything that waits, whoever asks. */
export function Approvals({ onMenu }: { onMenu: (() => void) | null }): ReactNode {
  const state = useApp();
  const waiting = pending(state);
  const shown = unsettled(state);
  useTitle(`${waiting.length > 0 ? `(${waiting.length}) ` : ""}Waiting for you · cloudagent`);
  return (
    <>
      <TopBar onMenu={onMenu}>
        <div className="title-text">
          <h1>Waiting for you</h1>
          <p>what your agents ask</p>
        </div>
      </TopBar>
      <div className="page">
        <div className="page-column asked-list">
          {shown.length === 0 && <p className="muted">Nothing waits for you. What your agents ask comes here.</p>}
          {shown.map((approval) => (
            <Card key={approval.id} approval={approval} state={state} linked />
          ))}
        </div>
      </div>
    </>
  );
}

function Card({ approval, state, linked }: { approval: Approval; state: State; linked?: boolean }): ReactNode {
  const title = useId();
  const name = state.agents[approval.agent_id]?.name ?? "A removed agent";
  return (
    <section className={`approval ${approval.state}`} aria-labelledby={title}>
      <h2 id={title} role="status">
        <Icon name="warn" />
        <span>
          <strong>{name}</strong> {approval.kind === "question" ? "asks you" : `wants to use ${plainly(approval.tool ?? "a tool")}`}
        </span>
        <span className="muted">
          {linked === true ? (
            <Link to={chatPath(name, approval.conversation_id)}>{since(approval.requested_at)}</Link>
          ) : (
            since(approval.requested_at)
          )}
        </span>
      </h2>
      <div className="approval-body">{approval.kind === "question" ? <p className="question">{plainly(approval.question ?? "")}</p> : <What approval={approval} />}</div>
      {approval.state === "pending" ? <Answers approval={approval} /> : <Outcome approval={approval} />}
    </section>
  );
}

/** What the tool would be given, all of it; what hides or turns text is shown by its code. */
function What({ approval }: { approval: Approval }): ReactNode {
  const entries = Object.entries(approval.input ?? {});
  return (
    <>
      {approval.cwd != null && <p className="muted">in {plainly(approval.cwd)}</p>}
      {entries.map(([name, value]) => (
        <div key={name} className="given">
          {(entries.length > 1 || name !== "command") && <span className="muted">{plainly(name)}</span>}
          <pre tabIndex={0} role="group" aria-label={name}>
            {plainly(typeof value === "string" ? value : JSON.stringify(value, null, 2))}
          </pre>
        </div>
      ))}
      {entries.length === 0 && <p className="muted">It does not say with what.</p>}
      {approval.truncated === true && <p className="caution">It is too long to be shown whole.</p>}
      {approval.redacted === true && <p className="caution">Keys in it are shown as “…”.</p>}
      {Object.keys(approval.files ?? {}).map((path) => (
        <p key={path} className="muted">
          with the file {plainly(path)} as it is now
        </p>
      ))}
    </>
  );
}

function Answers({ approval }: { approval: Approval }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const [denying, setDenying] = useState(false);
  const send = (decision: ApprovalDecision, more: { reason?: string; answer?: string } = {}): void =>
    void attempt(() => session.answer(approval, { decision, ...more }));
  if (denying)
    return (
      <Words
        label="Why not? The agent is told."
        action="Deny"
        optional
        busy={busy}
        error={error}
        onSend={(reason) => send("deny", reason === "" ? {} : { reason })}
        onBack={() => setDenying(false)}
      />
    );
  if (approval.kind === "question")
    return (
      <>
        {(approval.options ?? []).length > 0 && (
          <div className="approval-actions">
            {(approval.options ?? []).map((option) => (
              <button key={option} type="button" className="button" disabled={busy} onClick={() => send("once", { answer: option })}>
                {plainly(option)}
              </button>
            ))}
          </div>
        )}
        <Words label="Your answer" action="Answer" busy={busy} error={error} onSend={(answer) => send("once", { answer })} onBack={() => setDenying(true)} back="No answer" />
      </>
    );
  return (
    <>
      <div className="approval-actions">
        <button type="button" className="button primary" disabled={busy} onClick={() => send("once")}>
          Allow once
        </button>
        {approval.rule != null && (
          <>
            <button type="button" className="button" disabled={busy} onClick={() => send("conversation")}>
              In this conversation
            </button>
            <button type="button" className="button" disabled={busy} onClick={() => send("always")}>
              Always
            </button>
          </>
        )}
        <button type="button" className="button" disabled={busy} onClick={() => setDenying(true)}>
          Deny
        </button>
      </div>
      {approval.rule != null && (
        <p className="rule muted">
          “In this conversation” and “Always” allow {plainly(approval.rule)}.
        </p>
      )}
      <Failure error={error} />
    </>
  );
}

function Words(props: {
  label: string;
  action: string;
  optional?: boolean;
  busy: boolean;
  error: unknown;
  back?: string;
  onSend: (text: string) => void;
  onBack: () => void;
}): ReactNode {
  const [text, setText] = useState("");
  const field = useId();
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    if (props.optional === true || text.trim() !== "") props.onSend(text.trim());
  };
  return (
    <form className="approval-words" onSubmit={submit}>
      <label htmlFor={field}>{props.label}</label>
      <input id={field} value={text} maxLength={2000} autoFocus={props.optional === true} autoComplete="off" onChange={(event) => setText(event.target.value)} />
      <div className="approval-actions">
        <button type="submit" className="button primary" disabled={props.busy || (props.optional !== true && text.trim() === "")}>
          {props.action}
        </button>
        <button type="button" className="button" disabled={props.busy} onClick={props.onBack}>
          {props.back ?? "Back"}
        </button>
      </div>
      <Failure error={props.error} />
    </form>
  );
}

const DECIDED: Record<string, string> = {
  once: "allowed it once",
  conversation: "allowed it in this conversation",
  always: "allowed it always",
  deny: "denied it",
};

function Outcome({ approval }: { approval: Approval }): ReactNode {
  const by = approval.decided_by ?? "";
  const said = approval.answer ?? null;
  const words = said === null ? (DECIDED[approval.decision ?? ""] ?? approval.decision) : `answered: ${plainly(said)}`;
  return (
    <p className="outcome" role="status">
      {by} {words}
      {approval.reason != null && `: ${plainly(approval.reason)}`}
      {approval.state === "answered" ? " · on its way to the machine" : ` · ${plainly(approval.detail ?? approval.state)}`}
    </p>
  );
}
