/** An agent: a new one, or the settings of one. */

import { useState, type FormEvent, type ReactNode } from "react";

import { patch, post, remove } from "../api";
import { line, words } from "../command";
import { chatPath, go } from "../router";
import { NO_LIMITS, type Agent, type AgentLimits, type Host } from "../wire";
import { MODE_NAMES, modeWords } from "../wishes";
import { driverName } from "../words";
import { Limits } from "./AgentLimits";
import { Confirm, Failure, Icon, Link } from "./parts";
import { TopBar } from "./TopBar";
import { useApp, useAttempt, useSession, useTitle } from "./use";

const DRIVERS = [
  { name: "claude_code", about: "Anthropic's coding agent, with your own account on that machine" },
  { name: "codex", about: "OpenAI's coding agent, with your own account on that machine" },
  { name: "opencode", about: "An open coding agent, with the models that it is set up for on that machine" },
  { name: "gemini", about: "Google's coding agent, with your own account on that machine" },
  { name: "qwen", about: "Qwen's coding agent, with your own account or key on that machine" },
  { name: "acp", about: "Any program that speaks the Agent Client Protocol, by its command" },
  { name: "builtin", about: "A small agent of our own; needs an Anthropic or OpenAI-compatible key there" },
  { name: "scripted", about: "Plays an agent without any model: to try things out" },
];

export function AgentForm(props: { agent: Agent | null; host: string | null; onMenu: (() => void) | null }): ReactNode {
  const session = useSession();
  const state = useApp();
  const { agent } = props;
  // One that is there for a job has no agents of its own.
  const hosts = Object.values(state.hosts).filter((h) => h.parent_id == null).sort((a, b) => a.name.localeCompare(b.name));
  const { busy, error, attempt } = useAttempt();
  const [name, setName] = useState(agent?.name ?? "");
  const [hostId, setHostId] = useState(agent?.host_machine_id ?? hosts.find((h) => h.id === props.host)?.id ?? hosts.find((h) => h.state === "online")?.id ?? hosts[0]?.id ?? "");
  const host = state.hosts[hostId];
  const [driver, setDriver] = useState(agent?.driver ?? bestDriver(host));
  const [cwd, setCwd] = useState(agent?.cwd ?? "");
  const [model, setModel] = useState(agent?.model ?? "");
  const [instructions, setInstructions] = useState(agent?.instructions ?? "");
  const [mode, setMode] = useState(agent?.mode ?? "default");
  const [command, setCommand] = useState(line(agent?.command ?? []));
  const [silence, setSilence] = useState(agent?.hang_timeout_s == null ? "" : `${agent.hang_timeout_s / 60}`);
  const [unattended, setUnattended] = useState<"ask" | "deny">(agent?.unattended ?? "ask");
  const [worktree, setWorktree] = useState(agent?.worktree === "per_conversation");
  const [limits, setLimits] = useState<AgentLimits>(agent?.limits ?? NO_LIMITS);
  const [asking, setAsking] = useState(false);
  const [key] = useState(() => crypto.randomUUID());
  const title = agent === null ? "Add an agent" : `Settings of ${agent.name}`;
  useTitle(`${title} · cloudagent`);

  const choose = (name: string): void => {
    setDriver(name);
    // A command belongs to its driver.
    setCommand(line((name === agent?.driver ? agent.command : null) ?? []));
  };
  const save = (event: FormEvent): void => {
    event.preventDefault();
    const fields = {
      name: name.trim(),
      driver,
      cwd: cwd.trim() || null,
      model: model.trim() || null,
      instructions: instructions.trim() || null,
      mode,
      command: command.trim() === "" ? null : words(command),
      hang_timeout_s: silence === "" ? null : Math.round(Number(silence) * 60),
      unattended,
      worktree: worktree ? ("per_conversation" as const) : ("off" as const),
      limits,
    };
    void attempt(async () => {
      const saved =
        agent === null
          ? await post<Agent>("/v1/agents", { ...fields, runtime: "local_daemon", host_machine_id: hostId }, key)
          : await patch<Agent>(`/v1/agents/${agent.id}`, fields);
      session.store.dispatch({ type: "agents", agents: [saved] });
      go(chatPath(saved.name), "replace");
    });
  };
  const dismiss = (yes: boolean): void => {
    setAsking(false);
    if (!yes || agent === null) return;
    void attempt(async () => {
      await remove(`/v1/agents/${agent.id}`);
      go("/", "replace");
      session.store.dispatch({ type: "forget", id: agent.id });
    });
  };

  return (
    <>
      <TopBar onMenu={props.onMenu}>
        {agent !== null && (
          <Link to={chatPath(agent.name)} className="button icon-only quiet" label={`Back to ${agent.name}`}>
            <Icon name="back" />
          </Link>
        )}
        <div className="title-text">
          <h1>{title}</h1>
        </div>
      </TopBar>
      <div className="page">
        <div className="page-column">
          {hosts.length === 0 ? (
            <div className="center">
              <h2>First, a machine</h2>
              <p className="muted">An agent lives on a computer of yours. Connect one, then come back here.</p>
              <Link to="/hosts/new" className="button primary">
                Connect a machine
              </Link>
            </div>
          ) : (
            <form className="form card" onSubmit={save}>
              <label className="field">
                <span>Name</span>
                <input type="text" required maxLength={100} autoFocus={agent === null} placeholder="shop" value={name} onChange={(e) => setName(e.target.value)} />
              </label>
              {agent === null && (
                <label className="field">
                  <span>Machine</span>
                  <select value={hostId} onChange={(e) => setHostId(e.target.value)}>
                    {hosts.map((h) => (
                      <option key={h.id} value={h.id}>
                        {h.name}
                        {h.state === "online" ? "" : ` (${h.state})`}
                      </option>
                    ))}
                  </select>
                </label>
              )}
              <label className="field">
                <span>Folder on {host?.name ?? "the machine"}</span>
                <input
                  type="text"
                  placeholder="~/src/shop"
                  pattern="(/|~).*"
                  title="A path that begins with / or ~"
                  spellCheck={false}
                  autoCapitalize="off"
                  aria-describedby="cwd-hint"
                  value={cwd}
                  onChange={(e) => setCwd(e.target.value)}
                />
              </label>
              <p className="hint" id="cwd-hint">
                Where it works. Empty: a workspace of its own.
              </p>
              <fieldset className="field choices">
                <legend>What does the thinking</legend>
                {DRIVERS.map((choice) => (
                  <label key={choice.name} className="choice">
                    <input type="radio" name="driver" value={choice.name} checked={driver === choice.name} onChange={() => choose(choice.name)} />
                    <span>
                      <strong>{driverName(choice.name)}</strong>
                      <span className="muted">{choice.about}</span>
                      <Presence host={host} driver={choice.name} />
                    </span>
                  </label>
                ))}
              </fieldset>
              {driver === "acp" && (
                <Command value={command} onChange={setCommand} required hint="What the machine starts, as you would in a terminal. Quotes hold words together." />
              )}
              <details className="more" open={agent !== null}>
                <summary>More</summary>
                <label className="field">
                  <span>Model</span>
                  <input type="text" list="models" spellCheck={false} autoCapitalize="off" placeholder="the program's own choice" value={model} onChange={(e) => setModel(e.target.value)} />
                  <datalist id="models">
                    {host?.runtimes.find((one) => one.name === driver)?.models?.map((one) => <option key={one} value={one} />)}
                  </datalist>
                </label>
                <label className="field">
                  <span>Instructions</span>
                  <textarea rows={4} maxLength={20_000} placeholder="What it should know in every conversation" value={instructions} onChange={(e) => setInstructions(e.target.value)} />
                </label>
                <label className="field">
                  <span>Permissions</span>
                  <select value={mode} onChange={(e) => setMode(e.target.value)}>
                    {MODE_NAMES.map((name) => (
                      <option key={name} value={name}>
                        {modeWords(name).about}
                      </option>
                    ))}
                  </select>
                </label>
                <label className="field">
                  <span>When it asks and nobody answers</span>
                  <select aria-describedby="unattended-hint" value={unattended} onChange={(e) => setUnattended(e.target.value === "deny" ? "deny" : "ask")}>
                    <option value="ask">It waits for the answer, as long as that takes</option>
                    <option value="deny">It is refused, and goes on without</option>
                  </select>
                </label>
                <p className="hint" id="unattended-hint">
                  It shows what it wants in the conversation, and under “Waiting for you”. After ten minutes its process is ended; your answer starts it again.
                </p>
                <fieldset className="field choices">
                  <legend>In a git repository</legend>
                  <label className="choice">
                    <input type="checkbox" checked={worktree} onChange={(e) => setWorktree(e.target.checked)} />
                    <span>
                      <strong>Each conversation works in a work tree of its own</strong>
                      <span className="muted">
                        On a branch “cloudagent/…” that begins at your last commit. Your own files there stay as they are. Its folder must be in a git repository.
                      </span>
                    </span>
                  </label>
                </fieldset>
                <label className="field">
                  <span>Minutes of silence until it counts as hung</span>
                  <input type="number" inputMode="decimal" min={0.2} max={10_080} step="any" placeholder="as its machine has it" aria-describedby="silence-hint" value={silence} onChange={(e) => setSilence(e.target.value)} />
                </label>
                <p className="hint" id="silence-hint">
                  Without a word or a sign of work for so long, its run is ended. A machine has 30 unless its owner says otherwise.
                </p>
                {driver !== "acp" && (
                  <Command value={command} onChange={setCommand} hint="In place of the program that the machine finds by itself." />
                )}
                <Limits agent={agent} limits={limits} onChange={setLimits} />
              </details>
              <Failure error={error} />
              <div className="actions">
                <button type="submit" className="button primary" disabled={busy || name.trim() === ""}>
                  {busy ? "One moment…" : agent === null ? "Add the agent" : "Save"}
                </button>
                {agent !== null && (
                  <button type="button" className="button danger-text" disabled={busy} onClick={() => setAsking(true)}>
                    Remove…
                  </button>
                )}
              </div>
            </form>
          )}
        </div>
      </div>
      {asking && agent !== null && (
        <Confirm title={`Remove ${agent.name}?`} action="Remove" onAnswer={dismiss}>
          It can no longer be written to. Its files on the machine stay.
        </Confirm>
      )}
    </>
  );
}

function Command(props: { value: string; onChange: (line: string) => void; required?: boolean; hint: string }): ReactNode {
  const check = (input: HTMLInputElement): void => {
    const wrong = words(input.value) === null ? "A quote is not closed, or it ends in a backslash." : "";
    input.setCustomValidity(wrong);
  };
  return (
    <>
      <label className="field">
        <span>Command</span>
        <input
          type="text"
          className="mono"
          required={props.required}
          placeholder={props.required === true ? "goose acp" : ""}
          spellCheck={false}
          autoCapitalize="off"
          autoComplete="off"
          aria-describedby="command-hint"
          value={props.value}
          onChange={(e) => {
            check(e.target);
            props.onChange(e.target.value);
          }}
        />
      </label>
      <p className="hint" id="command-hint">
        {props.hint}
      </p>
    </>
  );
}

function Presence({ host, driver }: { host: Host | undefined; driver: string }): ReactNode {
  const runtime = host?.runtimes.find((r) => r.name === driver);
  if (runtime === undefined) return null;
  if (runtime.problem != null) return <span className="presence bad">on {host?.name}: {runtime.problem}</span>;
  return (
    <span className="presence good">
      on {host?.name} {runtime.version != null && `· ${runtime.version}`}
    </span>
  );
}

/** The first program that works there; without news of any, the usual one. */
function bestDriver(host: Host | undefined): string {
  const works = (name: string) => host?.runtimes.some((r) => r.name === name && r.problem == null) === true;
  return DRIVERS.find((choice) => works(choice.name))?.name ?? "claude_code";
}
