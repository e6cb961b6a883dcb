"""The way of batches from host memory to a GPU, with a made device: copies are clones, and events end when told to."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from conftest import HANG_S, until

import mlpdata
from mlpdata.loader import tiers
from mlpdata.loader.memory_plan import Needs
from mlpdata.loader.pinned import NUM_AHEAD


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
    batches, seen = iter(loader), []
    for _ in range(NUM_AHEAD + 1):
        seen.append(next(batches))
    until(blocked.is_set)  # the consumer has taken more than the device has done
    assert len(copied) <= 2 * (len(seen) + NUM_AHEAD + 1)  # pixels and numbers of those taken and of those that wait
    done.set()
    seen += batches
    assert torch.cat([b.ids for b in seen]).tolist() == expected.tolist()
    assert all(np.array_equal(b.images.numpy(), images[b.ids.numpy()]) for b in seen)
