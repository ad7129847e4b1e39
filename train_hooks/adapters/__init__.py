"""One thin module a framework over the same core: `ExportHook`.

An adapter finds where its framework fetches, feeds, steps and saves, and calls the hook there. It imports its framework,
and nobody else does; `docs/trainers.md` has the lines to paste for each. The core is all that plain torch loops need.
"""

__all__: list[str] = []
