"""Timings that others measured, from CSV: one row an operation, or a block of them.

Columns: device, runtime, dtype, op, n (batch), h, w (of the input), cin, cout, kh, kw, sh, sw (stride), ph, pw
(padding), dh (dilation), groups, ms; source and licence may follow. `op` is one of `OPS`, or a block
(`block:ffn:e4`), whose kh and kw may be 0. Of rows that differ in ms alone, the least counts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from latency_lab import files
from latency_lab.errors import FileFormatError, UsageError
from latency_lab.fitting.points import Measured
from latency_lab.ops import CONVS, WINDOWED, OpConfig
from latency_lab.profiles import Point, block_family, block_op
from latency_lab.profiles.blocks import PREFIX

OPS: Mapping[str, str] = {
    "conv2d": "conv2d",
    "gconv2d": "conv2d",
    "dwconv2d": "depthwise_conv2d",
    "depthwise_conv2d": "depthwise_conv2d",
    "dense": "dense",
    "max_pool": "max_pool",
    "avg_pool": "avg_pool",
    "global_avg_pool": "global_avg_pool",
    "add": "add",
}
"""What the column `op` may be -> kind of operation. A conv2d of as many groups as channels is a depthwise_conv2d."""
DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
SIZES = ("n", "h", "w", "cin", "cout", "kh", "kw", "sh", "sw", "ph", "pw", "dh", "groups")
COLUMNS = ("device", "runtime", "dtype", "op", *SIZES, "ms")
LEAST_MS = 1e-9
"""Of a latency, as in a profile's schema."""

Row = tuple[int, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Timings:
    """What a file says about one device and precision.

    Attributes:
        file: its name.
        sha256: of its bytes.
        device, runtime: as the file names them.
        dtype: as of `OpConfig`.
        ops: lone operations.
        blocks: family of blocks -> its rows.
        failed: "line 7" -> why that row is no operation.
        source, licence: as the file's columns say, if it has them.
    """

    file: str
    sha256: str
    device: str
    runtime: str
    dtype: str
    ops: tuple[Measured, ...]
    blocks: Mapping[str, tuple[Measured, ...]]
    failed: Mapping[str, str]
    source: str
    licence: str


def read_timings(path: str | Path, *, device: str | None = None, dtype: str | None = None) -> Timings:
    """Reads the rows of one device and precision.

    Args:
        path: a CSV file; compressed if its name ends in .gz.
        device: which one, as the file names it; None where it has one alone.
        dtype: "fp32", "fp16", "bf16", "int8" or their names in `OpConfig`; None where the file has one alone.

    Raises:
        FileFormatError: the file is missing or no such CSV; the message has the line and the column.
        UsageError: device or dtype must be chosen, or is not in the file; the message lists what is.
    """
    text, sha256 = _read(Path(path))
    rows = list(_rows(path, text))
    if not rows:
        raise FileFormatError(f"{path}: no rows. Expected one a timing, under the columns {', '.join(COLUMNS)}.")
    chosen = _only(path, "device", _choose(path, rows, "device", device))
    wanted = {v: k for k, v in DTYPES.items()}.get(dtype or "", dtype)
    precision = _only(path, "dtype", _choose(path, chosen, "dtype", wanted))
    runtimes = sorted({row["runtime"] for _, row in precision})
    if len(runtimes) > 1:
        raise FileFormatError(
            f"{path}: {precision[0][1]['device']} was timed on several runtimes: {', '.join(runtimes)}. "
            "A profile is of one: leave the rows of one in the file."
        )
    first = precision[0][1]
    ops, blocks, failed = _measured(path, precision)
    return Timings(
        file=Path(path).name,
        sha256=sha256,
        device=first["device"],
        runtime=first["runtime"],
        dtype=DTYPES[first["dtype"]],
        ops=ops,
        blocks=blocks,
        failed=failed,
        **{name: "; ".join(sorted({r.get(name) or "" for _, r in precision} - {""})) for name in ("source", "licence")},
    )


def list_timings(path: str | Path) -> list[tuple[str, str]]:
    """(device, dtype) of every device and precision in a file, as the file names them, in order of its rows.

    Raises:
        FileFormatError: as of `read_timings`.
    """
    text, _ = _read(Path(path))
    return list(dict.fromkeys((row["device"], row["dtype"]) for _, row in _rows(path, text)))


def _read(path: Path) -> tuple[str, str]:
    try:
        data = path.read_bytes()
        text = (files.unpacked(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as error:  # text that is not UTF-8 is a ValueError
        raise FileFormatError(f"Cannot read timings from {path}: {error}.") from error
    return text, hashlib.sha256(data).hexdigest()


def _rows(path: str | Path, text: str) -> Iterator[Row]:
    """(line number, row), each with every column."""
    reader = csv.DictReader(io.StringIO(text), restkey="", strict=True)
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise FileFormatError(f"{path}: line 1: no column {missing[0]!r}. Expected {', '.join(COLUMNS)}.")
        for row in reader:
            absent = [name for name in COLUMNS if not row[name]]
            if absent:
                raise FileFormatError(f"{path}: line {reader.line_num}: column {absent[0]!r} is empty.")
            yield reader.line_num, row
    except csv.Error as error:
        raise FileFormatError(f"{path}: line {reader.line_num}: not CSV: {error}") from error


def _choose(path: str | Path, rows: Iterable[Row], column: str, wanted: str | None) -> list[Row]:
    """Rows of the wanted value; all of them where none was asked for."""
    found = [(line, row) for line, row in rows if wanted is None or row[column] == wanted]
    if not found:
        held = ", ".join(sorted({repr(row[column]) for _, row in rows}))
        raise UsageError(f"{path}: no rows of {column} {wanted!r}. The file has: {held}.")
    return found


def _only(path: str | Path, column: str, rows: list[Row]) -> list[Row]:
    """The rows, if they are all of one value."""
    held = sorted({row[column] for _, row in rows})
    if len(held) > 1:
        raise UsageError(f"{path}: the rows are of several: choose one with --{column}: {', '.join(map(repr, held))}")
    return rows


def _measured(
    path: str | Path, rows: Iterable[Row]
) -> tuple[tuple[Measured, ...], dict[str, tuple[Measured, ...]], dict[str, str]]:
    """Operations, blocks by family, and rows that are neither."""
    times: dict[tuple[str, OpConfig], float] = {}
    failed = {}
    for line, row in rows:
        where = f"{path}: line {line}"
        name, latency_ms = row["op"], _milliseconds(where, row["ms"])
        sizes = {column: _size(where, column, row[column], name) for column in SIZES}
        if row["dtype"] not in DTYPES:
            raise FileFormatError(
                f"{where}: column 'dtype': expected one of {', '.join(DTYPES)}, received {row['dtype']!r}"
            )
        try:
            if name.startswith(PREFIX):
                key = (block_family(name)[0], _block(name, sizes, DTYPES[row["dtype"]]))
            elif name in OPS:
                key = ("", _op(OPS[name], sizes, DTYPES[row["dtype"]]))
            else:
                raise FileFormatError(
                    f"{where}: column 'op': expected {PREFIX}WORDS or one of {', '.join(OPS)}, received {name!r}"
                )
        except UsageError as error:
            failed[f"line {line}"] = str(error)
            continue
        times[key] = min(latency_ms, times.get(key, math.inf))
    ops: list[Measured] = []
    blocks: dict[str, list[Measured]] = {}
    for (family, op), latency_ms in times.items():
        m = Measured(op, Point(op.in_channels, op.out_channels, latency_ms, latency_ms, latency_ms))
        if family:
            blocks.setdefault(family, []).append(m)
        else:
            ops.append(m)
    return tuple(ops), {family: tuple(items) for family, items in sorted(blocks.items())}, failed


def _milliseconds(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= LEAST_MS):
        raise FileFormatError(f"{where}: column 'ms': expected a finite number from {LEAST_MS:g}, received {text!r}")
    return value


def _size(where: str, column: str, text: str, name: str) -> int:
    """A count; padding may be 0, and so may the kernel of a block."""
    least = 0 if column in {"ph", "pw"} or (column in {"kh", "kw"} and name.startswith(PREFIX)) else 1
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < least:
        raise FileFormatError(f"{where}: column {column!r}: expected a whole number from {least}, received {text!r}")
    return value


def _block(name: str, sizes: Mapping[str, int], dtype: str) -> OpConfig:
    return block_op(
        name,
        batch=sizes["n"],
        height=sizes["h"],
        width=sizes["w"],
        in_channels=sizes["cin"],
        out_channels=sizes["cout"],
        kernel_size=(max(sizes["kh"], 1), max(sizes["kw"], 1)),
        strides=(sizes["sh"], sizes["sw"]),
        dtype=dtype,
    )


def _op(kind: str, sizes: Mapping[str, int], dtype: str) -> OpConfig:
    """The operation of a row.

    Raises:
        UsageError: there is no such operation: its window does not fit, say.
    """
    groups = sizes["groups"] if kind == "conv2d" else 1
    if sizes["cin"] % sizes["groups"] or (kind in CONVS and sizes["cout"] % sizes["groups"]):
        raise UsageError(f"{sizes['groups']} groups do not divide {sizes['cin']} and {sizes['cout']} channels")
    if kind == "conv2d" and groups == sizes["cin"] > 1:
        kind, groups = "depthwise_conv2d", 1
    windowed = kind in WINDOWED
    return OpConfig(
        kind,
        batch=sizes["n"],
        height=sizes["h"],
        width=sizes["w"],
        in_channels=sizes["cin"],
        out_channels=sizes["cout"],
        kernel_size=(sizes["kh"], sizes["kw"]) if windowed else (1, 1),
        strides=(sizes["sh"], sizes["sw"]) if windowed else (1, 1),
        padding=((sizes["ph"],) * 2, (sizes["pw"],) * 2) if windowed else "same",
        dilation=(sizes["dh"], sizes["dh"]) if windowed else (1, 1),
        groups=groups,
        dtype=dtype,
        use_bias=False,
        operands=2 if kind == "add" else 1,
    )
