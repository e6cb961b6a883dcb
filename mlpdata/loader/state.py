"""Where a loader is in its epochs, and the state from which another loader goes on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpdata.errors import Error
from mlpdata.loader.options import shown
from mlpdata.loader.subset import Selection

MAX_EPOCH = 1 << 31
MAX_BLOCKS = 1 << 16  # a window
# These have to be equal only to go on in the middle of an epoch.
ABOUT_BATCHES = ("batch_size", "drop_last")
NAMES = {"data": "data (the digest of their index)", "subset": "subset (a digest)", "classes": "classes (a digest)"}


@dataclass
class Position:
    """The next batch of an iteration. blocks: those of that epoch's order (see EpochOrder), if it goes by blocks.

    Blocks of 0 samples are tars.

    begun: this epoch has an iteration already, so the next iteration is of the next epoch.
    """

    epoch: int
    step: int
    blocks: tuple[int, int] | None
    begun: bool = False


def facts_of(data: str, selection: Selection, shape: tuple[int, ...], **settings: Any) -> dict[str, Any]:
    """What a sequence of batches follows from, the number of processes aside. data: the digest of the split."""

    def digest(array: np.ndarray | None) -> str | None:
        return None if array is None else hashlib.sha256(array.tobytes()).hexdigest()[:16]

    return {
        "data": data,
        "classes": digest(selection.classes),
        "subset": digest(selection.ids),
        "num_samples": len(selection.labels),
        "size": "x".join(map(str, shape)),
        **settings,
    }


def pack(position: Position, facts: dict[str, Any]) -> dict[str, Any]:
    """A position as a state: plain numbers, strings and lists. facts: what the sequence of batches follows from."""
    blocks = list(position.blocks) if position.blocks else None
    return {"epoch": position.epoch, "step": position.step, "blocks": blocks, **facts}


def unpack(state: Any, facts: dict[str, Any], num_batches: int, has_tars: bool) -> Position:
    """The position in a state. has_tars: whether blocks can be tars.

    Raises Error if the state is malformed, or was saved by a loader with other facts.
    """
    if not isinstance(state, dict):
        raise Error(f"this is no state of a loader: {shown(state)}")
    for name in ("epoch", "step", "blocks", *facts):
        if name not in state:
            raise Error(f"this is no state of a loader, or one of an earlier version: it has no {name!r}")
    epoch, step, blocks = state["epoch"], state["step"], state["blocks"]
    for name, value in (("epoch", epoch), ("step", step)):
        _check_whole(name, value, MAX_EPOCH)
    for name, ours in facts.items():
        theirs = state[name]
        # The types are compared too: True is not 1 here.
        if (type(theirs) is not type(ours) or theirs != ours) and (step or name not in ABOUT_BATCHES):
            raise Error(
                f"the loader state was saved with {NAMES.get(name, name)} {shown(theirs)}; "
                f"this loader has {shown(ours)}"
            )
    _check_whole("step", step, num_batches)
    if blocks is not None:
        if not isinstance(blocks, (list, tuple)) or len(blocks) != 2:
            raise Error(f"this is no state of a loader: its blocks are {shown(blocks)}")
        _check_whole("blocks", blocks[0], max(1, facts["num_samples"]), least=0 if has_tars else 1)
        _check_whole("blocks", blocks[1], MAX_BLOCKS, least=1)
        blocks = tuple(blocks)
    return Position(epoch, step, blocks) if step < num_batches else Position(epoch + 1, 0, blocks)


def _check_whole(name: str, value: Any, most: int, least: int = 0) -> None:
    if type(value) is not int or not least <= value <= most:
        raise Error(f"this is no state of this loader: its {name} is {shown(value)}, not {least} to {most}")
