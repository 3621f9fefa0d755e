"""Prints what extras of setup.cfg install ("all", or those named: jax,test), with tensorflow-cpu in tensorflow's place
where it exists."""

from __future__ import annotations

import configparser
import platform
import re
import sys
from pathlib import Path


def requirements(setup_cfg: Path, extras: str) -> list[str]:
    """The requirements of the package and of some extras, separated by commas; extras of extras resolved."""
    config = configparser.ConfigParser()
    config.read(setup_cfg)
    known = config["options.extras_require"]

    def lines(text: str) -> list[str]:
        return [one for line in text.split("\n") if line.strip() for one in expand(line.strip())]

    def expand(line: str) -> list[str]:
        nested = re.fullmatch(r"latency-lab\[(.+)\]", line)
        return of(nested.group(1)) if nested else [line]

    def of(names: str) -> list[str]:
        return [one for name in names.split(",") for one in lines(known[name])]

    return lines(config["options"]["install_requires"]) + of(extras)


def main() -> None:
    """Print them, one a line."""
    found = requirements(Path(__file__).parents[1] / "setup.cfg", sys.argv[1] if len(sys.argv) > 1 else "all")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        found = [re.sub(r"^tensorflow(?=[<>=~!]|$)", "tensorflow-cpu", line) for line in found]
    print("\n".join(found))


if __name__ == "__main__":
    main()
