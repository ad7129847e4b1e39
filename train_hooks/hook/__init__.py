"""The hook: what a training process does so that every packed sequence it is trained on is recorded.

A micro-batch flows through the modules like this:

    TRAINING THREAD                                                          module

    loader yields a micro-batch
      │  hook.wrap(loader)                                                   tagged_loader, fetching
      │    names its tensors, takes out segments and sample_index            tensors.batches, tensors.values
      │    copies them, since loaders reuse buffers and trainers edit        tensors.snapshots, tensors.host_copies
      ▼
    pending: fetched and not consumed, in bounded memory                     matching.pending
      │
      │  model(input_ids, …)      a pre-hook takes the arguments             forward_listener
      ▼
    matching: which fetched rows did the forward get?                        matching.consumption
      │    one micro-batch as it was fetched (the usual case)                matching.unchanged
      │    rows in any order, number and form; repetitions; edits            matching.matcher, match_tokens, …
      │    tensors on a device: copied without waiting, matched later        matching.deferred
      │    hook.consume(n): counted, and the forward only observed           matching.counting
      │    record="forward": the forward's own tensors, copied               matching.forward_recorder
      ▼
    staged for the step in progress                                          matching.consumed, export.staging
      │
      │  hook.commit(step)        refused if a forward is unaccounted for    export.exporter, export.committed_step
      ▼
    queue, at most max_queue_bytes                                           export.exporter
    ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
    WRITER THREAD
      │  waits for copies from a device, matches what was deferred
      │  rows, their documents, salted leaves                                export.row_builder
      ▼
    frame: the rows of one step as Arrow, appended and synced                export_format.writing
      ▼
    acknowledgement: the step is durable                                     export_format.acknowledgement
      │  the copies go back to the pool
      ▼
    hook.checkpoint_barrier(step) returns, on every rank                     barrier, collectives

Which forwards count. In training mode with gradients on, each one does. It must have got fetched rows, every byte
compared, or what a forward of the step got already. Anything else makes the step fail with a `Mismatch`: the record would
lack it. In evaluation mode a forward counts if it gets a fetched micro-batch. Forwards before the first fetch and those in
`with hook.paused():` do not count.

Threads.
- The training thread copies, compares and stages. It never waits for a device or for the disk, except when the queue
  is full and in `checkpoint_barrier`.
- The writer thread (`kiseki-writer-r0`, one for each writer rank) does everything behind the queue. Its error is final:
  each later call of the hook raises it.
- The SIGTERM thread (`kiseki-sigterm`) makes durable what is committed when the process is told to end. (`termination`)
- One lock, that of `matching.pending`, guards what training and writer thread both match against.

The other modules. `hook` is the public class. `attaching` is what happens once, before the training: ranks agree
(`collectives`), elect a writer for each data-parallel rank (`election`, `writer_rank`), check the tokenizer
(`tokenizer_check`), claim the attempt. `optimizer_steps` tells whether the optimizer made its step. `same_rows` warns where
several ranks record the same data. `tensors.kernels` are the compiled passes that copy and compare int64.
`tensors.scopes` decides which tensors have an item for each row. `matching.step_state` holds what happened in one step.
"""
