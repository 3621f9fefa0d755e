"""fit a profile to a journal, or to timings that others measured

TIMINGS is a CSV file with the columns device, runtime, dtype, op, n, h, w, cin, cout, kh, kw, sh, sw, ph, pw, dh,
groups, ms, and source and licence if they are known.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latency_lab.cli.output import emit, note, write_json
from latency_lab.errors import UsageError
from latency_lab.profiles.store import name_of

if TYPE_CHECKING:
    from latency_lab.profiles import DeviceProfile

CSV = (".csv", ".csv.gz")
JOURNAL = (".jsonl",)
OF_CSV = ("device", "dtype", "source", "licence")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, -o, --name, and what is said of a CSV file."""
    parser.add_argument("file", metavar="FILE", help="a journal (.jsonl), or timings of any device (.csv, .csv.gz)")
    parser.add_argument("-o", "--output", metavar="P", required=True, help="the profile to write, JSON; - is stdout")
    parser.add_argument("--name", help="of the profile (default: P's name)")
    parser.add_argument("--device", help="of a CSV file that has several: as the file names it")
    parser.add_argument("--dtype", help="of a CSV file that has several: fp32, fp16, bf16 or int8")
    parser.add_argument("--source", metavar="TEXT", help="who measured the timings (default: what the file says)")
    parser.add_argument("--licence", metavar="TEXT", help="of the timings (default: what the file says)")


class Fitted:
    """A profile that was written, and what became of its input."""

    def __init__(self, path: str, profile: DeviceProfile) -> None:
        self._path, self._profile = path, profile

    def __str__(self) -> str:
        p = self._profile
        failed = p.journal.get("failed", {})
        lines = [
            f"{family}: {errors['points']} points, median error {errors['median']:.1%}, "
            f"within 10 %: {errors['within_10_percent']:.0%}"
            for family, errors in p.holdout.items()
            if "within_10_percent" in errors
        ]
        lines += [f"left out: {name}: {reason}" for name, reason in failed.items()]
        return "\n".join([*lines, f"wrote {self._path}: {p.name}, {p.runtime}, {p.precision}"])

    def to_json(self) -> dict[str, Any]:
        """profile, name, digest, held-out errors, what was left out."""
        p = self._profile
        failed = dict(p.journal.get("failed", {}))
        holdout = {family: dict(errors) for family, errors in p.holdout.items()}
        return {"profile": self._path, "name": p.name, "digest": p.digest, "holdout": holdout, "failed": failed}


def run(args: argparse.Namespace) -> int:
    """Fit and write."""
    profile = _fit(args)
    done = Fitted(args.output, profile)
    if args.output == "-":
        write_json("-", profile.to_json())
        note(str(done))
    else:
        profile.save(args.output)
        emit(done, as_json=args.json)
    return 0


def _fit(args: argparse.Namespace) -> DeviceProfile:
    from latency_lab.fitting import fit_csv, fit_profile

    name = args.name or (None if args.output == "-" else name_of(args.output))
    if args.file.endswith(CSV):
        return fit_csv(args.file, name=name, **{key: getattr(args, key) for key in OF_CSV})
    if not args.file.endswith(JOURNAL):
        raise UsageError(f"{args.file}: expected a file that ends in {', '.join((*JOURNAL, *CSV))}")
    given = [f"--{key}" for key in OF_CSV if getattr(args, key) is not None]
    if given:
        raise UsageError(f"{' and '.join(given)}: a journal says that itself; leave it out")
    return fit_profile(args.file, name=name)
