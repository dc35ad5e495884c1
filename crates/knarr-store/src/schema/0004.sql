-- Schema version 4. Never edited after a release: what comes later is 0005.sql.

-- What is known of each job, of the file or not, that its configuration does not say.
CREATE TABLE job_states (
    name           TEXT PRIMARY KEY,
    -- NULL: not paused.
    paused_at      INTEGER,
    paused_by      TEXT,
    -- The latest time of its schedule that was dealt with: run, or left out on purpose.
    fired_until    INTEGER
) STRICT;

-- What somebody outside is to be told or to do: hooks and alerts. A row goes when it was delivered.
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The idempotency key, which the receiver sees: the same for every attempt.
    key        TEXT NOT NULL UNIQUE,
    target     TEXT NOT NULL,
    -- '' for what belongs to no job. What is of one job and one target keeps its order.
    job        TEXT NOT NULL,
    run        INTEGER,
    -- 0 hook after a file, 1 hook after a run, 2 alert.
    kind       INTEGER NOT NULL,
    -- JSON.
    payload    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    due_at     INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    -- Why nothing more is tried until a person acts; NULL: it is tried.
    parked     TEXT
) STRICT;

CREATE INDEX outbox_lanes ON outbox (target, job, id) WHERE parked IS NULL;
CREATE INDEX outbox_parked ON outbox (id) WHERE parked IS NOT NULL;

-- What is known about each subject of each alert rule.
CREATE TABLE alert_states (
    rule    TEXT NOT NULL,
    -- `job:invoices`, `endpoint:partner`, `credential:host.pem`.
    subject TEXT NOT NULL,
    -- JSON, see knarr_core::alert::AlertState.
    state   TEXT NOT NULL,
    PRIMARY KEY (rule, subject)
) STRICT, WITHOUT ROWID;

-- What happened to files, for those who follow it from a cursor: the PostgreSQL notifier and others.
CREATE TABLE events (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    -- 0 enqueued, 1 started, 2 progress, 3 completed, 4 failed.
    what      INTEGER NOT NULL,
    job       TEXT NOT NULL,
    run       INTEGER,
    path      BLOB NOT NULL,
    -- What was done, such as `created`; only of what completed.
    action    TEXT,
    size      INTEGER,
    done      INTEGER,
    message   TEXT
) STRICT;

-- How far each follower came. What all have is removed.
CREATE TABLE event_cursors (
    follower TEXT PRIMARY KEY,
    id       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
