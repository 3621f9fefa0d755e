"""Results as text."""

from latency_lab.report.profile_text import describe
from latency_lab.report.text import table

__all__ = ["describe", "table"]
