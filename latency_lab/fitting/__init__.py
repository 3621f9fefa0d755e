"""From a journal, or from timings of others, to a device profile. The one room that imports scikit-learn."""

from latency_lab.fitting.fit import fit_profile
from latency_lab.fitting.imported import fit_csv

__all__ = ["fit_csv", "fit_profile"]
