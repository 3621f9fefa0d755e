"""How much sooner the boards of a fleet finish a plan than one board does.

    scripts/benchmark_fleet -o docs/fleet.json

Boards are dask workers of this machine, their runtime sleeps 5 ms a run: what is seen is what handing out, collecting
and checking cost, not how fast anything is. The plan is 2,000 operations; models are built and sent as they would be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from local_fleet import LocalFleet

from latency_lab import files
from latency_lab.ops import OpConfig
from latency_lab.profiling import Protocol, device, profile
from latency_lab.profiling.boards import boards_of
from latency_lab.profiling.environment import conditions, identity

SLEEP_MS = 5
AIM = 0.40
"""Of one board's time, that four may take."""


def main() -> None:
    """Measure, summarise, write."""
    args = _arguments()
    environment = {**identity(), **conditions(), "python": sys.version.split()[0]}
    environment |= {name: version(name) for name in ("dask", "distributed")}
    runs = []
    for count in (1, args.boards):
        runs.append(_run(count, args.ops, Protocol(rounds=args.rounds, extra_rounds=0, processes=min(2, args.rounds))))
        print(f"{count} board(s): {runs[-1]['seconds']:.1f} s, blocks {runs[-1]['blocks_of_boards']}", file=sys.stderr)
    share = runs[1]["seconds"] / runs[0]["seconds"]
    found = {"environment": environment, "sleep_ms": SLEEP_MS, "ops": args.ops, "rounds": args.rounds, "runs": runs}
    found |= {"share_of_one_board": round(share, 4), "aim": AIM, "met": share < AIM}
    print(f"{args.boards} boards take {share:.1%} of one board's time", file=sys.stderr)
    files.write_json(args.output, found)


def _run(count: int, ops: int, protocol: Protocol) -> dict[str, Any]:
    names = [f"board-{i + 1}" for i in range(count)]
    items = [OpConfig("dense", in_channels=i % 50 + 1, out_channels=i // 50 + 1) for i in range(ops)]
    with tempfile.TemporaryDirectory() as folder, LocalFleet(Path(folder), names) as fleet:
        where = device(fleet.address, fleet.python)
        began = time.monotonic()
        journal = profile(items, runtime="litert", journal=Path(folder) / "j.jsonl", protocol=protocol, on=where)
        seconds = time.monotonic() - began
    blocks = [block for found in journal.blocks.values() for block in found]
    if journal.failures or len(blocks) != ops * protocol.rounds:
        raise SystemExit(f"{len(blocks)} blocks and {len(journal.failures)} failures of {ops} operations")
    boards = boards_of(journal)
    return {
        "boards": count,
        "seconds": round(seconds, 2),
        "blocks": len(blocks),
        "common_blocks": len(journal.common),
        "blocks_of_boards": {name: board["blocks"] for name, board in boards.items()},
        "ratios_of_boards": {name: board["ratio"] for name, board in boards.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, metavar="F", help="JSON to write")
    parser.add_argument("--boards", type=int, default=4, metavar="N", help="beside one (default 4)")
    parser.add_argument("--ops", type=int, default=2000, metavar="N", help="of the plan (default 2000)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of the protocol (default 1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
