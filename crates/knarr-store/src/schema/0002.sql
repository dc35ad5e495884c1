-- Schema version 2. Never edited after a release: what comes later is 0003.sql.

-- What is about to be flipped to its final name, or removed; gone with the record of it. `items` is
-- described at the top of intents.rs.
CREATE TABLE intents (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    pair  INTEGER NOT NULL,
    run   INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    items BLOB    NOT NULL
) STRICT;
CREATE INDEX intents_pair ON intents (pair, id);
