"""States: everything that a resume needs, one file a saved step, each ending with its own SHA-256."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from mlpdata.errors import Error, first_line
from trainer.recipe import Recipe
from trainer.run_directory import write_errors, write_file

STATE_VERSION = 2  # of the keys of a state
DIGEST_BYTES = 64  # of the SHA-256 in hexadecimal that ends a state, as the comment of its zip file
# Settings that a resume may change: more epochs prolong a finished run, and a run may move. Anything else would be
# another experiment. Whether the shards hold the same data is checked by their sums.
MAY_CHANGE = ("train.epochs", "data.shards", "data.tier", "train.device", "train.record_steps", "save.", "log.")


def state_path(folder: Path, step: int) -> Path:
    return folder / f"state-{step:09d}.pt"


def step_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def list_states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted((p for p in folder.glob("state-*.pt") if re.fullmatch(r"state-\d{9,12}\.pt", p.name)), key=step_of)


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write tensors, numbers and plain containers as the state of a step, then remove all but the last `keep`."""
    buffer = io.BytesIO()
    torch.save({"version": STATE_VERSION, **state}, buffer)
    with buffer.getbuffer() as data:
        data[-2:] = DIGEST_BYTES.to_bytes(2, "little")  # the length of a zip file's comment: torch still reads the file
        digest = hashlib.sha256(data).hexdigest().encode()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    write_file(state_path(folder, step), buffer.getbuffer())
    _remove(list_states(folder)[:-keep])


def remove_later(folder: Path, step: int) -> None:
    """Remove the states of steps after `step`: they are damaged, and the resumed run takes their steps again."""
    _remove(path for path in list_states(folder) if step_of(path) > step)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with write_errors(path):
            path.unlink(missing_ok=True)


def load_state(folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The newest undamaged state of a run; `say` gets a line for each damaged one. Raises Error where there is none."""
    damage = ""
    for path in reversed(list_states(folder)):
        try:
            return _read_state(path)
        except Error as e:
            damage = str(e)
            say(f"{damage}; taking the state before")
    raise Error(f"nothing to resume: {damage or f'{folder} has no checkpoint yet'}")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            left, digest = path.stat().st_size - DIGEST_BYTES, hashlib.sha256()
            while block := f.read(max(0, min(1 << 20, left))):
                digest.update(block)
                left -= len(block)
            stored_digest = f.read()
    except OSError as e:
        raise Error(f"{path} cannot be read ({e.strerror})") from None
    if not re.fullmatch(rb"[0-9a-f]{64}", stored_digest):
        raise Error(f"{path} cannot be read (it does not end with its checksum: cut short, or of another version)")
    if digest.hexdigest().encode() != stored_digest:
        raise Error(f"{path} cannot be read (it is damaged: its checksum is another)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises nearly anything
        raise Error(f"{path} cannot be read ({first_line(e):.200})") from None
    if not isinstance(state, dict) or state.pop("version", None) != STATE_VERSION:
        raise Error(f"{path} cannot be read (it is of another version of the trainer)")
    return state


def check_same_recipe(folder: Path, recipe: Recipe, saved: dict[str, Any]) -> None:
    """Refuse to resume with another recipe. saved: the recipe of the state, as a dictionary. Raises Error."""
    changed = []
    for section, value in recipe.to_dict().items():
        other = saved.get(section)
        if isinstance(value, dict):
            changed += [f"{section}.{key}" for key in value if value[key] != (other or {}).get(key)]
        elif value != other:
            changed.append(section)
    changed = [key for key in changed if not key.startswith(MAY_CHANGE)]
    if changed:
        raise Error(
            f"{folder} was started with another {', '.join(changed)}; resume with its own recipe, or leave --resume"
        )


def check_same_data(folder: Path | None, shards: str, facts: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse to resume on other data. facts, saved: of trainer.data.data_facts, now and in the state. Raises Error."""
    changed = [
        f"another {key}" if key.startswith(("list", "set")) else f"{key} {saved.get(key)}, now {value}"
        for key, value in facts.items()
        if saved.get(key) != value
    ]
    if changed:
        raise Error(
            f"{folder} was trained on other data than {shards} holds: {'; '.join(changed)}; "
            "give it its own shards back, or train anew without --resume"
        )
