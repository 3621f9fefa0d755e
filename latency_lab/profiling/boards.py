"""Boards that are alike: a plan split among them, what they answer checked, and how they compare."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latency_lab.ops import Network, OpConfig
from latency_lab.profiling.answers import checked_block, checked_hello, plain, values_of
from latency_lab.profiling.environment import differing
from latency_lab.profiling.journal import Journal, failed
from latency_lab.profiling.protocol import statistic
from latency_lab.profiling.remote import checked_probe
from latency_lab.profiling.tasks import Task
from latency_lab.profiling.transport import LINE_LIMIT, comparable

CHUNK_BLOCKS = 16
"""Blocks that a board is given at once, at most: what is measured again when it is lost."""
CHUNKS_A_BOARD = 4
"""Of a small plan at least, so that none waits for another at the end."""
OFF = 0.10
"""A board whose common operations take this much more or less than the fleet's median is named."""
NAME_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """What a board answers.

    Attributes:
        board: its name.
        identity: of its environment, runtime and worker, as a journal's.
        conditions: load, clock, temperature, time.
        common: a block for each common operation, or none.
        blocks: a block for each that was asked for.
        error, reason: why it cannot measure, in place of all but its name; error is the name of a class of `errors`.
    """

    board: str
    identity: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    common: tuple[dict[str, Any], ...] = ()
    blocks: tuple[dict[str, Any], ...] = ()
    error: str = ""
    reason: str = ""


def answer_of(text: bytes, blocks: int = 0, common: int = 0) -> Answer:
    """A board's answer, checked as a line of a worker by ssh is. A block that is none is a failed one.

    Args:
        text: JSON: board, hello, identity, conditions, common, blocks; or board, error, reason.
        blocks, common: how many were asked for; the common ones may be left out.

    Raises:
        ValueError: it is no answer to that.
    """
    if not isinstance(text, bytes) or len(text) > LINE_LIMIT:
        raise ValueError(f"expected at most {LINE_LIMIT} bytes")
    found = values_of(text.decode(errors="replace"))
    name, hello = found.get("board"), found.get("hello")
    if not isinstance(name, str) or not plain(name, NAME_LIMIT).strip():
        raise ValueError("expected a board that names itself")
    if "error" in found:
        return Answer(plain(name, NAME_LIMIT), error=plain(str(found["error"])), reason=plain(str(found.get("reason"))))
    if not isinstance(hello, dict):
        raise ValueError("expected what its worker said first")
    seen = checked_probe(found)
    return Answer(
        plain(name, NAME_LIMIT),
        comparable(checked_hello(hello), seen["identity"]),
        seen["conditions"],
        _blocks(found.get("common"), {0, common}),
        _blocks(found.get("blocks"), {blocks}),
    )


def _blocks(found: Any, counts: set[int]) -> tuple[dict[str, Any], ...]:
    found = [] if found is None else found
    if not isinstance(found, list) or len(found) not in counts:
        raise ValueError(f"expected {max(counts)} blocks")
    return tuple(_block(one) for one in found)


def _block(found: Any) -> dict[str, Any]:
    try:
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        return checked_block(found)
    except ValueError as error:
        return failed(f"the worker's answer is no block: {error}")


def chunks(waiting: Sequence[tuple[int, Task]], boards: int) -> list[tuple[int, tuple[Task, ...]]]:
    """A plan in pieces, each of one round and measured by one board.

    Args:
        waiting: (round, task), in order of rounds.
        boards: how many there are.

    Returns:
        (round, tasks) of each.

    Example:
        >>> ops = [Task(Network.of(OpConfig("dense", in_channels=c, out_channels=8))) for c in (1, 2, 3)]
        >>> [(round_, len(tasks)) for round_, tasks in chunks([(r, op) for r in (0, 1) for op in ops], 1)]
        [(0, 2), (0, 1), (1, 2), (1, 1)]
    """
    size = min(max(-(-len(waiting) // (CHUNKS_A_BOARD * max(boards, 1))), 1), CHUNK_BLOCKS)
    found = []
    for round_ in sorted({r for r, _ in waiting}):
        tasks = tuple(task for r, task in waiting if r == round_)
        found += [(round_, tasks[i : i + size]) for i in range(0, len(tasks), size)]
    return found


def common_tasks(precision: str) -> tuple[Task, ...]:
    """The operations that every board times in every round: the same whatever is profiled, and small to send."""
    size: dict[str, Any] = {"height": 28, "width": 28, "in_channels": 32, "out_channels": 32, "dtype": precision}
    kernel: dict[str, Any] = {"kernel_size": (3, 3), "activation": "relu"}
    ops = (
        OpConfig("conv2d", **size, **kernel),
        OpConfig("conv2d", **size, activation="relu"),
        OpConfig("depthwise_conv2d", **size, **kernel),
        OpConfig("dense", in_channels=256, out_channels=128, dtype=precision),
    )
    return tuple(Task(Network.of(op)) for op in ops)


def odd_ones(identities: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each value in which a board differs from most of the others.

    Example:
        >>> odd_ones({"a": {"cpu": "A76"}, "b": {"cpu": "A76"}, "c": {"cpu": "A72"}})
        ["c: cpu is 'A72', that of the others 'A76'"]
    """
    usual = usual_identity(identities)
    return [line for board, identity in identities.items() for line in unlike(board, identity, usual)]


def usual_identity(identities: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The identity of most boards; of the first of them, where no kind has most."""
    texts = [json.dumps(identity, sort_keys=True) for identity in identities.values()]
    found: dict[str, Any] = json.loads(Counter(texts).most_common(1)[0][0])
    return found


def unlike(board: str, identity: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """A line for each value in which a board differs from the usual identity."""
    return [
        f"{board}: {name} is {identity.get(name)!r}, that of the others {usual.get(name)!r}"
        for name in differing(usual, identity)
    ]


def ratios(common: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How long each board takes of the fleet's median, on the common operations.

    ratio of a board = median over operations of (its latency / median over boards of theirs)

    Args:
        common: their blocks, as of `Journal.common`.
    """
    blocks: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for line in common:
        blocks.setdefault(line["key"], {}).setdefault(line["board"], []).append(line)
    found: dict[str, list[float]] = {}
    for of_boards in blocks.values():
        latencies = {board: statistic(lines).latency_ms for board, lines in of_boards.items()}
        middle = float(np.median(list(latencies.values())))
        for board, latency in latencies.items():
            found.setdefault(board, []).append(latency / middle)
    return {board: float(np.median(values)) for board, values in sorted(found.items())}


def boards_of(journal: Journal) -> dict[str, dict[str, Any]]:
    """The boards that measured a journal, name -> blocks, ratio to the fleet's median, and whether that is off.

    Empty for a journal of one device. The ratio is missing where a board timed no common operation.
    """
    counts = Counter(block["board"] for blocks in journal.blocks.values() for block in blocks if "board" in block)
    found = ratios(journal.common)
    boards: dict[str, dict[str, Any]] = {}
    for board in sorted({*counts, *found}):
        boards[board] = {"blocks": counts[board]}
        if board in found:
            boards[board] |= {"ratio": round(found[board], 4), "off": abs(found[board] - 1) > OFF}
    return boards


def warnings_of(boards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each board that is off: what `boards_of` found of it, and what to do.

    Example:
        >>> print(warnings_of({"pi-3": {"blocks": 40, "ratio": 1.31, "off": True}})[0])
        pi-3 takes 1.31 of the fleet's median on the common operations, and measured 40 blocks. See to its cooling,
        power supply and governor.
    """
    return [
        f"{name} takes {board['ratio']:.2f} of the fleet's median on the common operations, and measured "
        f"{board['blocks']} blocks. See to its cooling, power supply and governor."
        for name, board in boards.items()
        if board.get("off")
    ]
