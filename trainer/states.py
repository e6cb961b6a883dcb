"""States: everything that a resume needs, one file a saved step, each ending with its own SHA-256."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from mlpdata.errors import Error, first_line
from trainer.recipe import Recipe
from trainer.run_directory import write_errors, write_file

STATE_VERSION = 2  # of the keys of a state
DIGEST_BYTES = 64  # of the SHA-256 in hexadecimal that ends a state, as the comment of its zip file
SMALL_BYTES = 100e6  # a state up to this size is written after each epoch: it takes a fraction of a second
# Settings that a resume may change: a run may move. Whether the shards hold the same data is checked by their sums.
MAY_CHANGE = ("data.shards", "data.tier", "train.device", "train.record_steps", "save.", "log.")
# Settings that a resume changes if --set names them and --force is given. Anything else would be another experiment.
MAY_BE_FORCED = ("train.epochs", "optim.")
# What may differ in other shards that are forced: the training images stay as many, with the same classes and size.
DATA_MAY_BE_FORCED = ("set of training files", "held-out images", "set of held-out files")


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
        raise Error(f"{path} cannot be read (its checksum is missing: the file is cut short, or of another version)")
    if digest.hexdigest().encode() != stored_digest:
        raise Error(f"{path} cannot be read (it is damaged: its checksum differs)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises nearly anything
        raise Error(f"{path} cannot be read ({first_line(e):.200})") from None
    if not isinstance(state, dict) or state.pop("version", None) != STATE_VERSION:
        raise Error(f"{path} cannot be read (it is of another version of the trainer)")
    return state


def check_same_recipe(folder: Path, recipe: Recipe, saved: dict[str, Any], forced: Collection[str] = ()) -> list[str]:
    """Refuse to resume with another recipe. saved: the recipe of the state, as a dictionary. Raises Error.

    forced: keys that --set names beside --force. Returns what they change: "train.epochs from 2 to 3".
    """
    changed = {}
    for section, value in recipe.to_dict().items():
        other = saved.get(section)
        if isinstance(value, dict):
            changed |= {f"{section}.{k}": ((other or {}).get(k), v) for k, v in value.items()}
        else:
            changed[section] = other, value
    changed = {k: (old, new) for k, (old, new) in changed.items() if old != new and not k.startswith(MAY_CHANGE)}
    refused = {k: v for k, v in changed.items() if not (k in forced and k.startswith(MAY_BE_FORCED))}
    if refused:
        keys = [f"{key} ({json.dumps(old)}, now {json.dumps(new)})" for key, (old, new) in refused.items()]
        way_out = "resume with its own recipe, or train anew without --resume"
        if all(key.startswith(MAY_BE_FORCED) for key in refused):
            words = [f"--set {shlex.quote(f'{key}={json.dumps(new)}')}" for key, (_, new) in refused.items()]
            way_out = f"to go on with the new value: --resume --force {' '.join(words)}; else {way_out}"
        raise Error(f"{folder} was started with another {', '.join(keys)}; {way_out}")
    anew = {"optim.name": ", which begins anew"}
    return [f"{k} from {json.dumps(old)} to {json.dumps(new)}{anew.get(k, '')}" for k, (old, new) in changed.items()]


def check_same_data(
    folder: Path | None, shards: str, facts: dict[str, Any], saved: dict[str, Any], forced: bool = False
) -> list[str]:
    """Refuse to resume on other data. facts, saved: of trainer.data.data_facts, now and in the state. Raises Error.

    forced: --set names the shards beside --force. Returns what is then other: "another set of training files".
    """
    changed = {
        key: f"another {key}" if key.startswith(("list", "set")) else f"{key} {saved.get(key)}, now {value}"
        for key, value in facts.items()
        if saved.get(key) != value
    }
    can_force = all(key in DATA_MAY_BE_FORCED for key in changed)
    if changed and not (forced and can_force):
        to_force = f"to go on with them: --resume --force --set {shlex.quote(f'data.shards={shards}')}; else "
        raise Error(
            f"{folder} was trained on other data than {shards} holds: {'; '.join(changed.values())}; "
            f"{to_force if can_force else ''}give it its own shards back, or train anew without --resume"
        )
    return list(changed.values())
