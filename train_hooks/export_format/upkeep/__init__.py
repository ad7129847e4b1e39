"""Changes to an export after training: repair, compaction, takedown."""
