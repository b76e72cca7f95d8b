/** The ways in: password, and the first set-up. */

import { useState, type FormEvent, type ReactNode } from "react";

import { Logo } from "./Logo";
import { Failure } from "./parts";
import { useAttempt, useSession, useTitle } from "./use";

export function SignIn({ problem }: { problem: unknown }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  useTitle("Sign in · cloudagent");
  return (
    <Door title="Sign in" lead="Message your coding agents, which live on your own machines.">
      <Credentials
        busy={busy}
        action="Sign in"
        password="current-password"
        onSubmit={(email, password) => void attempt(() => session.signIn(email, password))}
      />
      <Failure error={error ?? problem} />
      <p className="muted small">
        On the machine that runs the server, <code>cloudagent up</code> opens this page signed in.
      </p>
    </Door>
  );
}

export function SetUp({ linkKey }: { linkKey: string }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  useTitle("Set up · cloudagent");
  return (
    <Door title="Welcome" lead="This server is new. The account you make now is its administrator's.">
      <Credentials
        busy={busy}
        action="Create account"
        password="new-password"
        onSubmit={(email, password) => void attempt(() => session.setUp(linkKey, email, password))}
      />
      <Failure error={error} />
    </Door>
  );
}

function Door(props: { title: string; lead: string; children: ReactNode }): ReactNode {
  return (
    <main className="door">
      <div className="door-card">
        <Logo />
        <h1>{props.title}</h1>
        <p className="muted">{props.lead}</p>
        {props.children}
      </div>
    </main>
  );
}

function Credentials(props: {
  busy: boolean;
  action: string;
  password: "current-password" | "new-password";
  onSubmit: (email: string, password: string) => void;
}): ReactNode {
  const [email, setEmail] = useState("");
  const [password, setPassword] = useState("");
  const isNew = props.password === "new-password";
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    props.onSubmit(email.trim(), password);
  };
  return (
    <form className="form" onSubmit={submit}>
      <label className="field">
        <span>Email</span>
        <input
          type="email"
          name="email"
          autoComplete="username"
          required
          autoFocus
          value={email}
          onChange={(event) => setEmail(event.target.value)}
        />
      </label>
      <label className="field">
        <span>Password</span>
        <input
          type="password"
          name="password"
          autoComplete={props.password}
          required
          minLength={isNew ? 12 : undefined}
          aria-describedby={isNew ? "password-hint" : undefined}
          value={password}
          onChange={(event) => setPassword(event.target.value)}
        />
      </label>
      {isNew && (
        <p className="hint" id="password-hint">
          At least 12 characters; a few words in a row are good.
        </p>
      )}
      <button type="submit" className="button primary wide" disabled={props.busy}>
        {props.busy ? "One moment…" : props.action}
      </button>
    </form>
  );
}
