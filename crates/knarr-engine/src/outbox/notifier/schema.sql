CREATE TABLE IF NOT EXISTS knarr_events (
    node      text        NOT NULL,  -- identity of the state directory
    id        bigint      NOT NULL,  -- grows with time on one node
    node_name text        NOT NULL,
    at        timestamptz NOT NULL,
    event     text        NOT NULL CHECK (event IN ('enqueued', 'started', 'progress', 'completed', 'failed')),
    job       text        NOT NULL,
    run       bigint,
    path      text        NOT NULL,
    action    text,                  -- what was done: created, updated, deleted, ...
    size      bigint,                -- length of the file in bytes
    done      bigint,                -- bytes that are over, of 'progress'
    message   text,                  -- what went wrong, of 'failed'
    PRIMARY KEY (node, id)
);
CREATE INDEX IF NOT EXISTS knarr_events_of_file ON knarr_events (node, job, path, id DESC);
CREATE OR REPLACE VIEW knarr_files AS
    SELECT DISTINCT ON (node, job, path) *
    FROM knarr_events
    ORDER BY node, job, path, id DESC;
