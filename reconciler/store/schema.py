"""The ledger's tables, one entry per version. Migrations run forward only, each in its own transaction."""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    -- What is ours: the resource, and the spec it was last made from.
    CREATE TABLE owned (
        ref TEXT PRIMARY KEY, digest TEXT NOT NULL, spec TEXT NOT NULL, since REAL NOT NULL
    ) WITHOUT ROWID;

    -- intent (opened) → effect → outcome (closed). A row without an outcome is a crash to settle by looking.
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, epoch INTEGER NOT NULL, ref TEXT NOT NULL, verb TEXT NOT NULL,
        intent TEXT NOT NULL, opened REAL NOT NULL, closed REAL, outcome TEXT
    );

    -- Every process of ours. The row is written before the spawn; pid, start and boot follow it.
    CREATE TABLE processes (
        nonce TEXT PRIMARY KEY, ref TEXT NOT NULL, digest TEXT NOT NULL, host TEXT NOT NULL, port INTEGER NOT NULL,
        inputs TEXT NOT NULL, log TEXT NOT NULL, created REAL NOT NULL,
        pid INTEGER, start TEXT, boot TEXT, ready REAL, retiring REAL
    ) WITHOUT ROWID;

    -- Verified bytes in the store, and how the file looked when they were verified.
    CREATE TABLE artifacts (
        digest TEXT PRIMARY KEY, size INTEGER NOT NULL, token TEXT NOT NULL, verified REAL NOT NULL
    ) WITHOUT ROWID;

    -- What a source was found to be: trust on first use.
    CREATE TABLE pins (source TEXT PRIMARY KEY, facts TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;

    CREATE TABLE troubles (ref TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, ref TEXT NOT NULL, type TEXT NOT NULL,
        message TEXT NOT NULL
    );

    CREATE TABLE generations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, digest TEXT NOT NULL, manifest TEXT NOT NULL
    );
    """,
    """
    ALTER TABLE owned ADD COLUMN protect INTEGER NOT NULL DEFAULT 0;

    -- How a generation came about and what became of it: applying, ready, failed.
    ALTER TABLE generations ADD COLUMN state TEXT NOT NULL DEFAULT 'ready';
    ALTER TABLE generations ADD COLUMN locked TEXT NOT NULL DEFAULT '';
    ALTER TABLE generations ADD COLUMN policy TEXT NOT NULL DEFAULT '';
    ALTER TABLE generations ADD COLUMN routes TEXT NOT NULL DEFAULT '';
    ALTER TABLE generations ADD COLUMN targets TEXT NOT NULL DEFAULT '';
    INSERT OR IGNORE INTO meta SELECT 'current', number FROM generations ORDER BY number DESC LIMIT 1;

    UPDATE pins SET source = substr(source, 1, length(source) - 1) || ',""]';

    -- Conditions as they were last told: so that the time of a change outlives us.
    CREATE TABLE conditions (
        ref TEXT NOT NULL, type TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL,
        PRIMARY KEY (ref, type)
    ) WITHOUT ROWID;

    -- What had to be put back, and what was seen of it.
    CREATE TABLE restored (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, ref TEXT NOT NULL, at REAL NOT NULL, saw TEXT NOT NULL
    );
    """,
    """
    -- When all of it was last hashed, and the CRC-32 of each 16 MiB of it (JSON, hex): which of them to fetch again.
    -- The long column is the last one, so that looking at the others does not read it.
    ALTER TABLE artifacts ADD COLUMN checked REAL NOT NULL DEFAULT 0;
    ALTER TABLE artifacts ADD COLUMN blocks TEXT NOT NULL DEFAULT '[]';
    UPDATE artifacts SET checked = verified;
    """,
)

VERSION = len(MIGRATIONS)
EVENTS_KEPT = 10_000
JOURNAL_KEPT = 10_000  # closed entries
RESTORED_KEPT = 1_000
