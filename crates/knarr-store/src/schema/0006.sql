-- Schema version 6. Never edited after a release: what comes later is 0007.sql.

-- What a run of a job publishes together, or not at all.
CREATE TABLE batches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    pair       INTEGER NOT NULL,
    run        INTEGER NOT NULL,
    begun_at   INTEGER NOT NULL,
    -- When it was decided that all of it gets its final names: from then on that is finished, whatever
    -- happens. Until then it can be taken back.
    decided_at INTEGER
) STRICT;
CREATE INDEX batches_of_pair ON batches (pair, id);

-- What is to become visible at the destination, one row a file.
CREATE TABLE batch_files (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    batch  INTEGER NOT NULL,
    pair   INTEGER NOT NULL,
    -- The path below the source's root.
    source BLOB    NOT NULL,
    -- The final path below the destination's root.
    path   BLOB    NOT NULL,
    -- Where it lies until then; NULL if it is at the final path already.
    staged BLOB,
    -- 0 is being staged, 1 is staged and verified, 2 is published and on record.
    state  INTEGER NOT NULL,
    -- Those of turn 0 are published first, then those of turn 1: a manifest comes last.
    turn   INTEGER NOT NULL,
    -- JSON of the engine, with a version: what is recorded when it is published.
    item   TEXT
) STRICT;
CREATE UNIQUE INDEX batch_files_by_path ON batch_files (pair, path);
CREATE INDEX batch_files_by_source ON batch_files (pair, source);
CREATE INDEX batch_files_in_turn ON batch_files (batch, state, turn, id);
