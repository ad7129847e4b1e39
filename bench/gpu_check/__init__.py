"""Checks the export hook on one GPU: what it records, that it never waits for the device, and what it costs.

    python bench/gpu_check                               # at most six minutes on one data-centre GPU
    python bench/gpu_check --require --json result.json  # no GPU is a failure; the result goes into a file as well
    python bench/gpu_check --emulate                     # what can run on a CPU, small: tries the checks themselves
    python bench/gpu_check --only graphs cost            # some groups alone

The small GPT of most checks has a pre-hook of the check's own, which runs after ours and clones what the forward got, tokens
and labels. The export, read back with `ReplayDataset`, must equal these clones bit for bit, and every row and tensor must
have the evidence `forward`. The clones stay on the device until the training is over, and kernels that only wait keep the
training stream behind the host: a copy of ours that is taken too early or too late shows.

The groups and their checks, most of them with the loader's micro-batches fetched on the host and on the device:

- wrappers: a training (plain, on a stream of its own, DDP, FSDP2)
- loaders: DataLoader with workers
- edits: between the fetch and the forward; activation checkpointing around the model; hook.discard, then hook.trained_on
- tokens: edited tokens are refused; edited in place on the device alone, they are refused too; one static buffer
- waiting: fetch, forward and commit (no synchronisation, and no wait behind queued work)
- graphs: replays of a CUDA graph, with hook.forwarded; make_graphed_callables before attach; a forward under capture is
  refused in words; a graph is captured while the writer thread is at work
- cost: step time and memory of a transformer; cost under a backlog
- compile: torch.compile

Groups of checks are processes of their own with a limit of time, so that an error of the device or a hang ends its process
alone. Costs are figures; they pass whatever they are, but for the backlog of fetched micro-batches, which must not cost more
as it grows. Without a CUDA device nothing is checked, and stderr says so.
"""
