-- The catalog of one generation; docs/catalog.md describes every view. Tables are small and filled by indexer/catalog.py.
-- What grows with the run stays in Parquet: catalog.py makes stored_steps, stored_records, stored_sequences and
-- stored_segments over the parts of the generation, and the macros is_canonical(attempt, global_step) and
-- sequence_address(attempt, global_step, dp_rank, microbatch, slot). all_sequences and all_segments are the stored ones with
-- the losses that came late. Where none did, there is no join in `sequences`: a limit, a filter on the step and "the
-- largest first" reach the row groups.

CREATE VIEW runs AS SELECT * FROM run_table;
CREATE VIEW attempts AS SELECT * FROM attempt_table;
CREATE VIEW shards AS SELECT * FROM shard_table;

CREATE VIEW step_metrics AS
SELECT attempt, global_step, dp_rank, unix_time_s, name, value, NULL::VARCHAR AS origin
FROM all_records WHERE kind = 'metrics'
UNION ALL
SELECT attempt, global_step, NULL, unix_time_s, name, value, origin FROM imported_metric_table;

CREATE VIEW gaps AS
SELECT attempt, global_step, dp_rank, value::BIGINT AS num_rows, text AS reason
FROM all_records WHERE kind = 'gap' AND name = 'num_rows';

CREATE VIEW steps AS
SELECT s.attempt, s.global_step, s.status, is_canonical(s.attempt, s.global_step) AS canonical, m.loss, m.lr, m.grad_norm,
       s.num_tokens, s.num_sequences, m.unix_time_s
FROM stored_steps s
LEFT JOIN (SELECT attempt, global_step, arg_min(value, place) FILTER (name = 'loss') AS loss,
                  arg_min(value, place) FILTER (name IN ('lr', 'learning_rate')) AS lr,
                  arg_min(value, place) FILTER (name = 'grad_norm') AS grad_norm,
                  min(unix_time_s) FILTER (origin IS NULL) AS unix_time_s
           FROM (SELECT *, (origin IS NOT NULL, dp_rank, origin) AS place FROM step_metrics) GROUP BY ALL) m USING (attempt, global_step);

CREATE VIEW sequences AS
SELECT sequence_address(attempt, global_step, dp_rank, microbatch, slot) AS address, attempt, global_step, dp_rank,
       microbatch, slot, sample_index, status, is_canonical(attempt, global_step) AS canonical, loss, num_tokens,
       num_segments, num_documents, compression_ratio, repeated_share, seen_share, latin_share, han_share, kana_share,
       hangul_share, cyrillic_share, other_letter_share, digit_share, symbol_share,
       evidence, matched, relation, leaf
FROM all_sequences;

CREATE VIEW segments AS
SELECT sequence_address(attempt, global_step, dp_rank, microbatch, slot) AS address, attempt, global_step, dp_rank,
       microbatch, slot, is_canonical(attempt, global_step) AS canonical, segment, start, length, source, document_id,
       document_token_offset, loss
FROM all_segments;

CREATE VIEW sequence_sources AS
SELECT g.address, g.attempt, g.global_step, g.canonical, g.source, sum(g.length)::BIGINT AS num_tokens,
       sum(g.length) / any_value(q.num_tokens) AS share
FROM segments g JOIN sequences q USING (attempt, global_step, dp_rank, microbatch, slot)
GROUP BY ALL;

CREATE VIEW documents AS
SELECT source, document_id, count(DISTINCT (attempt, global_step)) AS num_steps, count(*) AS num_segments,
       sum(length)::BIGINT AS num_tokens, min(global_step) AS first_step, max(global_step) AS last_step
FROM segments WHERE canonical GROUP BY ALL;
