"""Where profiles are found: a path, or the name of one that ships."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from latency_lab.errors import FileFormatError
from latency_lab.profiles.device_profile import DeviceProfile

SUFFIXES = (".json", ".json.gz")
"""Of a profile's file; the second is packed."""


def shipped_profiles() -> dict[str, Path]:
    """Name -> file of every profile in the installed `device_profiles`."""
    try:
        folder = resources.files("device_profiles")
    except ModuleNotFoundError:
        return {}
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(SUFFIXES):
            found.setdefault(name_of(entry.name), Path(str(entry)))
    return dict(sorted(found.items()))


def name_of(path: str | Path) -> str:
    """What a profile is called after its file.

    Example:
        >>> from latency_lab.profiles.store import name_of
        >>> name_of("profiles/pi4.json.gz")
        'pi4'
    """
    name = Path(path).name
    return next((name.removesuffix(s) for s in reversed(SUFFIXES) if name.endswith(s)), Path(path).stem)


def load_profile(path_or_name: str | Path) -> DeviceProfile:
    """A profile by the path of its file, or by the name of one that ships.

    Raises:
        FileFormatError: neither exists (with the names that do), or the file is no profile.
    """
    path = Path(path_or_name)
    if path.exists() or path.name.endswith(SUFFIXES) or path.parent != Path():
        return DeviceProfile.load(path)
    shipped = shipped_profiles()
    if str(path_or_name) in shipped:
        return DeviceProfile.load(shipped[str(path_or_name)])
    near = difflib.get_close_matches(str(path_or_name), shipped, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "`latency-lab profiles` lists those that ship."
    raise FileFormatError(f"There is no file and no shipped profile {str(path_or_name)!r}. {hint}")
