"""What verbs print and write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Protocol


class Result(Protocol):
    """What the library answers: text for a person and values for a program."""

    def __str__(self) -> str: ...

    def to_json(self) -> Any:
        """JSON values."""
        ...


def emit(result: Result, *, as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        result: anything with `__str__` and `to_json`.
        as_json: print `to_json()`, indented, in place of the text.
    """
    print(json.dumps(result.to_json(), indent=2, allow_nan=False) if as_json else str(result))


def note(text: str) -> None:
    """Say something on stderr, where it does not mix with data."""
    print(text, file=sys.stderr)


def write_json(path: str, value: Any) -> None:
    """Write JSON values to a file, or to stdout for "-"."""
    text = json.dumps(value, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")
