"""Units of work on a Ray cluster."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from mlpdata.errors import Error, first_line
from mlpdata.system.engines import TICK_S, Engine, Function, Outcome, Tick, attempt
from mlpdata.system.optional import missing

CONNECT_S = 10.0


@contextlib.contextmanager
def joined() -> Iterator[Any]:
    """Be a part of the cluster, and give the module ray. Raises Error where there is no Ray or no cluster."""
    try:
        import ray
    except ImportError:
        raise missing("ray", "--engine ray") from None
    if ray.is_initialized():
        yield ray
        return
    host, _, port = os.environ.get("RAY_ADDRESS", "").removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except OSError:
        raise Error("no Ray cluster found: `ray start --head` on one machine, or set RAY_ADDRESS") from None
    except Exception as e:
        raise Error(f"cannot join the Ray cluster: {first_line(e)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


class RayEngine(Engine):
    """Tasks on a Ray cluster that is already there (RAY_ADDRESS, or the one this machine belongs to).

    num_workers: tasks under way at once; None: the cluster's CPUs. The tasks of a node that is lost run again on
    another. state.arrive() is called once in each of Ray's processes: it raises Error where the node cannot do the
    work.
    """

    def __init__(self, num_workers: int | None, state: Any):
        self._leave = contextlib.ExitStack()
        self._ray = ray = self._leave.enter_context(joined())
        self._num_workers = num_workers
        # Without a bound on retries: the tasks of a node that is lost start again on another.
        self._run = ray.remote(num_cpus=1, max_retries=-1)(_run_on_node)
        self._name, self._state = f"{os.getpid()}-{id(self)}", ray.put(state)
        self._busy: dict[Any, Any] = {}

    def _outcomes(self, function: Function, tasks: Iterator[Any], tick: Tick) -> Iterator[tuple[Any, Outcome]]:
        ray, busy = self._ray, self._busy
        while True:
            room = self._num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(busy) < room and (task := next(tasks, None)) is not None:
                busy[self._run.remote(function, self._name, [self._state], task)] = task
            if not busy:
                return
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=TICK_S)
            if not ready:
                tick(list(busy.values()))
            for reference in ready:
                task = busy.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as e:
                    lines = str(e).strip().splitlines() or [type(e).__name__]
                    raise Error(
                        f"Ray could not run {task}: {lines[-1]}; "
                        "mlpdata must be installed on every node; run the same command again to go on from here"
                    ) from None
                yield task, outcome

    def close(self) -> None:
        for reference in self._busy:
            with contextlib.suppress(Exception):  # it ends with us anyway
                self._ray.cancel(reference, force=True)
        self._busy.clear()
        self._leave.close()


_states: dict[str, Any] = {}  # in Ray's worker processes: the state of the run they last worked for


def _run_on_node(function: Function, name: str, state: list, task: Any) -> Outcome:
    if name not in _states:
        import ray

        arrived = ray.get(state[0])
        outcome = attempt(lambda state, task: state.arrive(), arrived, task)
        if outcome[1] is not None:
            return outcome
        _states.clear()
        _states[name] = arrived
        gc.disable()
    return attempt(function, _states[name], task)
