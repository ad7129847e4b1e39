"""Questions to the catalog that people ask again and again, by a short name. docs/catalog.md has the views."""

from collections.abc import Mapping

__all__ = ["QUERIES", "TITLES"]

TITLES: Mapping[str, str] = {
    "sources": "Tokens of each source", "loss": "Loss and learning rate by step", "worst": "Sequences with the largest loss",
    "again": "Documents that were seen most often", "mix": "Sources by hundredths of the run",
    "repeats": "Sequences that repeat themselves most", "attempts": "Attempts and where they resumed", "gaps": "Gaps",
    "sizes": "Sequences and tokens by step status", "metrics": "Metrics that the trainer logged",
}  # fmt: skip
QUERIES: Mapping[str, str] = {
    "sources": (
        "SELECT source, count(*) AS num_segments, sum(length)::BIGINT AS num_tokens,\n"
        "       count(DISTINCT document_id) AS num_documents\n"
        "FROM segments WHERE canonical GROUP BY source ORDER BY num_tokens DESC"
    ),
    "loss": "SELECT global_step, loss, lr FROM steps WHERE canonical ORDER BY global_step",
    "worst": (
        "SELECT address, loss, num_documents, compression_ratio, repeated_share\n"
        "FROM sequences WHERE canonical AND loss IS NOT NULL ORDER BY loss DESC LIMIT 50"
    ),
    "again": "SELECT * FROM documents ORDER BY num_segments DESC, num_tokens DESC LIMIT 50",
    "mix": (
        "SELECT global_step * 100 // (SELECT max(global_step) + 1 FROM steps) AS hundredth, source,\n"
        "       sum(length)::BIGINT AS num_tokens\n"
        "FROM segments WHERE canonical GROUP BY ALL ORDER BY hundredth, num_tokens DESC"
    ),
    "repeats": (
        "SELECT address, repeated_share, compression_ratio, seen_share\n"
        "FROM sequences WHERE canonical ORDER BY repeated_share DESC, address LIMIT 50"
    ),
    "attempts": "SELECT attempt, parent_attempt, resume_step, first_step, last_step, canonical FROM attempts ORDER BY attempt",
    "gaps": "SELECT * FROM gaps ORDER BY attempt, global_step LIMIT 1000",
    "sizes": (
        "SELECT status, canonical, count(*) AS num_steps, sum(num_sequences)::BIGINT AS num_sequences,\n"
        "       sum(num_tokens)::BIGINT AS num_tokens\n"
        "FROM steps GROUP BY ALL ORDER BY num_steps DESC"
    ),
    "metrics": (
        "SELECT name, count(*) AS num_values, min(global_step) AS first_step, max(global_step) AS last_step,\n"
        "       avg(value) AS mean\n"
        "FROM step_metrics GROUP BY name ORDER BY name"
    ),
}  # fmt: skip
