"""The tables, and the steps that lead to them. A step that was released is never edited."""

import sqlite3
from typing import Final

from cloudagent_backend.store import delivery_schema

_ACCOUNTS: Final = """
CREATE TABLE secrets (          -- the server's own, made once
  name TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT;

CREATE TABLE users (
  id TEXT PRIMARY KEY,
  email TEXT NOT NULL UNIQUE,   -- as typed, but in lower case
  name TEXT NOT NULL,
  password_hash TEXT,           -- argon2id; null: no login by password
  is_admin INTEGER NOT NULL DEFAULT 0,
  created_us INTEGER NOT NULL
) STRICT;

CREATE TABLE logins (           -- one per login: a page session, and a chain of refresh tokens
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id),
  session_hash BLOB NOT NULL UNIQUE,
  created_us INTEGER NOT NULL,
  seen_us INTEGER NOT NULL
) STRICT;
CREATE INDEX logins_by_user ON logins (user_id);

CREATE TABLE refresh_tokens (
  hash BLOB PRIMARY KEY,
  login_id TEXT NOT NULL REFERENCES logins (id) ON DELETE CASCADE,
  used_us INTEGER               -- a second use, later, ends the login
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_by_login ON refresh_tokens (login_id);

CREATE TABLE one_time_links (
  hash BLOB PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('setup', 'page')),
  user_id TEXT REFERENCES users (id),
  expires_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (           -- personal access tokens
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id),
  name TEXT NOT NULL,
  hash BLOB NOT NULL UNIQUE,    -- SHA-256 of a random 238 bit token
  last_four TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  last_used_us INTEGER
) STRICT;
CREATE INDEX tokens_by_user ON tokens (user_id, id);

CREATE TABLE host_machines (
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id),
  name TEXT NOT NULL,
  hostname TEXT NOT NULL,
  os TEXT NOT NULL,
  daemon_version TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'offline',
  last_seen_us INTEGER,
  runtimes TEXT NOT NULL DEFAULT '[]',  -- JSON
  key_hash BLOB UNIQUE,                 -- null once revoked
  key_last_four TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  deleted_us INTEGER
) STRICT;
CREATE INDEX host_machines_by_user ON host_machines (user_id, id);

CREATE TABLE agents (
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users (id),
  host_machine_id TEXT NOT NULL REFERENCES host_machines (id),
  name TEXT NOT NULL,
  driver TEXT NOT NULL,
  model TEXT,
  instructions TEXT,
  mode TEXT NOT NULL,
  command TEXT,                         -- JSON
  env TEXT NOT NULL,                    -- JSON
  cwd TEXT,
  status TEXT NOT NULL DEFAULT 'idle',  -- as of its last run; a host that is away shows as offline
  created_us INTEGER NOT NULL,
  deleted_us INTEGER
) STRICT;
CREATE INDEX agents_by_user ON agents (user_id, id);
CREATE INDEX agents_by_host ON agents (host_machine_id);
CREATE UNIQUE INDEX agents_by_name ON agents (user_id, name) WHERE deleted_us IS NULL;

CREATE TABLE idempotency (
  user_id TEXT NOT NULL,
  key_hash BLOB NOT NULL,
  request_hash BLOB NOT NULL,   -- of method, path and body
  status INTEGER NOT NULL,
  body TEXT,                    -- null: the answer held a secret
  created_us INTEGER NOT NULL,
  PRIMARY KEY (user_id, key_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_us);
"""

_EPHEMERAL_HOSTS: Final = """
ALTER TABLE host_machines ADD COLUMN parent_id TEXT;   -- of an ephemeral host: whose key made it
ALTER TABLE host_machines ADD COLUMN serves TEXT;      -- its one agent; null: all of the parent's
ALTER TABLE host_machines ADD COLUMN takes INTEGER;    -- deliveries that it may still take
CREATE INDEX host_machines_by_parent ON host_machines (parent_id)
  WHERE parent_id IS NOT NULL AND deleted_us IS NULL;

ALTER TABLE deliveries ADD COLUMN lent_by TEXT;        -- the agent's own host, if another has it
ALTER TABLE deliveries ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;  -- meant for that other only
CREATE INDEX deliveries_lent ON deliveries (lent_by)
  WHERE lent_by IS NOT NULL AND state IN ('leased', 'received', 'running', 'waiting');
"""

_DEVICE_LOGINS: Final = """
CREATE TABLE device_logins (    -- machines that wait for a person to let them in (RFC 8628)
  hash BLOB PRIMARY KEY,        -- SHA-256 of the device code
  user_code TEXT NOT NULL UNIQUE,
  hostname TEXT NOT NULL,
  os TEXT NOT NULL,
  daemon_version TEXT NOT NULL,
  address TEXT NOT NULL,        -- where the request came from
  host_id TEXT REFERENCES host_machines (id),  -- the host whose key the machine has shown
  state TEXT NOT NULL DEFAULT 'pending',
  user_id TEXT REFERENCES users (id),          -- who decided
  name TEXT,                    -- what they call the machine
  created_us INTEGER NOT NULL,
  expires_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX device_logins_by_age ON device_logins (expires_us);

-- The key before the last rotation, or before the removal: it opens nothing, but tells who shows it.
ALTER TABLE host_machines ADD COLUMN former_key_hash BLOB;
CREATE INDEX host_machines_by_former_key ON host_machines (former_key_hash);
"""

_CHAINS: Final = """
ALTER TABLE messages ADD COLUMN chain_id TEXT;  -- the message that began it all
ALTER TABLE messages ADD COLUMN depth INTEGER NOT NULL DEFAULT 0;  -- 0: a person's
ALTER TABLE messages ADD COLUMN caused_by TEXT;  -- what its author worked on
ALTER TABLE messages ADD COLUMN asked_in TEXT;  -- to an agent: where its author worked on that
UPDATE messages SET chain_id = coalesce(in_reply_to, id), caused_by = in_reply_to,
  depth = author_type = 'agent';

ALTER TABLE conversations ADD COLUMN pair TEXT;  -- of two agents with each other: both ids, in order
CREATE UNIQUE INDEX conversations_of_pair ON conversations (user_id, pair) WHERE pair IS NOT NULL;

ALTER TABLE deliveries ADD COLUMN chain_id TEXT;  -- null: a person's message, which always goes
ALTER TABLE deliveries ADD COLUMN turn INTEGER;   -- which turn of its chain it was given
ALTER TABLE deliveries ADD COLUMN held INTEGER NOT NULL DEFAULT 0;  -- until a person has decided
CREATE INDEX deliveries_of_chain ON deliveries (chain_id) WHERE chain_id IS NOT NULL;
DROP INDEX deliveries_queued;
CREATE INDEX deliveries_queued ON deliveries (host_id, seq) WHERE state = 'queued' AND held = 0;

CREATE TABLE chains (             -- those in which agents have messaged agents
  id TEXT PRIMARY KEY,            -- the message that began it
  user_id TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'active',
  turns INTEGER NOT NULL DEFAULT 0,
  allowed INTEGER NOT NULL,
  pauses INTEGER NOT NULL DEFAULT 0,
  paused_us INTEGER,
  answers TEXT NOT NULL DEFAULT '[]'  -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX chains_of_user ON chains (user_id, id);
CREATE INDEX chains_paused ON chains (user_id, id) WHERE state = 'paused';
"""

_HOLDS: Final = """
ALTER TABLE host_machines ADD COLUMN holds TEXT NOT NULL DEFAULT '[]';  -- JSON
"""

_HANG_TIMEOUTS: Final = """
ALTER TABLE agents ADD COLUMN hang_timeout_s REAL;  -- null: as its machine has it
"""

_APPROVALS: Final = """
ALTER TABLE agents ADD COLUMN unattended TEXT;  -- null: as `ask`
-- What agents have asked people. `asked` is the event that asked (JSON).
CREATE TABLE approvals (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    host_id TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    delivery_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    asked TEXT NOT NULL,
    asked_us INTEGER NOT NULL,
    decision TEXT,
    reason TEXT,
    answer TEXT,
    decided_by TEXT,
    decided_us INTEGER,
    ended_us INTEGER,
    detail TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX approvals_of_user ON approvals (user_id, id);
CREATE INDEX approvals_pending ON approvals (user_id, id) WHERE state = 'pending';
CREATE INDEX approvals_open_of_delivery ON approvals (delivery_id)
    WHERE state IN ('pending', 'answered');
CREATE INDEX approvals_pending_of_agent ON approvals (agent_id) WHERE state = 'pending';
"""

_RESUMING: Final = """
ALTER TABLE agents ADD COLUMN limits TEXT;           -- JSON of AgentLimits; null: as at first
ALTER TABLE deliveries ADD COLUMN held_for TEXT;     -- of a held one; null: its chain has paused
ALTER TABLE deliveries ADD COLUMN resumes_us INTEGER;  -- when the limit is over that it does over
"""

_USAGE: Final = """
CREATE TABLE usage_days (       -- what an agent's turns used that ended on a day (UTC)
  agent_id TEXT NOT NULL,
  day TEXT NOT NULL,
  user_id TEXT NOT NULL,
  turns INTEGER NOT NULL DEFAULT 0,
  input_tokens INTEGER NOT NULL DEFAULT 0,
  output_tokens INTEGER NOT NULL DEFAULT 0,
  cost_usd REAL NOT NULL DEFAULT 0,
  continues INTEGER NOT NULL DEFAULT 0,  -- so often a person has let it use as much again
  pauses INTEGER NOT NULL DEFAULT 0,
  paused_us INTEGER,
  answers TEXT NOT NULL DEFAULT '[]',    -- JSON
  PRIMARY KEY (agent_id, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_of_user ON usage_days (user_id, day, agent_id);
CREATE INDEX usage_paused ON usage_days (day, agent_id) WHERE paused_us IS NOT NULL;

ALTER TABLE chains ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chains ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chains ADD COLUMN cost_usd REAL NOT NULL DEFAULT 0;
ALTER TABLE chains ADD COLUMN allowed_tokens INTEGER;  -- null: no limit
ALTER TABLE chains ADD COLUMN allowed_cost_usd REAL;
"""

_CONTINUED: Final = """
-- What had been used when a person last let the agent go on that day: from there its budget counts.
ALTER TABLE usage_days ADD COLUMN from_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_days ADD COLUMN from_cost_usd REAL NOT NULL DEFAULT 0;
"""

_ATTACHMENTS: Final = """
CREATE TABLE attachments (      -- files that go with messages; their bytes lie beside this database
  id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL,
  sha256 TEXT NOT NULL,         -- of the bytes, and where they lie
  name TEXT NOT NULL,
  media_type TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  created_us INTEGER NOT NULL,
  host_id TEXT,                 -- the machine that brought it; null: a person did
  agent_id TEXT,                -- whose it is then
  message_id TEXT               -- null: it was not sent yet
) STRICT, WITHOUT ROWID;
CREATE INDEX attachments_by_content ON attachments (sha256);
CREATE INDEX attachments_by_user ON attachments (user_id, size_bytes);
CREATE INDEX attachments_unsent ON attachments (created_us) WHERE message_id IS NULL;

ALTER TABLE messages ADD COLUMN attachments TEXT;  -- JSON; null: none
"""

_REMOVED_FILES: Final = """
-- When its owner removed a file that was sent: its bytes are gone, its name stays with its message.
ALTER TABLE attachments ADD COLUMN removed_us INTEGER;
DROP INDEX attachments_by_content;
CREATE INDEX attachments_by_content ON attachments (sha256) WHERE removed_us IS NULL;
DROP INDEX attachments_by_user;
CREATE INDEX attachments_by_user ON attachments (user_id, size_bytes) WHERE removed_us IS NULL;
"""

_DIFFS: Final = """
CREATE TABLE run_diffs (        -- what runs changed; of each person the newest ones
  run_id TEXT PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
  user_id TEXT NOT NULL,
  body TEXT NOT NULL            -- JSON of Diff
) STRICT, WITHOUT ROWID;
CREATE INDEX run_diffs_of_user ON run_diffs (user_id, run_id);

ALTER TABLE runs ADD COLUMN changes TEXT;  -- JSON of ChangeCount; null: nothing was told
"""

_WORKTREES: Final = """
ALTER TABLE agents ADD COLUMN worktree TEXT;  -- null: as `off`
"""

#: Step n brings a database from version n to n + 1.
MIGRATIONS: Final[tuple[str, ...]] = (
    _ACCOUNTS + delivery_schema.TABLES,
    _EPHEMERAL_HOSTS,
    _DEVICE_LOGINS,
    delivery_schema.EVENT_NUMBERS,
    _CHAINS,
    _HOLDS,
    delivery_schema.MODES,
    delivery_schema.RETRIES,
    _HANG_TIMEOUTS,
    delivery_schema.FEWER_WRITES,
    _APPROVALS,
    _RESUMING,
    delivery_schema.IN_FLIGHT,
    _USAGE,
    _CONTINUED,
    _ATTACHMENTS,
    _DIFFS,
    _WORKTREES,
    delivery_schema.ENDED,
    delivery_schema.WISHES,
    _REMOVED_FILES,
)


class NewerSchemaError(Exception):
    """The database was written by a newer version of this program."""


def version(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def migrate(connection: sqlite3.Connection) -> int:
    """Apply the steps that are missing, each in its own transaction; return how many.

    Raises:
        NewerSchemaError: see there.
    """
    start = version(connection)
    if start > len(MIGRATIONS):
        raise NewerSchemaError(
            f"its schema is version {start}, this program knows {len(MIGRATIONS)}: upgrade it"
        )
    for number, script in enumerate(MIGRATIONS[start:], start + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(MIGRATIONS) - start
