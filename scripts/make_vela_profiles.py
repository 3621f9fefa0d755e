#!/usr/bin/env python3
"""Writes the profiles of Arm Ethos-U NPUs in device_profiles/: estimates of Vela, Arm's compiler, not measurements.

    scripts/make_vela_profiles.py [--only ethos-u55-128 ...]

Each is a general profile of the first pass alone (`plan.general_plan`, without the refinement): the same operations,
and so the same numbers, each time, for one version of Vela and of latency-lab. About six minutes of one core each.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import latency_lab as ll
from latency_lab.plan import general_plan
from latency_lab.profiles import DeviceProfile

FOLDER = Path(__file__).parents[1] / "device_profiles"
ACCELERATORS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-256")


def profile(accelerator: str) -> DeviceProfile:
    """The general profile of an accelerator under Vela's default configurations."""
    runtime = f"vela:{accelerator}"
    with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
        journal = ll.profile(general_plan(runtime, "int8"), runtime=runtime, journal=Path(folder) / "journal.jsonl")
        return ll.fit_profile(journal, name=accelerator)


def main() -> None:
    """Write every profile."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ACCELERATORS, default=ACCELERATORS)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default device_profiles/)")
    args = parser.parse_args()
    for accelerator in args.only:
        path = args.out / f"{accelerator}.json.gz"
        profile(accelerator).save(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
