-- Schema version 3. Never edited after a release: what comes later is 0004.sql.

-- FAIL instead of ABORT: for ABORT, SQLite keeps a copy of each page that a record changes, so that it could
-- undo the one statement. Who appends undoes the whole transaction anyway.
DROP TRIGGER custody_is_only_appended_to;
CREATE TRIGGER custody_is_only_appended_to BEFORE INSERT ON custody
WHEN new.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM custody)
BEGIN SELECT RAISE(FAIL, 'custody records are only appended'); END;
