"""What a verification found: records, no prints."""

from dataclasses import dataclass, field
from enum import StrEnum

from train_hooks.export_format.reading.summaries import EvidenceShares

__all__ = ["Finding", "Report", "Severity"]


class Severity(StrEnum):
    """How bad a finding is."""

    DAMAGED = "damaged"
    INCOMPLETE = "incomplete"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that a verification found. `path` is relative to the run directory; `message` says what to do."""

    severity: Severity
    path: str
    message: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The outcome of a verification, and how much it looked at. shares: how the rows are known."""

    findings: tuple[Finding, ...]
    num_files: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    size_bytes: int = 0
    shares: EvidenceShares = field(default_factory=EvidenceShares)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    @property
    def exit_code(self) -> int:
        """0 all holds, 1 something is damaged, 3 something is missing that the writers declared or that never came."""
        if self.of(Severity.DAMAGED):
            return 1
        return 3 if self.of(Severity.INCOMPLETE) else 0
