/** States, ladders and reasons as a person says them. Pure. */

import { isFailure, isLive, type RunView } from "./run";
import type { Agent, AgentStatus, Changes, DeliveryTrace, Host, Rung, RunDiff, Runtime } from "./wire";
import { OVER } from "./wire";

export type Tone = "quiet" | "busy" | "good" | "warn" | "bad";

export interface Words {
  text: string;
  tone: Tone;
}

const DRIVERS: Record<string, string> = {
  claude_code: "Claude Code",
  builtin: "Built-in agent",
  scripted: "Scripted demo",
  codex: "Codex",
  gemini: "Gemini",
  opencode: "OpenCode",
  qwen: "Qwen Code",
  acp: "Another program",
};

/** What a driver's program is called in a sentence: "claude started". */
const PROGRAMS: Record<string, string> = { claude_code: "claude", builtin: "built-in agent", scripted: "scripted agent" };

export const driverName = (driver: string): string => DRIVERS[driver] ?? driver;
const programOf = (driver: string | undefined): string =>
  driver === undefined ? "agent" : (PROGRAMS[driver] ?? driver);

// --- times ---------------------------------------------------------------------------------

const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const PRECISE = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false,
});
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const SHORT_DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

export const clock = (at: string): string => said(TIME, at);
export const preciseClock = (at: string): string => said(PRECISE, at);
export const fullTime = (at: string): string => said(FULL, at);

const said = (format: Intl.DateTimeFormat, at: string): string =>
  Number.isNaN(Date.parse(at)) ? "" : format.format(new Date(at));

export function dayOf(at: string, now = new Date()): string {
  const days = daysAgo(at, now);
  return days === 0 ? "Today" : days === 1 ? "Yesterday" : DAY.format(new Date(at));
}

/** "14:05" today, "tomorrow 14:05", "3 Nov 14:05". */
export function until(at: string, now = new Date()): string {
  return daysAgo(at, now) === -1 ? `tomorrow ${clock(at)}` : since(at, now);
}

/** "09:12" today, "yesterday 09:12", "3 Nov 09:12". */
/** Text of somebody else as it really is: what controls, turns or hides text is shown by its code. */
export function plainly(text: string): string {
  return text.replace(HIDDEN, (char) => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`);
}

const HIDDEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0]|[\u{e0000}-\u{e01ef}]/gu;

export function since(at: string, now = new Date()): string {
  const days = daysAgo(at, now);
  const time = clock(at);
  return days === 0 ? time : days === 1 ? `yesterday ${time}` : `${SHORT_DAY.format(new Date(at))} ${time}`;
}

function daysAgo(at: string, now: Date): number {
  const midnight = (date: Date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  return Math.round((midnight(now) - midnight(new Date(at))) / 86_400_000);
}

/** "40 ms", "0.4 s", "12 s", "4 min 03 s", "2 h 10 min". */
export function duration(ms: number): string {
  if (ms < 0) return "0 s";
  if (ms < 100) return `${Math.round(ms)} ms`;
  if (ms < 950) return `${(ms / 1000).toFixed(1)} s`;
  const s = Math.round(ms / 1000);
  if (s < 60) return `${s} s`;
  const min = Math.floor(s / 60);
  if (min < 60) return `${min} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(min / 60)} h ${String(min % 60).padStart(2, "0")} min`;
}

/** "640 bytes", "3.2 MB": as the commands say it (cloudagent_protocol/attachments.py). */
export function sizeText(bytes: number): string {
  const in3 = (n: number) => String(Number(n.toPrecision(3)));
  if (bytes < 1_000) return `${bytes} bytes`;
  if (bytes < 999.5e3) return `${in3(bytes / 1e3)} kB`;
  if (bytes < 999.5e6) return `${in3(bytes / 1e6)} MB`;
  return `${in3(bytes / 1e9)} GB`;
}

export const between = (from: string, to: string): number => Date.parse(to) - Date.parse(from);

// --- agents and hosts -------------------------------------------------------------------------

/** Why its machine cannot run it, if the machine is there and says so. */
export function obstacle(agent: Agent, host: Host | undefined): Runtime | null {
  if (host?.state !== "online" || agent.command != null) return null;
  return host.runtimes.find((runtime) => runtime.name === agent.driver && runtime.problem != null) ?? null;
}

export function agentWords(agent: Agent, host: Host | undefined): Words {
  const where = host?.name ?? "its machine";
  const hindered = obstacle(agent, host);
  if (hindered !== null && agent.status !== "working" && agent.status !== "offline")
    return { text: `${driverName(agent.driver)} ${hindered.version == null ? "is missing" : "cannot run"} on ${where}`, tone: "bad" };
  if (host?.state === "draining" && agent.status === "idle") return { text: hostWords(host).text, tone: "quiet" };
  // What was missing then is there now: the machine looks at each start.
  if (agent.status === "runtime_missing" && host?.runtimes.some((runtime) => runtime.name === agent.driver) === true)
    return { text: `ready on ${where}`, tone: "good" };
  if (agent.pause != null && agent.status === "idle") return { text: "waits for you: its budget is used up", tone: "warn" };
  const hold = agent.status === "idle" || agent.status === "crashed" ? held(agent, host) : null;
  if (hold !== null) return { text: `${where}: ${hold}`, tone: "warn" };
  const words: Record<AgentStatus, Words> = {
    idle: { text: `ready on ${where}`, tone: "good" },
    working: { text: `working on ${where}`, tone: "busy" },
    waiting: { text: `waiting for you`, tone: "warn" },
    crashed: { text: `last run failed`, tone: "bad" },
    offline: { text: hostWords(host).text, tone: "quiet" },
    runtime_missing: { text: `${driverName(agent.driver)} is missing on ${where}`, tone: "bad" },
  };
  return words[agent.status] ?? { text: agent.status, tone: "quiet" };
}

/** Why its machine starts nothing of it for now: "low on memory"; null if it would. */
function held(agent: Agent, host: Host | undefined): string | null {
  if (host?.state !== "online") return null;
  const hold = host.holds.find((one) => one.agent_id == null || one.agent_id === agent.id);
  return hold === undefined ? null : holdWords(hold.reason, hold.until);
}

const HOLDS: Record<string, string> = {
  memory_low: "low on memory",
  disk_low: "low on disk space",
  descriptors_low: "too many open files",
  crash_loop: "paused after crashes",
  rate_limit: "rate limit",
  runtime_missing: "its program is missing",
  not_steerable: "it takes nothing in the middle of a turn",
  installation_gone: "the daemon's files are missing",
  installation_orphaned: "the daemon's Python is missing",
  installation_broken: "the new version does not start",
};

/** What keeps a machine from starting anything: "low on memory". */
export function holdWords(reason: string, over?: string | null): string {
  const words = HOLDS[reason] ?? reason.replaceAll("_", " ");
  return reason === "rate_limit" && over != null ? `${words}, resumes ${until(over)}` : words;
}

/** What an agent is about in a conversation, after its name. */
export function busyWords(works: boolean, asks: boolean, coming: readonly DeliveryTrace[]): Words {
  if (asks) return { text: "waits for you", tone: "warn" };
  if (works) return { text: "is working", tone: "busy" };
  const held = coming.every((trace) => trace.state === "received" && trace.reason != null) ? coming[0] : undefined;
  return held === undefined
    ? { text: "is starting", tone: "busy" }
    : { text: `waits: ${holdWords(held.reason ?? "", held.waits_until)}`, tone: "warn" };
}

export function hostWords(host: Host | undefined): Words {
  if (host === undefined) return { text: "its machine is gone", tone: "bad" };
  if (host.state === "online") {
    const low = host.holds.filter((hold) => hold.agent_id == null).map((hold) => holdWords(hold.reason));
    return low.length > 0 ? { text: low.join(", "), tone: "warn" } : { text: "online", tone: "good" };
  }
  if (host.state === "draining") return { text: `${host.name} is shutting down`, tone: "warn" };
  if (host.last_seen_at === null) return { text: `${host.name} has not connected yet`, tone: "quiet" };
  return { text: `${host.name} is offline since ${since(host.last_seen_at)}`, tone: "quiet" };
}

// --- a machine that asks to be let in ----------------------------------------------------------

/** No vowels (RFC 8628 §6.1), in two groups. */
export const CODE_PATTERN = "[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}";

/** What is typed, as a code is shown: "wdjbmj" is "WDJB-MJ". */
export function asCode(typed: string): string {
  const letters = typed.toUpperCase().replace(/[^A-Z0-9]/g, "").slice(0, 8);
  return letters.length > 4 ? `${letters.slice(0, 4)}-${letters.slice(4)}` : letters;
}

export function osName(os: string): string {
  return { linux: "Linux", darwin: "macOS", win32: "Windows" }[os] ?? os;
}

/** Where a request came from, beside where the person is. */
export function addressWords(login: { address: string; your_address: string }): Words {
  return login.address === login.your_address
    ? { text: "the same address as yours", tone: "good" }
    : { text: `another address than yours (${login.your_address})`, tone: "warn" };
}

// --- the ladder --------------------------------------------------------------------------------

export interface Ladder extends Words {
  /** It has not begun, and can be taken back. */
  cancellable: boolean;
  /** It ended without an answer, and can be tried again. */
  retriable: boolean;
  /** A rate limit has cut it off, and a person decides whether it goes on. */
  continuable: boolean;
}

/** Where a message is, in words: "on mbp · claude started · replied". */
export function ladder(trace: DeliveryTrace, agent: Agent | undefined, host: Host | undefined, run?: RunView): Ladder {
  const has = (rung: string): Rung | undefined => trace.rungs.findLast((r) => r.rung === rung);
  const cancellable = !OVER.has(trace.state) && trace.state !== "running" && trace.state !== "waiting";
  const retriable = trace.state === "failed" || trace.state === "dead" || trace.state === "cancelled";
  const continuable = trace.state === "queued" && trace.reason === "rate_limit";
  const can = { cancellable, retriable, continuable };
  const where = host?.name ?? has("received")?.actor ?? "its machine";
  if (trace.state === "queued" || trace.state === "leased") return { ...queued(trace, host), ...can };

  // Nothing is said to be on a machine that is not on its disk: it can have ended before that.
  const words = has("received") || !OVER.has(trace.state) ? [`on ${where}`] : [];
  if (has("started")) words.push(`${programOf(run?.run?.driver ?? agent?.driver)} started`);
  if (trace.attempt > 1) words.push(`attempt ${trace.attempt}`);
  const end = ending(trace);
  if (end !== null) return { text: [...words, end.text].join(" · "), tone: end.tone, ...can };
  if (trace.ended_by != null) words.push(`${trace.ended_by} asked to end it at once`);
  else if (trace.interrupted_by != null) words.push(`${trace.interrupted_by} asked to stop it`);
  else if (trace.state === "waiting") words.push(has("waiting")?.detail ?? "waiting");
  else if (trace.state === "received" && trace.reason != null) {
    words.push(`waits: ${holdWords(trace.reason, trace.waits_until)}`);
    return { text: words.join(" · "), tone: "warn", ...can };
  }
  else if (has("seen")) words.push("answering");
  else if (has("ready")) words.push("ready");
  else if (!has("started")) words.push("waiting for its turn");
  return { text: words.join(" · "), tone: trace.state === "waiting" ? "warn" : "busy", ...can };
}

function queued(trace: DeliveryTrace, host: Host | undefined): Words {
  if (trace.reason === "rate_limit") {
    const over = trace.waits_until != null && Date.parse(trace.waits_until) > Date.now();
    const limit = over ? `rate limit until ${until(trace.waits_until ?? "")}` : "the rate limit is over";
    return { text: `${limit}, waits for your word`, tone: "warn" };
  }
  if (trace.reason === "budget" && trace.waits_until != null) return { text: "its agent's budget of the day is used up", tone: "warn" };
  if (host === undefined || host.state === "online") {
    if (trace.rungs.at(-1)?.reason === "chain_paused") return { text: "waits for your decision", tone: "warn" };
    const sent = trace.rungs.some((rung) => rung.rung === "sent");
    return { text: sent ? `on its way to ${host?.name ?? "its machine"}` : "stored · queued", tone: "busy" };
  }
  if (host.state === "draining")
    return { text: `${host.name} is shutting down, will be delivered when it is back`, tone: "warn" };
  const back = host.last_seen_at === null ? "when it does" : "when it is back";
  return { text: `${hostWords(host).text}, will be delivered ${back}`, tone: "warn" };
}

function ending(trace: DeliveryTrace): Words | null {
  const last = trace.rungs.findLast((rung) => rung.rung === trace.outcome || rung.rung === trace.state);
  switch (trace.outcome ?? (OVER.has(trace.state) ? trace.state : null)) {
    case null:
      return null;
    case "replied":
    case "auto_published":
    case "done":
      return { text: "replied", tone: "good" };
    case "silent":
      return { text: `chose not to reply${last?.detail ? `: ${last.detail}` : ""}`, tone: "quiet" };
    case "cancelled":
      return { text: "stopped", tone: "quiet" };
    case "dead":
      return { text: `given up: ${reasonWords(trace.reason).toLowerCase()}`, tone: "bad" };
    default:
      return { text: `failed: ${reasonWords(trace.reason).toLowerCase()}`, tone: "bad" };
  }
}

const RUNGS: Record<string, string> = {
  stored: "stored on the server",
  sent: "sent to",
  received: "safe on the machine",
  started: "program started",
  ready: "its tools answered",
  seen: "began to answer",
  waiting: "waiting",
  answered: "answered",
  interrupted: "interrupted, tried again",
  replied: "replied",
  silent: "chose not to reply",
  auto_published: "replied (its last words were sent)",
  failed: "failed",
  cancelled: "stopped",
  dead: "given up",
};

export const rungWords = (rung: Rung): string => RUNGS[rung.rung] ?? rung.rung;

const REASONS: Record<string, string> = {
  runtime_missing: "Program not found on this machine",
  spawn_failed: "Program could not be started",
  tools_unavailable: "Its tools did not connect",
  session_lost: "Its session is gone",
  authentication: "Not signed in to its model",
  billing: "Its account needs attention",
  rate_limit: "Rate limit reached",
  overloaded: "The model is overloaded",
  server_error: "The model's server failed",
  connection: "The model could not be reached",
  invalid_request: "The model refused the request",
  context_overflow: "The conversation is too long",
  max_turns: "Too many steps",
  model_error: "The model reported an error",
  crashed: "The program crashed",
  no_result: "The program ended without a result",
  hung: "No sign of life for too long",
  out_of_memory: "It took too much memory",
  interrupted: "Stopped",
  daemon_stopped: "The daemon was stopped",
  agent_unknown: "The machine does not know this agent",
  internal: "Internal error",
  too_large: "It is too large for its machine",
  fetching: "Its files are on their way to its machine",
  worktree: "It has no work tree to work in",
  attachment_missing: "A file of it cannot be had",
  host_removed: "Its machine was removed",
  unlisted: "Its machine does not know how it ended",
  backlog_full: "Too much waits for its machine",
  hop_limit: "Agents have passed it on too often",
  budget: "Its budget of the day is used up",
  chain_paused: "A person decides whether the agents go on",
};

export const reasonWords = (reason: string | null | undefined): string =>
  reason == null ? "The run failed" : (REASONS[reason] ?? reason.replaceAll("_", " "));

// --- runs -------------------------------------------------------------------------------------------

/** "$0.025", "$1.50". */
export const price = (usd: number): string => `$${usd.toFixed(usd < 0.1 ? 3 : 2)}`;

/** "Worked for 12 s · 3 steps · 1,204 tokens". */
/** `3 files changed`. */
export function changeWords(changes: Changes): string {
  return changes.files === 1 ? "1 file changed" : `${changes.files.toLocaleString()} files changed`;
}

/** What to know of a diff. */
export function diffNotes(diff: RunDiff): string[] {
  const notes: string[] = [];
  if (diff.problem != null) notes.push(diff.problem);
  else if (diff.more > 0) notes.push(diff.more === 1 ? "One more file is not listed." : `${diff.more.toLocaleString()} more files are not listed.`);
  if (diff.shared) notes.push("Others worked in this folder at the same time: their changes are in it too.");
  if (diff.late) notes.push("The agent began before the first look at its folder was over: its first changes may be missing.");
  if (diff.redacted) notes.push("What looks like a key was taken out.");
  return notes;
}

export function runSummary(view: RunView): string {
  const run = view.run;
  if (run === null) return "";
  const steps = view.events.filter((event) => event.type === "tool_call" && !sendsMessage(event.name)).length;
  const words = [
    isLive(view)
      ? "Working"
      : `${isFailure(run) ? "Failed after" : run.outcome === "cancelled" ? "Stopped after" : "Worked for"} ${duration(between(run.started_at, run.ended_at ?? run.started_at))}`,
  ];
  if (run.outcome === "auto_published") words.push("its last words were sent");
  if (steps > 0) words.push(steps === 1 ? "1 step" : `${steps} steps`);
  if (run.usage != null) {
    const tokens = run.usage.input_tokens + run.usage.output_tokens;
    if (tokens > 0) words.push(`${tokens.toLocaleString()} tokens`);
    if (run.usage.cost_usd != null && run.usage.cost_usd > 0) words.push(price(run.usage.cost_usd));
  }
  return words.join(" · ");
}

const MESSAGING: Record<string, string> = {
  send_message: "Sent a message",
  list_messages: "Read the conversation",
  message_agent: "Messaged an agent",
  list_agents: "Looked who is there",
  stay_silent: "Decided not to reply",
  read_memory: "Read its memory",
  append_memory: "Wrote to its memory",
};

/** A tool of ours without what a program puts before it. */
const ownName = (name: string): string => name.replace(/^(mcp__)?cloudagent(__|[./:])/, "");

export const sendsMessage = (name: string): boolean => ownName(name) === "send_message";

/** A tool's name and its one telling argument. */
export function toolWords(name: string, input: Record<string, unknown>): { name: string; detail: string } {
  const own = ownName(name);
  const label = MESSAGING[own] ?? name.replace(/^mcp__(.+?)__/, "$1 · ");
  for (const key of ["command", "file_path", "path", "pattern", "query", "url", "description", "reason", "text"]) {
    const value = input[key];
    if (typeof value === "string" && value !== "") return { name: label, detail: oneLine(value) };
  }
  return { name: label, detail: "" };
}

export const oneLine = (text: string, limit = 160): string => {
  const line = plain(text).replace(/\s+/g, " ").trim();
  return line.length > limit ? `${line.slice(0, limit)}…` : line;
};

const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[@-Z\\-_])/g;
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
const BIDI = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** Text of a program, without what would colour, move or turn it round. */
export function plain(text: string): string {
  return text
    .replaceAll("\r\n", "\n")
    .replace(ESCAPES, "")
    .replace(CONTROLS, "")
    .replace(BIDI, (mark) => `\u27e8U+${mark.charCodeAt(0).toString(16).toUpperCase()}\u27e9`);
}
