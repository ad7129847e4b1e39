-- The catalog of one generation. Tables are filled by indexer/catalog.py; every view below is public.

CREATE TABLE runs (run_id VARCHAR, generation BIGINT, created TIMESTAMP, sequence_length BIGINT, token_dtype VARCHAR,
                   vocab_size BIGINT, tokenizer_sha256 VARCHAR, config JSON, versions JSON);
CREATE TABLE attempts (attempt INTEGER, parent_attempt INTEGER, resume_step BIGINT, num_writers INTEGER,
                       started TIMESTAMP, host VARCHAR, first_step BIGINT, last_step BIGINT,
                       canonical BOOLEAN, canonical_first_step BIGINT, canonical_last_step BIGINT);
CREATE TABLE step_status (attempt INTEGER, global_step BIGINT, status VARCHAR);
CREATE TABLE step_records (attempt INTEGER, global_step BIGINT, dp_rank INTEGER, kind VARCHAR, unix_time_s DOUBLE,
                           name VARCHAR, value DOUBLE, text VARCHAR, late BOOLEAN);
CREATE TABLE shards (shard VARCHAR, attempt INTEGER, first_step BIGINT, last_step BIGINT, num_sequences BIGINT,
                     num_segments BIGINT, num_tokens BIGINT, size_bytes BIGINT);
CREATE TABLE all_sequences (attempt INTEGER, global_step BIGINT, dp_rank INTEGER, microbatch INTEGER, slot INTEGER,
                            sample_index BIGINT, status VARCHAR, loss FLOAT, leaf BLOB, num_tokens BIGINT);
CREATE TABLE all_segments (attempt INTEGER, global_step BIGINT, dp_rank INTEGER, microbatch INTEGER, slot INTEGER,
                           segment INTEGER, start INTEGER, length INTEGER, source VARCHAR, document_id VARCHAR,
                           document_token_offset BIGINT);

CREATE VIEW step_metrics AS
SELECT attempt, global_step, dp_rank, unix_time_s, name, value FROM step_records WHERE kind = 'metrics';

CREATE VIEW gaps AS
SELECT attempt, global_step, dp_rank, value::BIGINT AS num_rows, text AS reason
FROM step_records WHERE kind = 'gap' AND name = 'num_rows';

CREATE VIEW steps AS
SELECT s.attempt, s.global_step, s.status,
       coalesce(a.canonical AND s.global_step BETWEEN a.canonical_first_step
                AND coalesce(a.canonical_last_step, s.global_step), false) AS canonical,
       m.loss, m.lr, m.grad_norm, coalesce(q.num_tokens, 0) AS num_tokens, coalesce(q.num_sequences, 0) AS num_sequences,
       m.unix_time_s
FROM step_status s
JOIN attempts a USING (attempt)
LEFT JOIN (SELECT attempt, global_step, any_value(value) FILTER (name = 'loss') AS loss,
                  any_value(value) FILTER (name IN ('lr', 'learning_rate')) AS lr,
                  any_value(value) FILTER (name = 'grad_norm') AS grad_norm, min(unix_time_s) AS unix_time_s
           FROM step_metrics GROUP BY ALL) m USING (attempt, global_step)
LEFT JOIN (SELECT attempt, global_step, sum(num_tokens)::BIGINT AS num_tokens, count(*) AS num_sequences
           FROM all_sequences GROUP BY ALL) q USING (attempt, global_step);

CREATE VIEW sequences AS
SELECT r.run_id || '/a' || q.attempt || '/s' || q.global_step || '/r' || q.dp_rank || '/m' || q.microbatch || '/q' || q.slot
       AS address, q.*,
       coalesce(a.canonical AND q.global_step BETWEEN a.canonical_first_step
                AND coalesce(a.canonical_last_step, q.global_step), false) AS canonical
FROM all_sequences q JOIN attempts a USING (attempt) CROSS JOIN runs r;

CREATE VIEW segments AS
SELECT q.address, q.attempt, q.global_step, q.dp_rank, q.canonical, g.segment, g.start, g.length, g.source, g.document_id,
       g.document_token_offset
FROM all_segments g JOIN sequences q USING (attempt, global_step, dp_rank, microbatch, slot);

CREATE VIEW documents AS
SELECT source, document_id, count(DISTINCT (attempt, global_step)) AS num_steps, count(*) AS num_segments,
       sum(length)::BIGINT AS num_tokens, min(global_step) AS first_step, max(global_step) AS last_step
FROM segments WHERE canonical GROUP BY ALL;
