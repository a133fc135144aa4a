"""The ledger, the single source of truth on disk, and the content-addressed store of artefacts."""
