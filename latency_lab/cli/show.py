"""show what a profile holds"""

from __future__ import annotations

import argparse
import json
import sys

from latency_lab import report
from latency_lab.cli.output import note
from latency_lab.errors import FileFormatError
from latency_lab.profiles import DeviceProfile, load_profile
from latency_lab.report.plot import plot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """P and --plot."""
    parser.add_argument("profile", metavar="P", help="a profile file, the name of a shipped one, or -")
    parser.add_argument(
        "--plot", metavar="F", help="draw latency over channels, measured and predicted, into F (.png, .svg, .pdf)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the profile: a summary, or with --json all of it; with --plot, draw it too."""
    profile = _from_stdin() if args.profile == "-" else load_profile(args.profile)
    if args.plot:
        plot(profile, args.plot)
        note(f"wrote {args.plot}")
    print(json.dumps(profile.to_json(), indent=2) if args.json else report.describe(profile))
    return 0


def _from_stdin() -> DeviceProfile:
    try:
        return DeviceProfile.from_json(json.load(sys.stdin))
    except ValueError as error:
        raise FileFormatError(f"-: what came on stdin is not JSON: {error}") from error
