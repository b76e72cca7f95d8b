/** The machines that agents live on, and how to connect another. */

import { useState, type FormEvent, type ReactNode } from "react";

import { post, remove } from "../api";
import type { Agent, Hold, Host, HostWithKey } from "../wire";
import { driverName, holdWords, hostWords, plain, since } from "../words";
import { Command, Confirm, CopyButton, Dot, Failure, Icon, Link } from "./parts";
import { TopBar } from "./TopBar";
import { useApp, useAttempt, useSession, useTitle } from "./use";

export function Hosts({ onMenu }: { onMenu: (() => void) | null }): ReactNode {
  const state = useApp();
  const hosts = Object.values(state.hosts).sort((a, b) => a.name.localeCompare(b.name));
  useTitle("Host machines · cloudagent");
  return (
    <>
      <TopBar
        onMenu={onMenu}
        actions={
          <Link to="/hosts/new" className="button" label="Connect a machine">
            <Icon name="plus" />
            <span className="wide-only">Connect</span>
          </Link>
        }
      >
        <div className="title-text">
          <h1>Host machines</h1>
          <p>where your agents live</p>
        </div>
      </TopBar>
      <div className="page">
        <div className="page-column">
          {hosts.length === 0 && (
            <div className="center">
              <h2>No machine yet</h2>
              <p className="muted">Connect the computer that your agents should work on.</p>
              <Link to="/hosts/new" className="button primary">
                Connect a machine
              </Link>
            </div>
          )}
          {hosts.map((host) => (
            <HostCard key={host.id} host={host} />
          ))}
        </div>
      </div>
    </>
  );
}

type Question = "remove" | "rotate" | "restart";

const ACTIONS: Record<Question, string> = { remove: "Remove", rotate: "Make a new key", restart: "Restart" };

function title(question: Question, name: string): string {
  if (question === "remove") return `Remove ${name}?`;
  return question === "rotate" ? `Make a new key for ${name}?` : `Restart the daemon on ${name}?`;
}

function HostCard({ host }: { host: Host }): ReactNode {
  const session = useSession();
  const state = useApp();
  const { busy, error, attempt } = useAttempt();
  const [question, setQuestion] = useState<Question | null>(null);
  const [said, setSaid] = useState<string | null>(null);
  const [renewed, setRenewed] = useState<HostWithKey | null>(null);
  const agents = Object.values(state.agents).filter((agent) => agent.host_machine_id === host.id);
  const words = hostWords(host);
  const parent = host.parent_id == null ? undefined : (state.hosts[host.parent_id]?.name ?? "a removed machine");

  const answer = (yes: boolean): void => {
    const what = question;
    setQuestion(null);
    if (!yes) return;
    setSaid(null);
    void attempt(async () => {
      if (what === "restart") {
        await post<Host>(`/v1/host-machines/${host.id}/restart`, undefined, crypto.randomUUID());
        setSaid(`${host.name} restarts as soon as what runs there has finished.`);
      } else if (what === "rotate") {
        setRenewed(await post<HostWithKey>(`/v1/host-machines/${host.id}/rotate-key`, undefined, crypto.randomUUID()));
      } else {
        await remove(`/v1/host-machines/${host.id}`);
        session.store.dispatch({ type: "forget", id: host.id });
      }
    });
  };
  const rescan = (): void => {
    setSaid("Looking for agent programs…");
    void attempt(async () => {
      try {
        const seen = await post<Host>(`/v1/host-machines/${host.id}/rescan`, undefined, crypto.randomUUID());
        session.store.dispatch({ type: "hosts", hosts: [seen] });
        setSaid(found(seen) || "No agent program was found.");
      } catch (problem) {
        setSaid(null);
        throw problem;
      }
    });
  };
  return (
    <section className="card" aria-label={host.name}>
      <div className="card-head">
        <Dot tone={words.tone} />
        <h2>{host.name}</h2>
        <span className="muted">{words.text.replace(`${host.name} is `, "").replace(`${host.name} `, "")}</span>
      </div>
      <p className="muted facts">
        {[host.hostname !== host.name && host.hostname, host.os, host.daemon_version && `daemon ${host.daemon_version}`, `key ends in ${host.key_last_four}`]
          .filter(Boolean)
          .join(" · ")}
      </p>
      {host.state === "online" && host.holds.length > 0 && (
        <ul className="runtimes holds" aria-label="What waits, and why">
          {host.holds.map((hold) => (
            <li key={`${hold.reason} ${hold.agent_id ?? ""}`} className="warn">
              <Icon name="warn" />
              <span className="runtime-name">{holdTitle(hold, agents)}</span>
              <span className="runtime-detail">{plain(hold.detail)}</span>
            </li>
          ))}
        </ul>
      )}
      <h3>Runtimes</h3>
      {host.runtimes.length === 0 ? (
        <p className="muted">{host.last_seen_at === null ? "Known once it connects." : "No agent program was found."}</p>
      ) : (
        <ul className="runtimes">
          {host.runtimes.map((runtime) => (
            <li key={runtime.name} className={runtime.problem != null ? "bad" : runtime.warning != null ? "warn" : "good"}>
              <Icon name={runtime.problem != null ? "cross" : runtime.warning != null ? "warn" : "check"} />
              <span className="runtime-name">
                {driverName(runtime.name)} {runtime.version}
              </span>
              <span className="runtime-detail">
                {plain(runtime.problem ?? runtime.warning ?? (runtime.logged_in === false ? "not signed in" : (runtime.path ?? "")))}
              </span>
            </li>
          ))}
        </ul>
      )}
      <h3>Agents</h3>
      {parent !== undefined ? (
        <p className="muted">Here for one job: it runs agents of {parent}, has none of its own, and is removed when the job is over.</p>
      ) : (
        <p className="chips">
        {agents.map((agent) => (
          <Link key={agent.id} to={`/a/${encodeURIComponent(agent.name)}`} className="chip">
            {agent.name}
          </Link>
        ))}
        <Link to={`/agents/new?host=${host.id}`} className="chip add">
          <Icon name="plus" />
          Add an agent
        </Link>
      </p>
      )}
      {renewed !== null && <Pairing made={renewed} renewed />}
      <Failure error={error} />
      <p className="said" role="status">
        {said}
      </p>
      <div className="card-actions">
        {parent === undefined && (
          <>
            <button type="button" className="button" disabled={busy} onClick={rescan}>
              Look again
            </button>
            <button type="button" className="button" disabled={busy} onClick={() => setQuestion("restart")}>
              Restart…
            </button>
            <button type="button" className="button" disabled={busy} onClick={() => setQuestion("rotate")}>
              New key…
            </button>
          </>
        )}
        <button type="button" className="button danger-text" disabled={busy} onClick={() => setQuestion("remove")}>
          Remove…
        </button>
      </div>
      {question !== null && (
        <Confirm
          title={title(question, host.name)}
          action={ACTIONS[question]}
          keep={question === "restart" ? "Not now" : "Keep it"}
          harmless={question === "restart"}
          onAnswer={answer}
        >
          {question === "restart" ? (
            <ul className="consequences">
              <li>It begins nothing new, and lets what runs there finish for a minute.</li>
              <li>What takes longer is cut off, and resumed by itself after the restart.</li>
              <li>Messages wait meanwhile. If another version is installed there, it is used from then on.</li>
            </ul>
          ) : question === "remove" ? (
            <ul className="consequences">
              <li>Its key is revoked: the machine is cut off at once, and cannot come back with it.</li>
              <li>What its agents are doing there is stopped within seconds; messages that wait are cancelled.</li>
              {agents.length > 0 && (
                <li>
                  {agents.length === 1 ? "Its agent is" : `Its ${agents.length} agents are`} removed.
                </li>
              )}
              <li>Files on the machine stay. Logged in again, it is a new machine.</li>
            </ul>
          ) : (
            <ul className="consequences">
              <li>The old key stops working at once, and the machine is disconnected until it has the new one.</li>
              <li>What runs there goes on, and nothing is lost: it is told when the machine is back.</li>
              <li>
                The new key is shown once. Or run <code>cloudagent-daemon login</code> on the machine instead: it gets a new
                key by a code, and you carry none.
              </li>
            </ul>
          )}
        </Confirm>
      )}
    </section>
  );
}

function holdTitle(hold: Hold, agents: readonly Agent[]): string {
  const agent = agents.find((one) => one.id === hold.agent_id);
  const words = holdWords(hold.reason);
  return agent === undefined ? `${words.slice(0, 1).toUpperCase()}${words.slice(1)}` : `${agent.name}: ${words}`;
}

export function AddHost({ onMenu }: { onMenu: (() => void) | null }): ReactNode {
  const [way, setWay] = useState<"code" | "key">("code");
  const [made, setMade] = useState<HostWithKey | null>(null);
  useTitle("Connect a machine · cloudagent");
  return (
    <>
      <TopBar onMenu={onMenu}>
        <div className="title-text">
          <h1>Connect a machine</h1>
        </div>
      </TopBar>
      <div className="page">
        <div className="page-column">
          {made === null ? (
            <div className="card pairing">
              <div className="ways" role="group" aria-label="How to let it in">
                <button type="button" aria-pressed={way === "code"} onClick={() => setWay("code")}>
                  With a code
                </button>
                <button type="button" aria-pressed={way === "key"} onClick={() => setWay("key")}>
                  With a key
                </button>
              </div>
              {way === "code" ? <ByCode /> : <ByKey onMade={setMade} />}
            </div>
          ) : (
            <Pairing made={made} renewed={false} />
          )}
        </div>
      </div>
    </>
  );
}

function ByCode(): ReactNode {
  return (
    <>
      <p>In a terminal on the machine that your agents should work on:</p>
      <Command label="the log-in command" text={`uvx cloudagent-daemon login --server ${location.origin}`} />
      <p>It shows a code. Enter it here, look who asks, and decide:</p>
      <Link to="/device" className="button primary">
        Enter the code
      </Link>
      <p className="muted">Then start it:</p>
      <Command label="the start command" text="uvx cloudagent-daemon start" />
    </>
  );
}

function ByKey({ onMade }: { onMade: (made: HostWithKey) => void }): ReactNode {
  const session = useSession();
  const { busy, error, attempt } = useAttempt();
  const [name, setName] = useState("");
  const [key] = useState(() => crypto.randomUUID());
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    void attempt(async () => {
      const host = await post<HostWithKey>("/v1/host-machines", { name: name.trim() }, key);
      const { raw_key: _, ...known } = host;
      session.store.dispatch({ type: "hosts", hosts: [known] });
      onMade(host);
    });
  };
  return (
    <form className="form" onSubmit={submit}>
      <p className="muted">For machines without a person: servers, containers, CI. You carry the key there yourself.</p>
      <label className="field">
        <span>What do you call it?</span>
        <input
          type="text"
          required
          maxLength={100}
          autoFocus
          placeholder="mbp-ana"
          aria-describedby="host-hint"
          value={name}
          onChange={(event) => setName(event.target.value)}
        />
      </label>
      <p className="hint" id="host-hint">
        A name that you will recognise, such as the computer's own.
      </p>
      <Failure error={error} />
      <button type="submit" className="button primary" disabled={busy || name.trim() === ""}>
        {busy ? "One moment…" : "Make a key"}
      </button>
    </form>
  );
}

/** The commands that connect a machine. The key is here now and never again. */
function Pairing({ made, renewed }: { made: HostWithKey; renewed: boolean }): ReactNode {
  const state = useApp();
  const [way, setWay] = useState<"stay" | "once">("stay");
  const host = state.hosts[made.id];
  const server = location.origin;
  const connected = host?.state === "online" && (!renewed || Date.parse(host.last_seen_at ?? "") > 0);
  return (
    <div className="card pairing">
      <h2>{renewed ? "The new key" : `In a terminal on ${made.name}`}</h2>
      <div className="ways" role="group" aria-label="How to connect">
        <button type="button" aria-pressed={way === "stay"} onClick={() => setWay("stay")}>
          Keep it connected
        </button>
        <button type="button" aria-pressed={way === "once"} onClick={() => setWay("once")}>
          Just try it
        </button>
      </div>
      {way === "stay" ? (
        <>
          <p className="muted">Saves the connection on that machine. It asks for the key below, without showing it.</p>
          <Command label="the log-in command" text={`uvx cloudagent-daemon login --server ${server} --api-key-file -`} />
          <div className="key">
            <span className="key-label">Key</span>
            <code tabIndex={0} role="group" aria-label="Machine key">
              {made.raw_key}
            </code>
            <CopyButton text={made.raw_key} label="Copy: the machine key" />
          </div>
          {renewed ? (
            <p className="muted">A daemon that runs there takes it over at once; nothing is restarted, and no run is cut off.</p>
          ) : (
            <>
              <p className="muted">Then start it:</p>
              <Command label="the start command" text="uvx cloudagent-daemon start" />
            </>
          )}
        </>
      ) : (
        <>
          <p className="muted">Runs until you press Ctrl-C and writes nothing to that machine's home. The key will be in your shell's history.</p>
          <Command
            label="the one-shot command"
            text={`uvx cloudagent-daemon start --server-url ${server} --api-key ${made.raw_key}`}
          />
        </>
      )}
      <p className="once">
        <Icon name="warn" /> The key is shown only now. Lost it? Make a new one under Host machines.
      </p>
      <div className="waiting" role="status">
        {connected ? (
          <>
            <Dot tone="good" />
            <span>
              <strong>{host.name} is connected.</strong> {found(host)}
            </span>
          </>
        ) : (
          <>
            <Dot tone="busy" />
            <span>Waiting for {made.name} to connect… this page notices by itself.</span>
          </>
        )}
      </div>
      {!renewed && (
        <div className="actions">
          <Link to={`/agents/new?host=${made.id}`} className={connected ? "button primary" : "button"}>
            Add an agent on {made.name}
          </Link>
        </div>
      )}
    </div>
  );
}

function found(host: Host): string {
  const good = host.runtimes.filter((runtime) => runtime.problem == null);
  if (good.length === 0) return host.last_seen_at === null ? "" : `No agent program was found there${host.last_seen_at ? ` (looked at ${since(host.last_seen_at)})` : ""}.`;
  return `Found ${good.map((runtime) => `${driverName(runtime.name)} ${runtime.version ?? ""}`.trim()).join(", ")}.`;
}
