"""The way of batches from host memory to a GPU, with a made device: copies are clones, and events end when told to.
What of it counts as waiting for pixels, by a made clock."""

import collections
import contextlib
import threading

import numpy as np
import pytest
import torch
from conftest import HANG_S, until

import mlpdata
from mlpdata.loader import tiers
from mlpdata.loader.memory_plan import Needs
from mlpdata.loader.pinned import NUM_AHEAD, HostTier
from mlpdata.system import threads


class Event:
    """Of the device: `done` says whether it has passed, `blocked` whether somebody waits for it."""

    def __init__(self, done, blocked):
        self._done, self._blocked = done, blocked

    def synchronize(self):
        if not self._done.is_set():
            self._blocked.set()
            assert self._done.wait(HANG_S)


class Stream:
    def __init__(self, done, blocked):
        self._event = done, blocked

    def record_event(self):
        return Event(*self._event)

    def wait_event(self, event):
        pass


@pytest.fixture
def device(monkeypatch):
    """(done, blocked, list of what was copied) of a device on which torch's calls come to nothing but clones."""
    done, blocked, copied = threading.Event(), threading.Event(), []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, pin_memory=False, **options: empty(*sizes, **options))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(done, blocked))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(done, blocked))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: copied.append(self) or self.clone())
    return done, blocked, copied


@pytest.mark.parametrize("tier", ["pinned", "split", "stream"])
def test_copies_do_not_run_far_ahead_of_the_device(shapes_dir, monkeypatch, device, tier):
    done, blocked, copied = device
    images = mlpdata.load(shapes_dir, batch_size=100).arrays()[0]
    monkeypatch.setattr(tiers, "free_memory", lambda: 700 * 768)
    loader = mlpdata.load(shapes_dir, batch_size=50, tier=tier, needs=Needs())
    expected = loader.order(0)
    loader._tier.device = torch.device("cuda:0")
    copied.clear()
    seen = []
    consumer = threading.Thread(target=seen.extend, args=(loader,), daemon=True)  # takes all that it is given
    consumer.start()
    until(blocked.is_set)
    # Pixels and numbers of NUM_AHEAD that the device is behind, of as many that wait ready, and of one on either side.
    assert len(copied) <= 2 * (2 * NUM_AHEAD + 2) < 2 * len(loader)
    done.set()
    consumer.join()
    assert torch.cat([b.ids for b in seen]).tolist() == expected.tolist()
    assert all(np.array_equal(b.images.numpy(), images[b.ids.numpy()]) for b in seen)


class Clock:
    """time.perf_counter of the threads' module: it goes on when told to, and counts how often threads looked at it."""

    def __init__(self):
        self.now, self.looks = 0.0, collections.Counter()

    def perf_counter(self):
        now = self.now
        self.looks[threading.get_ident()] += 1
        return now

    def counts_for(self, thread):
        """Whether a thread has looked at it when it began to wait, and not yet when it ended."""
        return self.looks[thread.ident] % 2


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(threads, "time", clock)
    return clock


@pytest.mark.parametrize("tier", ["pinned", "split", "stream"])
def test_waiting_for_the_device_is_no_waiting_for_pixels(shapes_dir, monkeypatch, device, clock, tier):
    done, blocked, copied = device
    monkeypatch.setattr(tiers, "free_memory", lambda: 700 * 768)
    loader = mlpdata.load(shapes_dir, batch_size=50, tier=tier, needs=Needs())
    loader._tier.device = torch.device("cuda:0")
    copied.clear()
    taken = []

    def consume():
        for batch in loader:
            taken.append(batch)

    consumer = threading.Thread(target=consume)
    consumer.start()
    until(blocked.is_set)
    # What is ready is taken; then the consumer waits for the producer, which waits for the device.
    until(lambda: len(taken) == len(copied) // 2 and clock.counts_for(consumer))
    clock.now += 1000.0
    done.set()
    consumer.join()
    assert len(taken) == len(loader) and loader.wait_s == 0.0


@pytest.mark.parametrize("on_device", [False, True])
def test_waiting_for_pixels_is_counted_to_the_second(shapes_dir, monkeypatch, device, clock, on_device):
    device[0].set()  # which keeps up
    loader = mlpdata.load(shapes_dir, batch_size=50, tier="pinned")
    if on_device:
        loader._tier.device = torch.device("cuda:0")
    at_work, may_go_on, prepare = threading.Event(), threading.Event(), HostTier._prepare

    def held(*args):
        for item in prepare(*args):
            at_work.set()
            assert may_go_on.wait(HANG_S)
            yield item

    monkeypatch.setattr(HostTier, "_prepare", held)
    consumer = threading.Thread(target=list, args=(loader,))
    consumer.start()
    until(lambda: at_work.is_set() and clock.counts_for(consumer))  # it waits for the first batch
    clock.now += 1000.0
    may_go_on.set()
    consumer.join()
    assert loader.wait_s == 1000.0 and loader.epoch == 1


def test_pixels_in_memory_are_never_waited_for(shapes_dir, clock):
    loader = mlpdata.load(shapes_dir, batch_size=50, tier="resident")
    assert len(list(loader)) == len(loader) and loader.wait_s == 0.0 and not clock.looks
