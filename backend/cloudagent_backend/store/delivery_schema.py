"""Tables of conversations, messages, deliveries, runs, the event log and the hosts' links.

`store/schema.py` runs these statements as its migrations; a released one is never edited.
"""

from typing import Final

TABLES: Final = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    title TEXT,
    created_us INTEGER NOT NULL,
    last_message_us INTEGER
) STRICT;
CREATE INDEX conversations_of_user ON conversations (user_id, id);

CREATE TABLE conversation_agents (
    conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    agent_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (conversation_id, agent_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX conversations_of_agent ON conversation_agents (agent_id, conversation_id);

-- `position` is the order of arrival here: ids of agents' messages are made on machines whose clocks
-- may differ, and so cannot order a conversation.
CREATE TABLE messages (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    author_type TEXT NOT NULL,
    author_id TEXT NOT NULL,
    author_name TEXT NOT NULL,
    text TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    in_reply_to TEXT,
    run_id TEXT,
    auto_published INTEGER
) STRICT;
CREATE INDEX messages_of_conversation ON messages (conversation_id, position);

-- `rungs` is a JSON array that is only ever appended to.
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    host_id TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    message_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    reason TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    run_id TEXT,
    interrupted_by TEXT,
    rungs TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_of_message ON deliveries (message_id);
CREATE INDEX deliveries_of_conversation ON deliveries (conversation_id, id);
CREATE INDEX deliveries_queued ON deliveries (host_id, seq) WHERE state = 'queued';
CREATE INDEX deliveries_in_flight ON deliveries (host_id, seq)
    WHERE state IN ('leased', 'received', 'running', 'waiting');
CREATE INDEX deliveries_open_of_agent ON deliveries (agent_id, seq)
    WHERE state IN ('queued', 'leased', 'received', 'running', 'waiting');

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    host_id TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    delivery_ids TEXT NOT NULL,
    driver TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    reason TEXT,
    attempt INTEGER NOT NULL,
    session_id TEXT,
    usage TEXT,
    seen INTEGER NOT NULL DEFAULT 0,
    started_us INTEGER NOT NULL,
    ended_us INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_of_conversation ON runs (conversation_id, id);
CREATE INDEX runs_live_of_host ON runs (host_id, agent_id) WHERE state <> 'finished';

CREATE TABLE run_events (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT;

CREATE TABLE events (
    user_id TEXT NOT NULL,
    id INTEGER NOT NULL,
    type TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (user_id, id)
) STRICT;
-- `trimmed` is the newest id that is no longer kept.
CREATE TABLE event_logs (
    user_id TEXT PRIMARY KEY,
    last_id INTEGER NOT NULL,
    trimmed INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- One end of a host's link: see cloudagent_protocol/link.py for the watermarks.
CREATE TABLE links (
    host_id TEXT PRIMARY KEY,
    epoch TEXT NOT NULL,
    accepted INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT 0,
    last INTEGER NOT NULL DEFAULT 0,
    delivery_seq INTEGER NOT NULL DEFAULT 0,
    backlog INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Numbered frames to a host, kept until acknowledged.
CREATE TABLE outbox (
    host_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    delivery_id TEXT,
    frame TEXT NOT NULL,
    PRIMARY KEY (host_id, seq)
) STRICT, WITHOUT ROWID;
"""

# The newest id is the newest line's own: a counter beside it was one more write for each line. What
# a log that is empty now had before is its `trimmed`.
EVENT_NUMBERS: Final = """
UPDATE event_logs SET trimmed = last_id
    WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.user_id = event_logs.user_id);
ALTER TABLE event_logs DROP COLUMN last_id;
"""

# How a message takes its place, and a line of its own for each agent.
MODES: Final = """
ALTER TABLE deliveries ADD COLUMN mode TEXT NOT NULL DEFAULT 'queue';
-- The smallest number given so far: those of deliveries that interrupt count down from -1.
ALTER TABLE links ADD COLUMN front_seq INTEGER NOT NULL DEFAULT 0;
DROP INDEX deliveries_queued;
CREATE INDEX deliveries_queued ON deliveries (host_id, agent_id, seq)
    WHERE state = 'queued' AND held = 0;
CREATE INDEX deliveries_held ON deliveries (host_id) WHERE state = 'queued' AND held = 1;
"""

# What was written at each step of a delivery and is seldom or never asked for. An agent's open ones
# are found by its machines; what a host has acknowledged is what its outbox no longer has.
FEWER_WRITES: Final = """
DROP INDEX deliveries_open_of_agent;
ALTER TABLE links DROP COLUMN acked;
"""

# Whether a delivery is in flight, apart from `state`: an index on that was written anew by every step
# that a machine reports, though what it held did not change.
IN_FLIGHT: Final = """
ALTER TABLE deliveries ADD COLUMN in_flight INTEGER NOT NULL DEFAULT 0;
UPDATE deliveries SET in_flight = 1 WHERE state IN ('leased', 'received', 'running', 'waiting');
DROP INDEX deliveries_in_flight;
CREATE INDEX deliveries_in_flight ON deliveries (host_id, seq) WHERE in_flight = 1;
DROP INDEX deliveries_lent;
CREATE INDEX deliveries_lent ON deliveries (lent_by) WHERE lent_by IS NOT NULL AND in_flight = 1;
"""

ENDED: Final = """
ALTER TABLE deliveries ADD COLUMN ended_by TEXT;      -- who asked to end it at once
"""

# What a message wants instead of its agent's own.
WISHES: Final = """
ALTER TABLE messages ADD COLUMN model TEXT;
ALTER TABLE messages ADD COLUMN permission_mode TEXT;
"""

RETRIES: Final = """
ALTER TABLE deliveries ADD COLUMN retry_of TEXT;      -- the earlier delivery that it does over
ALTER TABLE deliveries ADD COLUMN retried_by TEXT;    -- who asked for that
"""
