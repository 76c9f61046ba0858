"""The run directory: its layout, opening and lock, provenance, shards, ledger, progress, summary and reading back."""
