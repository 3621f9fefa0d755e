#!/usr/bin/env python3
"""Writes the profiles of Arm Ethos-U NPUs in device_profiles/: estimates of Vela, Arm's compiler, not measurements.

    scripts/make_vela_profiles.py [--only ethos-u55-128 ...]

Each is a general profile of the first pass alone (`plan.general_plan`, without the refinement): the same operations,
and so the same numbers, each time, for one version of Vela and of latency-lab. About six minutes of one core each.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import latency_lab as ll
from latency_lab.plan import general_plan
from latency_lab.profiles import DeviceProfile

FOLDER = Path(__file__).parents[1] / "device_profiles"
JOURNALS = Path.home() / ".cache" / "latency-lab" / "vela"
ACCELERATORS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-256")


def profile(accelerator: str, folder: Path) -> DeviceProfile:
    """The general profile of an accelerator under Vela's default configurations; a run that was stopped goes on from
    the journal of this plan."""
    runtime = f"vela:{accelerator}"
    tasks = general_plan(runtime, "int8")
    plan = hashlib.sha256("\n".join(task.network.key for task in tasks).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    journal = ll.profile(tasks, runtime=runtime, journal=folder / f"{accelerator}-{plan}.journal.jsonl")
    return ll.fit_profile(journal, name=accelerator)


def main() -> None:
    """Write every profile."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ACCELERATORS, default=ACCELERATORS)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default device_profiles/)")
    parser.add_argument("--journals", type=Path, default=JOURNALS, help=f"folder of journals (default {JOURNALS})")
    args = parser.parse_args()
    for accelerator in args.only:
        path = args.out / f"{accelerator}.json.gz"
        profile(accelerator, args.journals).save(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
