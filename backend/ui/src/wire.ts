/** What the backend's API says, as this page reads it (cloudagent_protocol/resources.py, events.py).
 *  A newer backend may send more fields and more kinds; everything unknown is passed over. */

export interface User {
  id: string;
  email: string;
  name: string;
}

export interface Runtime {
  name: string;
  version?: string | null;
  path?: string | null;
  logged_in?: boolean | null;
  problem?: string | null;
  /** What a person should know of one that can be used. */
  warning?: string | null;
  /** What it offers by name, where that is known. */
  models?: readonly string[] | null;
}

/** Why a machine starts nothing for now, of one agent or at all. */
export interface Hold {
  reason: string;
  detail: string;
  agent_id?: string | null;
  until?: string | null;
}

export interface Host {
  id: string;
  name: string;
  hostname: string;
  os: string;
  daemon_version: string;
  state: "online" | "offline" | "draining";
  last_seen_at: string | null;
  runtimes: Runtime[];
  holds: Hold[];
  key_last_four: string;
  created_at: string;
  /** Of an ephemeral one, which is there for a job: whose agents it serves. */
  parent_id?: string | null;
}

export interface HostWithKey extends Host {
  raw_key: string;
}

/** A machine that waits to be let in: who it says it is, and where it is. */
export interface DeviceLogin {
  user_code: string;
  state: "pending" | "approved" | "denied";
  hostname: string;
  os: string;
  daemon_version: string;
  address: string;
  your_address: string;
  requested_at: string;
  expires_at: string;
  name: string;
  host?: { id: string; name: string } | null;
}

export type AgentStatus =
  | "idle"
  | "working"
  | "waiting"
  | "crashed"
  | "offline"
  | "runtime_missing";

export interface Agent {
  id: string;
  name: string;
  driver: string;
  host_machine_id: string;
  status: AgentStatus;
  model: string | null;
  instructions: string | null;
  mode: string;
  /** Its own program, in place of the one that its driver looks for. */
  command?: string[] | null;
  /** Silence after which a run of it is ended, in seconds; null: what its machine's owner has set. */
  hang_timeout_s?: number | null;
  /** What becomes of a question that nobody answers: `ask` (or none) parks the run, `deny` refuses. */
  unattended?: "ask" | "deny" | null;
  /** Whether each conversation works in a git work tree of its own; null is `off`. */
  worktree?: "off" | "per_conversation" | null;
  cwd: string | null;
  limits: AgentLimits;
  pause?: AgentPause | null;
  created_at: string;
}

/** What an agent may do without asking a person. */
export interface AgentLimits {
  auto_resume: boolean;
  resume_times: number;
  resume_within_h: number;
  /** What its turns may use in a day (UTC). */
  day_tokens?: number | null;
  day_cost_usd?: number | null;
}

/** Why nothing further of an agent is sent to its machine. */
export interface AgentPause {
  reason: string;
  detail: string;
  since: string;
  until: string;
  waiting: number;
  pause: number;
}

/** What an agent's turns have used on a day (UTC). */
export interface DayUsage {
  agent_id: string;
  day: string;
  turns: number;
  input_tokens: number;
  output_tokens: number;
  cost_usd: number;
}

export const NO_LIMITS: AgentLimits = { auto_resume: false, resume_times: 3, resume_within_h: 24 };

export interface Conversation {
  id: string;
  title: string | null;
  /** `agents`: of two agents with each other. */
  kind?: "people" | "agents";
  agent_ids: string[];
  created_at: string;
  last_message_at: string | null;
}

export type DeliveryState =
  | "queued"
  | "leased"
  | "received"
  | "running"
  | "waiting"
  | "done"
  | "failed"
  | "cancelled"
  | "dead";

export interface DeliverySummary {
  id: string;
  agent_id: string;
  seq: number;
  state: DeliveryState;
  mode?: string;
  /** The earlier delivery of the message that this one does over again. */
  retry_of?: string | null;
}

/** A file that goes with a message; its bytes are at `fileUrl`. */
export interface Attachment {
  id: string;
  name: string;
  /** What the backend saw in its first bytes, whatever it is called. */
  media_type: string;
  size_bytes: number;
  /** When its owner removed it, after it was sent. */
  removed_at?: string | null;
}

/** What a page may show as a picture (cloudagent_protocol/attachments.py). Everything else is only ever saved. */
export const PICTURES: ReadonlySet<string> = new Set(["image/png", "image/jpeg", "image/gif", "image/webp"]);

/** Files of one message (cloudagent_protocol/attachments.py). */
export const MAX_FILES = 20;

export const fileUrl = (id: string): string => `/v1/attachments/${encodeURIComponent(id)}`;

export interface Message {
  id: string;
  conversation_id: string;
  author: { type: "user" | "agent" | "system"; id: string; name: string };
  text: string;
  /** Absent: none, as a backend says that is older than they are. */
  attachments?: Attachment[];
  created_at: string;
  deliveries: DeliverySummary[];
  in_reply_to?: string | null;
  run_id?: string | null;
  auto_published?: boolean | null;
  /** The person's message that began it all: its own id for a person's. */
  chain_id?: string | null;
  depth?: number;
  /** What its author worked on when it sent this. */
  caused_by?: string | null;
  /** What it wants instead of its agent's own. */
  model?: string | null;
  permission_mode?: string | null;
}

export interface Rung {
  rung: string;
  at: string;
  actor: string;
  detail?: string | null;
  reason?: string | null;
}

export interface DeliveryTrace {
  id: string;
  message_id: string;
  conversation_id: string;
  agent_id: string;
  run_id?: string | null;
  state: DeliveryState;
  mode?: string;
  retry_of?: string | null;
  outcome?: string | null;
  reason?: string | null;
  /** The machine that it is queued for and that takes nothing, and since when. */
  waits_on?: string | null;
  waits_since?: string | null;
  /** When what it waits for is over, such as a rate limit. */
  waits_until?: string | null;
  attempt: number;
  /** Who asked to stop it, while that is not done yet. */
  interrupted_by?: string | null;
  /** Who asked, after that, to end it at once. */
  ended_by?: string | null;
  rungs: Rung[];
}

/** All that followed from one message of a person's, as far as agents message each other. */
export interface Chain {
  /** The id of the message that began it. */
  id: string;
  conversation_id: string;
  author: Message["author"];
  /** The first words of that message. */
  opening: string;
  state: "active" | "paused" | "stopped";
  turns: number;
  turns_allowed: number;
  usage?: { input_tokens: number; output_tokens: number; cost_usd?: number | null };
  /** Deliveries that wait for a person's decision. */
  waiting: number;
  pauses: number;
  /** Where its messages stand or are worked on. */
  conversation_ids: string[];
  agent_ids: string[];
}

/** What an agent asks a person: whether it may, or what to do. */
export interface Approval {
  id: string;
  kind: "permission" | "question";
  state: "pending" | "answered" | "resolved" | "expired" | "cancelled";
  agent_id: string;
  conversation_id: string;
  delivery_id: string;
  run_id: string;
  tool?: string | null;
  action?: string | null;
  input?: Record<string, unknown> | null;
  truncated?: boolean;
  redacted?: boolean;
  cwd?: string | null;
  files?: Record<string, string>;
  /** What `conversation` and `always` would allow; null: once only. */
  rule?: string | null;
  question?: string | null;
  options?: string[];
  requested_at: string;
  expires_at?: string | null;
  decision?: string | null;
  reason?: string | null;
  answer?: string | null;
  decided_by?: string | null;
  decided_at?: string | null;
  detail?: string | null;
}

export type ApprovalDecision = "once" | "conversation" | "always" | "deny";

export interface Trace {
  message_id: string;
  deliveries: DeliveryTrace[];
}

export interface Usage {
  input_tokens: number;
  output_tokens: number;
  cost_usd?: number | null;
}

export interface Run {
  id: string;
  agent_id: string;
  conversation_id: string;
  delivery_ids: string[];
  driver: string;
  state: "running" | "waiting" | "finished";
  outcome?: string | null;
  reason?: string | null;
  attempt: number;
  usage?: Usage | null;
  started_at: string;
  ended_at?: string | null;
  /** What it changed in its repository; null: nothing, or nothing is known (yet). */
  changes?: Changes | null;
}

/** How much a run changed. */
export interface Changes {
  files: number;
  additions: number;
  deletions: number;
  /** Why there is no diff. */
  problem?: string | null;
}

export interface FileDiff {
  path: string;
  old_path?: string | null;
  status: string;
  additions: number;
  deletions: number;
  binary: boolean;
  patch: string;
  truncated: boolean;
}

export interface RunDiff {
  run_id: string;
  root: string;
  files: FileDiff[];
  /** Files that changed and are not listed. */
  more: number;
  /** Others worked in the same folder meanwhile. */
  shared: boolean;
  /** The first changes may be missing. */
  late: boolean;
  redacted: boolean;
  problem?: string | null;
}

interface At {
  seq: number;
  at: string;
}

export type RunEvent =
  | (At & { type: "started"; driver: string; attempt: number; pid?: number | null; resumed?: boolean })
  | (At & { type: "ready"; model?: string | null })
  | (At & { type: "text"; block: number; text: string })
  | (At & { type: "tool_call"; tool_call_id: string; name: string; input: Record<string, unknown> })
  | (At & { type: "tool_result"; tool_call_id: string; output: string; is_error?: boolean; truncated?: boolean })
  | (At & { type: "usage"; usage: Usage })
  | (At & { type: "retry"; attempt: number; reason: string; delay_s?: number; detail?: string })
  | (At & { type: "stderr"; text: string })
  | (At & { type: "steered"; delivery_id: string; message_id: string })
  | (At & {
      type: "finished";
      outcome: string;
      reason?: string | null;
      detail?: string;
      exit_code?: number | null;
      stderr_tail?: string;
      usage?: Usage | null;
    });

export interface Delta {
  run_id: string;
  conversation_id: string;
  agent_id?: string;
  block: number;
  /** In code points of the block, as the backend counts. */
  offset: number;
  text: string;
}

/** What a message means for the turn that is under way: into it, or in its place. */
export type Mode = "steer" | "interrupt";

/** Drivers whose programs take a message into a turn that is under way (docs/drivers.md); of others it waits its turn. */
export const STEERABLE: ReadonlySet<string> = new Set(["claude_code", "codex"]);

export interface Page<T> {
  data: T[];
  next_cursor: string | null;
}

export interface LogEvent {
  id: number;
  type: string;
  at: string;
  data: Record<string, unknown>;
}

/** States after which nothing more happens to a delivery. */
export const OVER: ReadonlySet<DeliveryState> = new Set(["done", "failed", "cancelled", "dead"]);
