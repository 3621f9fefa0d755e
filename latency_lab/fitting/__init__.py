"""From measured blocks to a device profile. The one room that imports scikit-learn."""

from latency_lab.fitting.fit import fit_profile

__all__ = ["fit_profile"]
