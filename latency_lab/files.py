"""Files that are never left half written, and JSON that says where it is wrong."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latency_lab.errors import FileFormatError

GZIP_SUFFIX = ".gz"
MAX_UNPACKED_BYTES = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes to a temporary file beside `path`, then renames it: readers see the old file or the whole new one.

    What is there and is no file (/dev/null, a pipe) is written to as it is; a link stays one.
    """
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        target.write_bytes(data)
        return
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileFormatError(f"Cannot write {target}: there is no folder {target.parent}. Create it first.")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, data: Any, *, indent: int | None = 1) -> None:
    """`data` as JSON, written whole or not at all; packed where the name ends in ".gz", equal data to equal bytes."""
    text = (json.dumps(data, indent=indent, allow_nan=False) + "\n").encode()
    write_bytes(path, gzip.compress(text, mtime=0) if Path(path).suffix == GZIP_SUFFIX else text)


def read_json(path: str | Path, what: str) -> Any:
    """The JSON in a file, packed by gzip or not, whatever its name.

    Args:
        path: of the file.
        what: it should hold, for messages: "a device profile".

    Raises:
        FileFormatError: the file is missing, holds no JSON, a number in it is not finite, or it unpacks to more than
            `MAX_UNPACKED_BYTES`.
    """
    try:
        data = Path(path).read_bytes()
        text = unpacked(data) if data.startswith(_GZIP_MAGIC) else data
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except OSError as error:  # gzip's among them
        raise FileFormatError(f"Cannot read {what} from {path}: {error.strerror or error}.") from error
    except (EOFError, zlib.error) as error:
        raise FileFormatError(f"Cannot read {what} from {path}: not a whole gzip file: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"Cannot read {what} from {path}: not JSON: {error}.") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def unpacked(data: bytes) -> bytes:
    """What gzip packed.

    Raises:
        OSError, EOFError, zlib.error: it is damaged, or more than `MAX_UNPACKED_BYTES`.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(MAX_UNPACKED_BYTES + 1)
    if len(found) > MAX_UNPACKED_BYTES:
        raise OSError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB")
    return found


def check(data: Any, schema: Mapping[str, Any], path: str = "$") -> None:
    """Checks JSON values against the part of JSON Schema that this project's schemas use.

    Known words: type, enum, minimum; required, properties, additionalProperties; items, prefixItems, minItems,
    maxItems.

    Raises:
        FileFormatError: with the path to the first value that does not fit, what was expected, what is there.

    Source: JSON Schema, draft 2020-12.
    """
    types = schema.get("type")
    if types is not None and not any(_is(data, name) for name in ([types] if isinstance(types, str) else types)):
        wanted = types if isinstance(types, str) else " or ".join(types)
        raise FileFormatError(f"Expected {wanted}, got {_type_name(data)} - at {path}")
    if "enum" in schema and data not in schema["enum"]:
        raise FileFormatError(f"Expected one of {schema['enum']}, got {data!r} - at {path}")
    if "minimum" in schema and isinstance(data, (int, float)) and data < schema["minimum"]:
        raise FileFormatError(f"Expected at least {schema['minimum']}, got {data!r} - at {path}")
    if isinstance(data, dict):
        _check_object(data, schema, path)
    if isinstance(data, list):
        _check_array(data, schema, path)


def _check_object(data: dict[str, Any], schema: Mapping[str, Any], path: str) -> None:
    for name in schema.get("required", ()):
        if name not in data:
            raise FileFormatError(f"Expected a value {name!r}, found none - at {path}")
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name, value in data.items():
        inner = known.get(name, others)
        if inner is False:
            raise FileFormatError(f"Unexpected value {name!r} - at {path}")
        if inner is not True:
            check(value, inner, f"{path}.{name}")


def _check_array(data: list[Any], schema: Mapping[str, Any], path: str) -> None:
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if len(data) < low or (high is not None and len(data) > high):
        raise FileFormatError(
            f"Expected {low} to {'any number of' if high is None else high} items, got {len(data)} - at {path}"
        )
    first = schema.get("prefixItems", [])
    if first and len(data) == len(first) == low == high and all(map(_scalar_fits, data, first)):
        return
    if not first and _all_numbers_fit(data, schema.get("items", {})):
        return
    for i, value in enumerate(data):
        inner = first[i] if i < len(first) else schema.get("items")
        if inner is not None:
            check(value, inner, f"{path}[{i}]")


def _scalar_fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a quick look shows that a number, flag or null fits: rows of a profile's points."""
    types = schema.get("type", ())
    kinds = _SCALARS.get(types, ()) if isinstance(types, str) else {k for name in types for k in _SCALARS.get(name, ())}
    if type(value) not in kinds or not schema.keys() <= _PLAIN:
        return False
    return value is None or value >= schema.get("minimum", value)


_PLAIN = frozenset({"type", "minimum", "description"})
"""Words of a schema that a quick look knows."""
_SCALARS: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def _all_numbers_fit(data: list[Any], schema: Mapping[str, Any]) -> bool:
    """Whether a quick look shows that every item is a number that fits: long arrays of a profile's trees."""
    known: dict[str, set[type]] = {"integer": {int}, "number": {int, float}}
    kinds = known.get(str(schema.get("type")))
    if kinds is None or not schema.keys() <= _PLAIN or not set(map(type, data)) <= kinds:
        return False
    return not data or "minimum" not in schema or bool(min(data) >= schema["minimum"])


def _is(data: Any, name: str) -> bool:
    if isinstance(data, bool):
        return name == "boolean"
    return isinstance(data, _KINDS[name])


_KINDS: Mapping[str, tuple[type, ...]] = {"object": (dict,), "array": (list,), "string": (str,), **_SCALARS}


def _type_name(data: Any) -> str:
    for name in ("object", "array", "string", "boolean", "null", "integer", "number"):
        if _is(data, name):
            return name
    return type(data).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
