-- Schema version 5. Never edited after a release: what comes later is 0006.sql.

-- Up to which record the chain of custody was pruned, and the hash of that record, from which the rest goes
-- on. The record `checkpoint` of the chain says the same.
CREATE TABLE custody_base (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    count      INTEGER NOT NULL,
    hash       BLOB    NOT NULL,
    checkpoint INTEGER NOT NULL,
    -- When the first record was made that is left.
    kept_since INTEGER
) STRICT;
INSERT INTO custody_base VALUES (1, 0, zeroblob(32), 0, NULL);

-- What a checkpoint covers may go.
DROP TRIGGER custody_is_never_deleted;
CREATE TRIGGER custody_is_never_deleted BEFORE DELETE ON custody
WHEN old.seq > (SELECT count FROM custody_base)
BEGIN SELECT RAISE(ABORT, 'custody records are never deleted'); END;

-- Jobs and endpoints that were added while the node was running, beside those of its file.
CREATE TABLE definitions (
    -- 0 endpoint, 1 job.
    kind       INTEGER NOT NULL,
    name       TEXT NOT NULL,
    -- JSON, in the form of the file's `endpoints.NAME` and `jobs.NAME`. Never holds a secret.
    definition TEXT NOT NULL,
    added_at   INTEGER NOT NULL,
    added_by   TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- `knarr history --since`, however many runs there are.
CREATE INDEX runs_started ON runs (started_at, id);

-- What is parked, however much waits.
CREATE INDEX dirty_parked ON dirty (pair, key) WHERE parked IS NOT NULL;
