"""The head with its loss as one Triton kernel gives what the plain formula does, under the interpreter and on a GPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer import loss as loss_module
from trainer import model as model_module
from trainer.loss import LEAST_CLASSES, ModelWithLoss, loss_and_right
from trainer.model import Head, build

pytest.importorskip("triton", reason="the kernel needs triton, which has no wheel for this system")
loss_kernel = importlib.import_module("trainer.loss_kernel")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.fixture(params=["cpu", GPU])
def device(request, monkeypatch):
    """Where the kernel runs: on the CPU by Triton's interpreter, for which it is compiled anew."""
    if request.param == "cuda":
        before = torch.get_float32_matmul_precision()  # other tests may have left another one
        torch.set_float32_matmul_precision("highest")
        yield torch.device("cuda")
        torch.set_float32_matmul_precision(before)
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.reload(loss_kernel)
    monkeypatch.setattr(loss_kernel, "BLOCK", 32)  # so that a row takes more than one
    monkeypatch.setattr(model_module, "GPUS", ("cpu",))
    monkeypatch.setattr(loss_module, "LEAST_CLASSES", 2)  # the interpreter takes a second for a thousand sums of 64
    yield torch.device("cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    importlib.reload(loss_kernel)


def a_batch(device, n, classes, mixed):
    """A batch of images of 4 px; of some mixed ones both labels are one."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randn(n, 3, 4, 4, generator=generator)
    labels, mix_labels = torch.randint(classes, (2, n), generator=generator)
    mix_labels[::5] = labels[::5]
    rest = (labels, mix_labels, torch.rand(n, generator=generator)) if mixed else (labels, None, None)
    return [None if t is None else t.to(device) for t in (images, *rest)]


def results(module, net, batch, dtype, compiled):
    """(loss, right answers, gradients) of one pass, the loss's own gradient being 3."""
    net.zero_grad()
    torch._dynamo.reset()
    step = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, right = step(*batch)
    (3 * loss).backward()
    return loss.item(), right.item(), [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "plain"])
@pytest.mark.parametrize(("samples", "classes"), [(9, 11), (5, 64), (3, 100)])
def test_a_compiled_head_has_the_loss_and_the_gradients_of_the_formula(device, samples, classes, mixed, dtype):
    if device.type == "cuda":
        samples, classes = 100 * samples, 100 * classes
    net, batch = build("B_1-Wi_32", 4, classes, seed=1).to(device), a_batch(device, samples, classes, mixed)
    with torch.no_grad():
        net.linear_out.weight.mul_(20)
        best = net(batch[0]).argmax(1)
        batch[1][::3] = best[::3]  # some answers are right
    loss, right, gradients = results(ModelWithLoss(net, 0.3, dtype), net, batch, dtype, compiled=True)
    reference = build("B_1-Wi_32", 4, classes, seed=1).to(device)
    reference.load_state_dict(net.state_dict())
    expected_loss, expected_right, expected = results(ModelWithLoss(reference, 0.3), reference, batch, dtype, False)
    assert loss == pytest.approx(expected_loss, rel=1e-6 if dtype == torch.float32 and device.type == "cpu" else 5e-3)
    assert right == pytest.approx(expected_right, abs=1e-3 if dtype == torch.float32 else 2) and right > 0.1
    for ours, theirs in zip(gradients, expected, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < (1e-5 if dtype == torch.float32 else 4e-2)


def test_gradients_of_padding_are_zero(device):
    logits, (_, *rest) = torch.randn(9, 64, device=device), a_batch(device, 9, 60, True)
    losses, right, gradient = loss_kernel.loss_and_gradient(logits, *rest, 60, 0.1)
    leaf = logits[:, :60].clone().requires_grad_()
    loss, num_right = loss_and_right(leaf, *rest, 0.1)
    loss.backward()
    assert torch.allclose(losses.mean(), loss.detach()) and torch.allclose(right.sum(), num_right)
    assert torch.allclose(gradient[:, :60] / 9, leaf.grad, atol=1e-7) and not gradient[:, 60:].any()


def test_a_logit_that_is_no_number_shows_in_the_loss(device):
    logits, (_, *rest) = torch.zeros(5, 64, device=device), a_batch(device, 5, 64, True)
    logits[3, 7] = float("nan")
    losses = loss_kernel.loss_and_gradient(logits, *rest, 64, 0.1)[0]
    assert losses.isnan().tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("classes", "dtype", "has_kernel"),
    [(LEAST_CLASSES - 1, torch.bfloat16, False), (LEAST_CLASSES, torch.bfloat16, True), (1000, torch.float16, False),
     (1000, None, False), (40_000, torch.float32, True)],
)  # fmt: skip
def test_which_heads_have_the_kernel(classes, dtype, has_kernel):
    assert (ModelWithLoss(Head(4, classes), 0.1, dtype)._kernel is not None) == has_kernel


def test_gpus_get_code_without_spills():
    """Compiled for an H100, which needs none: what the interpreter takes, the compiler may not."""
    script = Path(__file__).parents[1] / "bench" / "kernels.py"
    done = subprocess.run(
        [sys.executable, script, "--chip", "sm_90", "--set", "--classes", "1000", "11230"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kernel"] for row in rows] == ["loss", "loss"] and all(row["spill_bytes"] == 0 for row in rows)
