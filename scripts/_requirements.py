"""Prints what setup.cfg's extra "all" installs, with tensorflow-cpu in tensorflow's place where it exists."""

from __future__ import annotations

import configparser
import platform
import re
import sys
from pathlib import Path


def requirements(setup_cfg: Path, extra: str) -> list[str]:
    """The requirements of the package and of one extra, extras of extras resolved."""
    config = configparser.ConfigParser()
    config.read(setup_cfg)
    extras = config["options.extras_require"]

    def expand(line: str) -> list[str]:
        nested = re.fullmatch(r"latency-lab\[(.+)\]", line)
        if not nested:
            return [line]
        return [one for name in nested.group(1).split(",") for one in lines(extras[name])]

    def lines(text: str) -> list[str]:
        return [one for line in text.split("\n") if line.strip() for one in expand(line.strip())]

    return lines(config["options"]["install_requires"]) + lines(extras[extra])


def main() -> None:
    """Print them, one a line."""
    found = requirements(Path(__file__).parents[1] / "setup.cfg", "all")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        found = [re.sub(r"^tensorflow(?=[<>=~!]|$)", "tensorflow-cpu", line) for line in found]
    print("\n".join(found))


if __name__ == "__main__":
    main()
