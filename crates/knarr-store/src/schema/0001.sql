-- Schema version 1. Never edited after a release: what comes later is 0002.sql.

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE pairs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT    NOT NULL UNIQUE,
    source      TEXT    NOT NULL,
    destination TEXT    NOT NULL,
    job         TEXT,
    created_at  INTEGER NOT NULL
) STRICT;

-- What both sides agreed on last. `key` is the path in tree order (a directory ends in `/`).
CREATE TABLE synced (
    pair                 INTEGER NOT NULL,
    key                  BLOB    NOT NULL,
    source_identity      INTEGER,
    destination_identity INTEGER,
    value                BLOB    NOT NULL,
    PRIMARY KEY (pair, key)
) WITHOUT ROWID, STRICT;
CREATE INDEX synced_source_identity ON synced (pair, source_identity)
    WHERE source_identity IS NOT NULL;
CREATE INDEX synced_destination_identity ON synced (pair, destination_identity)
    WHERE destination_identity IS NOT NULL;

-- The queue: paths whose observation differs from the synced tree.
CREATE TABLE dirty (
    pair             INTEGER NOT NULL,
    key              BLOB    NOT NULL,
    kind             INTEGER NOT NULL,
    observed         BLOB,
    generation       INTEGER NOT NULL,
    first_seen       INTEGER NOT NULL,
    last_seen        INTEGER NOT NULL,
    ready_at         INTEGER NOT NULL,
    attempts         INTEGER NOT NULL DEFAULT 0,
    next_attempt_at  INTEGER,
    complete_because TEXT,
    last_error       TEXT,
    parked           TEXT,
    renamed_from     BLOB,
    due_at           INTEGER GENERATED ALWAYS AS (max(ready_at, coalesce(next_attempt_at, ready_at))) VIRTUAL,
    PRIMARY KEY (pair, key)
) WITHOUT ROWID, STRICT;
CREATE INDEX dirty_due ON dirty (pair, due_at) WHERE parked IS NULL;

CREATE TABLE in_flight (
    pair        INTEGER NOT NULL,
    path        BLOB    NOT NULL,
    bytes_done  INTEGER NOT NULL,
    bytes_total INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    PRIMARY KEY (pair, path)
) WITHOUT ROWID, STRICT;

CREATE TABLE runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    pair        INTEGER,
    job         TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    cause       TEXT    NOT NULL,
    process     TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER,
    counts      TEXT    NOT NULL,
    message     TEXT
) STRICT;
CREATE INDEX runs_job ON runs (job, id);
CREATE INDEX runs_running ON runs (id) WHERE state = 'running';

-- The chain of custody. Only ever appended to.
CREATE TABLE custody (
    seq       INTEGER PRIMARY KEY,
    format    INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    run       INTEGER NOT NULL,
    job       TEXT    NOT NULL,
    action    INTEGER NOT NULL,
    directory BLOB    NOT NULL,
    name      BLOB    NOT NULL,
    body      BLOB    NOT NULL,
    hash      BLOB    NOT NULL
) STRICT;
CREATE INDEX custody_path ON custody (name, directory, seq);
CREATE INDEX custody_run ON custody (run, seq);
CREATE INDEX custody_job ON custody (job, seq);
CREATE INDEX custody_action ON custody (action, seq);
CREATE INDEX custody_at ON custody (at, seq);

CREATE TABLE custody_head (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    count    INTEGER NOT NULL,
    hash     BLOB    NOT NULL
) STRICT;
INSERT INTO custody_head VALUES (1, 0, zeroblob(32));

CREATE TRIGGER custody_is_never_changed BEFORE UPDATE ON custody
BEGIN SELECT RAISE(ABORT, 'custody records are never changed'); END;
CREATE TRIGGER custody_is_never_deleted BEFORE DELETE ON custody
BEGIN SELECT RAISE(ABORT, 'custody records are never deleted'); END;
CREATE TRIGGER custody_is_only_appended_to BEFORE INSERT ON custody
WHEN new.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM custody)
BEGIN SELECT RAISE(ABORT, 'custody records are only appended'); END;

CREATE TABLE uploads (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    pair        INTEGER,
    endpoint    TEXT    NOT NULL,
    destination BLOB    NOT NULL,
    upload      TEXT    NOT NULL,
    part_bytes  INTEGER NOT NULL,
    total_bytes INTEGER NOT NULL,
    source      BLOB    NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX uploads_destination ON uploads (endpoint, destination);
CREATE INDEX uploads_expiry ON uploads (expires_at);

CREATE TABLE parts (
    upload   INTEGER NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    number   INTEGER NOT NULL,
    receipt  TEXT    NOT NULL,
    checksum TEXT,
    size     INTEGER NOT NULL,
    PRIMARY KEY (upload, number)
) WITHOUT ROWID, STRICT;

CREATE TABLE partials (
    endpoint     TEXT    NOT NULL,
    path         BLOB    NOT NULL,
    staged       BLOB    NOT NULL,
    source       BLOB    NOT NULL,
    total_bytes  INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    PRIMARY KEY (endpoint, path)
) WITHOUT ROWID, STRICT;
CREATE INDEX partials_age ON partials (updated_at);

CREATE TABLE deletions (
    run      INTEGER NOT NULL,
    position INTEGER NOT NULL,
    side     INTEGER NOT NULL,
    path     BLOB    NOT NULL,
    seen     BLOB    NOT NULL,
    PRIMARY KEY (run, position)
) WITHOUT ROWID, STRICT;

CREATE TABLE holds (
    pair        INTEGER PRIMARY KEY,
    kind        TEXT    NOT NULL,
    deletes     INTEGER NOT NULL,
    total       INTEGER NOT NULL,
    reason      TEXT    NOT NULL,
    digest      BLOB    NOT NULL,
    held_at     INTEGER NOT NULL,
    approved_by TEXT,
    approved_at INTEGER
) STRICT;

CREATE TABLE roots (
    pair     INTEGER NOT NULL,
    side     INTEGER NOT NULL,
    identity TEXT    NOT NULL,
    marker   TEXT,
    seen_at  INTEGER NOT NULL,
    PRIMARY KEY (pair, side)
) WITHOUT ROWID, STRICT;

CREATE TABLE endpoints (
    name       TEXT PRIMARY KEY,
    state      INTEGER NOT NULL,
    since      INTEGER NOT NULL,
    last_error TEXT,
    next_probe INTEGER,
    seen_at    INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE secrets (
    name       TEXT PRIMARY KEY,
    key_id     BLOB    NOT NULL,
    nonce      BLOB    NOT NULL,
    ciphertext BLOB    NOT NULL,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
