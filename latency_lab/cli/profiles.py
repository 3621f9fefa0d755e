"""list the profiles that ship with latency-lab"""

from __future__ import annotations

import argparse
from typing import Any

from latency_lab.cli.output import emit
from latency_lab.profiles import DeviceProfile, shipped_profiles
from latency_lab.report import table


class Listing:
    """The shipped profiles."""

    def __init__(self, shipped: dict[str, DeviceProfile]) -> None:
        self._shipped = shipped

    def __str__(self) -> str:
        if not self._shipped:
            return "No profile ships with this version. Make one: latency-lab profile --runtime litert -o profile.json"
        rows = [
            [name, p.runtime or "-", p.threads or "-", p.precision, p.kind, _device(p), _taken(p)]
            for name, p in self._shipped.items()
        ]
        return table(["name", "runtime", "threads", "precision", "kind", "device", "taken"], rows)

    def to_json(self) -> list[dict[str, Any]]:
        """One object a profile."""
        keys = ("runtime", "threads", "precision", "kind", "digest")
        return [
            {"name": name, **{key: getattr(p, key) for key in keys}, "device": _device(p), "taken": _taken(p)}
            for name, p in self._shipped.items()
        ]


def _device(profile: DeviceProfile) -> str:
    """What computes: the accelerator, or the processor."""
    return str(profile.environment.get("device") or profile.environment.get("cpu") or "-")


def _taken(profile: DeviceProfile) -> str:
    """The day on which it was measured, or where else its numbers are from."""
    return str(profile.environment.get("taken") or profile.environment.get("provenance") or "-")[:10]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """profiles takes nothing but --json."""


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    emit(Listing({name: DeviceProfile.load(path) for name, path in shipped_profiles().items()}), as_json=args.json)
    return 0
