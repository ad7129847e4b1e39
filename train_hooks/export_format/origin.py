"""Where the rows of an export come from: the hook saw them (the rule), or somebody else did, or nobody.

An export that is not the hook's own says so in the configuration in its `run.json`, under `kiseki.origin`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from train_hooks.export_format.records import RunInfo

__all__ = ["ORIGIN_KEY", "Origin", "OriginKind", "origin_of"]

ORIGIN_KEY = "kiseki.origin"


class OriginKind(StrEnum):
    """observed: by the hook, at the forward. imported: somebody else's record of it. recomputed: from configuration alone."""

    OBSERVED = "observed"
    IMPORTED = "imported"
    RECOMPUTED = "recomputed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an export comes from. what: a noun, what was taken for it; details: what its importer keeps of it, plain JSON."""

    kind: OriginKind
    what: str
    details: Mapping[str, object]

    def sentence(self) -> str:
        """Where the rows come from, in words: `recomputed from …, not observed by the hook`."""
        if self.kind is OriginKind.OBSERVED:
            return f"{self.kind.value} {self.what}"
        return f"{self.kind.value} from {self.what}, not observed by the hook"

    def to_config(self) -> dict[str, object]:
        """What stands in a run's configuration."""
        return {ORIGIN_KEY: {"kind": self.kind.value, "what": self.what, "details": dict(self.details)}}


def origin_of(run: RunInfo) -> Origin:
    """The origin of a run; one of a kind that is not known counts as imported."""
    found = run.config.get(ORIGIN_KEY)
    if not isinstance(found, Mapping):
        return Origin(kind=OriginKind.OBSERVED, what="by the hook, at the forward call", details={})
    kind, details = str(found.get("kind")), found.get("details")
    return Origin(
        kind=OriginKind(kind) if kind in list(OriginKind) else OriginKind.IMPORTED,
        what=str(found.get("what")),
        details=details if isinstance(details, Mapping) else {},
    )
