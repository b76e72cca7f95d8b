/** Letting a machine in by the code on its screen: type it, look who asks, decide. */

import { useEffect, useState, type FormEvent, type ReactNode } from "react";

import { post } from "../api";
import { go } from "../router";
import type { DeviceLogin, Host } from "../wire";
import { addressWords, asCode, CODE_PATTERN, duration, osName } from "../words";
import { Dot, Failure, Icon, Link } from "./parts";
import { TopBar } from "./TopBar";
import { useApp, useAttempt, useNow, useTitle } from "./use";

export function Device({ code, onMenu }: { code: string | null; onMenu: (() => void) | null }): ReactNode {
  const [login, setLogin] = useState<DeviceLogin | null>(null);
  const [linked] = useState(code);
  const found = (answer: DeviceLogin): void => {
    setLogin(answer);
    // A reload shall not ask about a code that is used up.
    go("/device", "replace");
  };
  useTitle("Let a machine in · cloudagent");
  return (
    <>
      <TopBar onMenu={onMenu}>
        <div className="title-text">
          <h1>Let a machine in</h1>
        </div>
      </TopBar>
      <div className="page">
        <div className="page-column">
          {login === null && <Ask code={linked} onFound={found} />}
          {login?.state === "pending" && (
            <Decide login={login} fromLink={linked !== null} onDecided={setLogin} onBack={() => setLogin(null)} />
          )}
          {login?.state === "approved" && <Approved login={login} />}
          {login?.state === "denied" && <Denied login={login} />}
        </div>
      </div>
    </>
  );
}

function Ask({ code, onFound }: { code: string | null; onFound: (login: DeviceLogin) => void }): ReactNode {
  const { busy, error, attempt } = useAttempt();
  const [typed, setTyped] = useState(asCode(code ?? ""));
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    void attempt(async () => onFound(await post<DeviceLogin>("/v1/auth/device/lookup", { user_code: typed })));
  };
  return (
    <form className="form card" onSubmit={submit}>
      <label className="field">
        <span>The code on the machine's screen</span>
        <input
          type="text"
          className="device-code"
          required
          autoFocus
          autoComplete="off"
          autoCapitalize="characters"
          spellCheck={false}
          maxLength={9}
          pattern={CODE_PATTERN}
          placeholder="XXXX-XXXX"
          aria-describedby="code-hint"
          value={typed}
          onChange={(event) => setTyped(asCode(event.target.value))}
        />
      </label>
      <p className="hint" id="code-hint">
        <code>cloudagent-daemon login</code> shows it: eight letters, no vowels.
      </p>
      <Failure error={error} />
      <button type="submit" className="button primary" disabled={busy}>
        {busy ? "One moment…" : "Look who asks"}
      </button>
    </form>
  );
}

function Decide(props: {
  login: DeviceLogin;
  fromLink: boolean;
  onDecided: (login: DeviceLogin) => void;
  onBack: () => void;
}): ReactNode {
  const { login, fromLink } = props;
  const { busy, error, attempt } = useAttempt();
  const [name, setName] = useState(login.name);
  const [seen, setSeen] = useState(!fromLink);
  const leftMs = Date.parse(login.expires_at) - useNow(true);
  const address = addressWords(login);
  const decide = (decision: "approve" | "deny") => (): void => {
    void attempt(async () => {
      const body = { user_code: login.user_code, decision, ...(decision === "approve" && { name: name.trim() }) };
      props.onDecided(await post<DeviceLogin>("/v1/auth/device/approve", body));
    });
  };
  const approve = decide("approve");
  return (
    <form
      className="form card"
      aria-label="Who asks"
      onSubmit={(event) => {
        event.preventDefault();
        approve();
      }}
    >
      <h2>A machine asks to be let in</h2>
      <dl className="who">
        <dt>Code</dt>
        <dd className="device-code">{login.user_code}</dd>
        <dt>Calls itself</dt>
        <dd>{login.hostname || "nothing"}</dd>
        <dt>System</dt>
        <dd>{[osName(login.os), login.daemon_version && `daemon ${login.daemon_version}`].filter(Boolean).join(", ") || "unknown"}</dd>
        <dt>Asks from</dt>
        <dd>
          {login.address}
          <span className={address.tone}>{address.text}</span>
        </dd>
        <dt>Asked</dt>
        <dd>
          {duration(Date.now() - Date.parse(login.requested_at))} ago
          <span className="muted">{leftMs > 0 ? `good for ${duration(leftMs)} more` : "its time is over"}</span>
        </dd>
      </dl>
      {login.host != null && (
        <p>
          It has shown the key of your machine <strong>{login.host.name}</strong>, and will be that machine again, with a
          new key. The old key stops working.
        </p>
      )}
      <div className="caution" role="note">
        <Icon name="warn" />
        <p>
          <strong>Did you start this yourself?</strong> Approve only if you have just run{" "}
          <code>cloudagent-daemon login</code> on that machine and see this code there. A code that somebody sent or read
          out to you is an attack: what you write to agents on that machine would reach them.
        </p>
      </div>
      {fromLink && (
        <label className="choice">
          <input type="checkbox" checked={seen} onChange={(event) => setSeen(event.target.checked)} />
          <span>
            <strong>{login.user_code} is on the screen in front of me</strong>
            It came here by a link, so compare it.
          </span>
        </label>
      )}
      <label className="field">
        <span>What do you call it?</span>
        <input type="text" required maxLength={100} value={name} onChange={(event) => setName(event.target.value)} />
      </label>
      <Failure error={error} />
      <div className="actions spread">
        <button type="submit" className="button primary" disabled={busy || !seen || leftMs <= 0 || name.trim() === ""}>
          Approve
        </button>
        <button type="button" className="button" disabled={busy || leftMs <= 0} onClick={decide("deny")}>
          Deny
        </button>
        <button type="button" className="button quiet" disabled={busy} onClick={props.onBack}>
          Another code
        </button>
      </div>
    </form>
  );
}

function Approved({ login }: { login: DeviceLogin }): ReactNode {
  const state = useApp();
  // What was there when it was approved: the new one is the machine that was let in.
  const [before] = useState(() => new Set(Object.keys(state.hosts)));
  const hosts = Object.values(state.hosts);
  const host =
    login.host == null
      ? hosts.find((one) => !before.has(one.id) && one.name === login.name)
      : hosts.find((one) => one.id === login.host?.id);
  return (
    <div className="card pairing">
      <h2>{login.name} is let in</h2>
      <p className="muted">
        It fetches its key by itself; nobody else sees it. If it is not started yet: <code>cloudagent-daemon start</code>
      </p>
      <Presence name={login.name} host={host} />
      <div className="actions">
        <Link to="/hosts" className="button">
          Host machines
        </Link>
        {host !== undefined && login.host == null && (
          <Link to={`/agents/new?host=${host.id}`} className={host.state === "online" ? "button primary" : "button"}>
            Add an agent on {host.name}
          </Link>
        )}
      </div>
    </div>
  );
}

function Presence({ name, host }: { name: string; host: Host | undefined }): ReactNode {
  const text =
    host === undefined
      ? `Waiting for ${name} to fetch its key…`
      : host.state === "online"
        ? `${host.name} is connected.`
        : `${host.name} has its key, and is not connected yet.`;
  return (
    <div className="waiting" role="status">
      <Dot tone={host?.state === "online" ? "good" : "busy"} />
      <span>{text}</span>
    </div>
  );
}

function Denied({ login }: { login: DeviceLogin }): ReactNode {
  useEffect(() => document.querySelector<HTMLElement>("h2")?.focus(), []);
  return (
    <div className="card pairing">
      <h2 tabIndex={-1}>Denied</h2>
      <p>
        The machine with the code {login.user_code} got nothing, and the code is used up. If somebody sent it to you, tell
        whoever looks after your server: it asked from {login.address}.
      </p>
      <div className="actions">
        <Link to="/hosts" className="button primary">
          Host machines
        </Link>
      </div>
    </div>
  );
}
