"""Results as text."""

from latency_lab.report.profile_text import boards_line, describe
from latency_lab.report.text import table

__all__ = ["boards_line", "describe", "table"]
