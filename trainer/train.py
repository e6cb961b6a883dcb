"""Train a recipe file: recipe -> run directory -> Trainer, with signals and lack of memory turned into one line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from mlpdata.errors import Error, UsageError, first_line, lacks_memory
from mlpdata.system.format import plural
from trainer import recipes, report, run_directory, states
from trainer.loop import Trainer, describe
from trainer.recipe import Recipe, load_recipe
from trainer.world import device_of, join, matmul_precision, precision_of


def run(
    recipe_path: str | Path,
    overrides: list[str] | tuple[str, ...] = (),
    *,
    resume: bool = False,
    force: bool = False,
    profile: bool = False,
    runs: str | Path = "runs",
    quiet: bool = False,
) -> Path | None:
    """Train a recipe file and return the run directory.

    overrides: `section.key=value` on top of the file. resume: continue the recipe's latest run. force: let it
    change train.epochs, optim.* and the shards, where `overrides` name them. profile: only measure the speed, and
    return None. Raises mlpdata.Error for a bad recipe or shards, when the loss is no number, when another process is
    lost, and when stopped by a signal.
    """
    if force and not resume:
        raise UsageError("--force goes with --resume: it lets a run go on with changed settings")
    recipe = load_recipe(recipe_path, list(overrides))
    forced = {setting.partition("=")[0].strip() for setting in overrides} if force else set()
    device = device_of(recipe.train.device, "train.device")
    precision = precision_of(recipe.train.precision, device)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision))
    report.Trackers.check(recipe)
    if not resume:
        _check_init(recipe, recipes.find(recipe_path))
    with (
        join(device.type) as world, contextlib.ExitStack() as locks, _memory_errors(), matmul_precision(precision)
    ):  # fmt: skip

        def lock(choose: Callable) -> Path:
            """The directory that `choose` locks until the run ends; the first process locks it for all."""
            folder, release = choose(Path(runs), recipe.name)
            locks.callback(release)
            return folder

        quiet, folder, state, changes = quiet or world.rank > 0, None, None, []
        if resume:
            folder = world.from_first(lambda: lock(run_directory.reopen))
            state = states.load_state(folder, (lambda line: None) if world.rank else print)
            changes = states.check_same_recipe(folder, recipe, state["recipe"], forced)
        new_data = "data.shards" in forced
        trainer = Trainer(recipe, folder, device, world=world, state=state, new_data=new_data, quiet=quiet)
        _check_epochs(trainer)
        if profile:
            trainer.say(*describe(trainer), *trainer.measure_saturation(seconds=20.0).table())
            return None
        if not resume:  # late: a recipe that does not work leaves no directory
            trainer.record.folder = world.from_first(lambda: lock(run_directory.create))
        with _stop_on_signals(trainer):
            try:
                trainer.say(*describe(trainer))
                if changes := changes + trainer.changes:
                    trainer.say(f"warning: --force changes {', '.join(changes)}")
                trainer.fit()
            except run_directory.WriteError as e:
                saved = trainer.record.folder.is_dir() and states.list_states(trainer.record.folder)
                how = "the same command with --resume goes on" if saved else "start it again"
                raise Error(f"{e}; when that is mended, {how}") from None
    return trainer.record.folder


def _check_init(recipe: Recipe, path: Path) -> None:
    """Raise Error where the checkpoint to start from is missing, and say which command makes it."""
    if not recipe.init or Path(recipe.init).exists():
        return
    maker, how = path.parent / f"{Path(recipe.init).parent.name}.yaml", "give the path of one"
    if maker.is_file() and maker != path:
        how = f"`mlpdata train {maker}` makes it, or give the path of one"
    raise Error(f"recipe: init: there is no checkpoint {recipe.init}: {how} with --set init=FILE")


def _check_epochs(trainer: Trainer) -> None:
    """Raise Error where a resumed run is beyond the epochs that it is now asked for."""
    epochs, steps = trainer.recipe.train.epochs, len(trainer.train_loader)
    if trainer.step > epochs * steps:
        raise Error(
            f"{trainer.record.folder} has taken {plural(trainer.step, 'step')} of {steps:,} an epoch, more than "
            f"train.epochs={epochs} asks for: ask for at least {-(-trainer.step // steps)}"
        )


@contextlib.contextmanager
def _memory_errors():
    """Turn a lack of memory, on the device or on the host, into an Error that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        less = "raise train.accumulate, lower train.batch_size, or set data.tier to pinned"
        raise Error(f"the GPU's memory is not enough: {less} ({first_line(e):.120})") from None
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e) and "allocate memory" not in str(e):
            raise
        less = "lower train.batch_size or the model's size, or set data.tier to stream"
        raise Error(f"the memory is not enough: {less} ({first_line(e):.120})") from None


@contextlib.contextmanager
def _stop_on_signals(trainer: Trainer):
    """While training, SIGINT, SIGTERM and SIGHUP ask for a stop after the step; a second one stops without saving.

    A signal that is ignored stays ignored: the shell has background jobs ignore SIGINT, since their Ctrl-C is meant for
    others, and nohup has SIGHUP ignored.
    """

    def ask(number, _):
        if trainer.stop_signal is not None:
            _tell(trainer, "stopping without saving")
            raise KeyboardInterrupt
        trainer.stop_signal = number
        again = "Ctrl-C again stops" if number == signal.SIGINT else "the next signal stops"
        _tell(trainer, f"stopping: the run is saved after the step under way; {again} without saving")

    try:
        numbers = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
        old = {s: signal.signal(s, ask) for s in numbers}
    except ValueError:  # not the main thread, which alone may set handlers
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _tell(trainer: Trainer, text: str) -> None:
    """Write a line from a signal handler, past Python's buffers, which the code under way may be writing to."""
    if trainer.world.rank == 0:
        with contextlib.suppress(OSError):
            os.write(2, ("\n" * os.isatty(2) + text + "\n").encode())  # below the epoch's live line
