"""The step: its loss against the plain formula, its graph, its optimizer, and what it must not do."""

import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from conftest import read_jsonl, without_progress
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlpdata import Error
from mlpdata.augment.batch import Batch
from trainer import compiling, step_graph
from trainer import loss as loss_module
from trainer import model as model_module
from trainer import step as step_module
from trainer.evaluate import evaluate
from trainer.loss import ModelWithLoss, loss_and_right
from trainer.model import Block, Head
from trainer.optim import make_optimizer
from trainer.recipe import Optim, load_recipe
from trainer.train import Trainer, run
from trainer.world import World

WAITS = ("_local_scalar_dense", "nonzero", "aten.equal", "bincount", "unique", "masked_select")


class Asked(TorchDispatchMode):
    """Notes operations that hand a tensor's value to Python: on a GPU each of them waits for the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        masks = [t for t in tree_leaves(args[1:]) if isinstance(t, torch.Tensor) and t.dtype == torch.bool]
        if any(word in str(function) for word in WAITS) or (masks and "aten.index" in str(function)):
            self.seen.append(str(function))
        return function(*args, **kwargs or {})


def a_batch(n=37, classes=11, scale=3.0, dtype=torch.float32, mixed=True):
    """(logits, labels, mix_labels, mix_lam); of some mixed images both labels are one."""
    generator = torch.Generator().manual_seed(n)
    logits = (torch.randn(n, classes, generator=generator) * scale).to(dtype)
    labels, mix_labels = torch.randint(classes, (2, n), generator=generator)
    mix_labels[::5] = labels[::5]
    return (logits, labels, mix_labels, torch.rand(n, generator=generator)) if mixed else (logits, labels, None, None)


def plain_loss_and_right(logits, labels, mix_labels, mix_lam, label_smoothing):
    """torch's own cross-entropy in float64, once for each label of an image."""
    z, best = logits.double(), logits.argmax(1)
    loss, right = F.cross_entropy(z, labels, label_smoothing=label_smoothing, reduction="none"), best == labels
    if mix_lam is not None:
        other = F.cross_entropy(z, mix_labels, label_smoothing=label_smoothing, reduction="none")
        loss, right = mix_lam * loss + (1 - mix_lam) * other, mix_lam * right + (1 - mix_lam) * (best == mix_labels)
    return loss.mean(), right.sum()


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_loss_gradient_and_right_answers_are_those_of_the_formula(whole, dtype, mixed, label_smoothing, monkeypatch):
    monkeypatch.setitem(loss_module.BLOCK_BYTES, "cpu", 5 * 4 * 11)  # the last block is a smaller one
    monkeypatch.setattr(loss_module, "is_compiling", lambda: whole)
    logits, *rest = a_batch(dtype=dtype, mixed=mixed)
    ours, reference = (logits.clone().requires_grad_() for _ in range(2))
    loss, right = loss_and_right(ours, *rest, label_smoothing)
    expected_loss, expected_right = plain_loss_and_right(reference, *rest, label_smoothing)
    (loss * 7).backward()
    (expected_loss * 7).backward()
    loss, expected_loss = loss.detach(), expected_loss.detach()
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6) and loss.dtype == torch.float32
    assert float(right) == pytest.approx(float(expected_right))
    rounding = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert torch.allclose(ours.grad.double(), reference.grad.double(), rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("whole", [False, True])
def test_bf16_logits_lose_nothing_on_any_device(whole, monkeypatch):
    """Autocast on CUDA would take the loss in bf16: here every operation on float32 stays one."""
    monkeypatch.setattr(loss_module, "is_compiling", lambda: whole)
    logits, *rest = a_batch(n=256, classes=11_230, dtype=torch.bfloat16)

    results = []

    class Rounded(TorchDispatchMode):
        """Notes operations with a result in bf16."""

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16:
                results.append(str(function))
            return result

    with torch.autocast("cpu", torch.bfloat16), Rounded():
        loss, _ = loss_and_right(logits, *rest, 0.3)
    assert not [name for name in results if not any(view in name for view in ("slice", "detach", "alias"))]
    assert float(loss) == pytest.approx(float(plain_loss_and_right(logits, *rest, 0.3)[0]), rel=1e-6)


def test_of_equal_logits_the_first_counts():
    logits = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert float(loss_and_right(logits, torch.tensor([0, 1, 5, 0]))[1]) == 2


def test_a_padded_head_computes_the_same(monkeypatch):
    head, x = Head(16, 11), torch.randn(5, 16)
    plain, gradients = head(x), torch.autograd.grad(head(x).square().sum(), head.parameters())
    monkeypatch.setattr(model_module, "GPUS", ("cpu",))
    padded = head(x)
    assert padded.shape == (5, 11) and padded.stride() == (64, 1)
    assert torch.allclose(padded, plain, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(padded.square().sum(), head.parameters()), gradients, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5)
    with torch.no_grad():
        loss, _ = ModelWithLoss(head, 0.1)(x, *a_batch(5)[1:])
    assert float(loss) == pytest.approx(float(plain_loss_and_right(plain.detach(), *a_batch(5)[1:], 0.1)[0]), rel=1e-5)


@pytest.mark.parametrize(("samples", "group"), [(256, 128), (100, 4), (98, None)])
def test_a_block_whose_bias_is_summed_by_groups_computes_the_same(samples, group, monkeypatch):
    block, x = Block(8, 3, "gelu", 0.0), torch.randn(samples, 8, requires_grad=True)
    weights = [x, *block.parameters()]
    plain = block(x)
    gradients = torch.autograd.grad(plain.sin().sum(), weights)
    monkeypatch.setattr(model_module, "GPUS", ("cpu",))
    monkeypatch.setattr(model_module, "is_compiling", lambda: True)
    shapes, gelu = [], F.gelu
    monkeypatch.setattr(F, "gelu", lambda z, **options: shapes.append(z.shape) or gelu(z, **options))
    grouped = block(x)
    assert shapes == [(samples // group, group, 24) if group else (samples, 24)]
    assert torch.allclose(grouped, plain, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(grouped.sin().sum(), weights), gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unscaled_first", [False, True], ids=["plain", "clipped"])
def test_lion_leaves_out_a_step_with_infinite_gradients_without_asking(unscaled_first):
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plain, scaled = (make_optimizer(m, Optim(name="lion", lr=0.01, weight_decay=0.1)) for m in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for k in range(5):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(k))
        for model, factor in zip(models, (1.0, scaler.get_scale()), strict=True):
            model.weight.grad, model.bias.grad = gradient * factor, torch.zeros(2)
        if k == 2:
            models[1].weight.grad[0, 0] = float("inf")
        else:
            plain.step()
        scaler.scale(torch.zeros(()))
        if unscaled_first:
            scaler.unscale_(scaled)
        with Asked() as asked:
            scaler.step(scaled)
        scaler.update()
        assert asked.seen == []
        assert all(torch.allclose(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert scaler.get_scale() == 32.0


# ----------------------------------------------------------------------------------- what a step must not do

RECIPE = """\
name: tiny
data:
  shards: {shards}
augment:
  mixup: 0.5
model:
  depth: 2
  width: 16
train:
  epochs: 2
  batch_size: 100
  device: cpu
log:
  tensorboard: false
"""


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "sgd"])
def test_a_step_asks_the_device_nothing(recipe, optimizer):
    words = [f"optim.name={optimizer}", "train.clip_norm=1", "train.ema=0.9", "train.accumulate=2", "model.dropout=0.1"]
    words += ["augment.mixup=0.5", "train.record_steps=true"]
    trainer_ = Trainer(load_recipe(recipe, words), recipe.parent, torch.device("cpu"), quiet=True)
    batch = next(iter(trainer_.train_loader))
    trainer_.train_step(batch)
    with Asked() as asked:
        trainer_.train_step(batch)
    assert asked.seen == [] and trainer_.step == 2
    with Asked() as asked:
        float(trainer_.training_step.sums.loss)
    assert asked.seen  # the notes are taken


@pytest.mark.parametrize("top_k", [0, 3])
def test_evaluation_asks_the_device_only_at_its_end(recipe, top_k):
    trainer_ = Trainer(load_recipe(recipe), recipe.parent, torch.device("cpu"), quiet=True)
    loader, seen = trainer_.eval_loader, []
    real = torch.randint(-1, 10, (loader.num_samples, 3))

    class Watched(type(loader)):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                seen.append(list(asked.seen))  # after the batch was used

    loader.__class__ = Watched
    with Asked() as asked:
        evaluate(trainer_.model, loader, trainer_.autocast, real=real, top_k=top_k)
    assert len(seen) == len(loader) and not any(seen)


def compile_with(monkeypatch, backend):
    def compile_(function, **options):
        return torch.compile(function, backend=backend, **options)

    fake = types.SimpleNamespace(compile=compile_, OutOfMemoryError=torch.OutOfMemoryError)
    monkeypatch.setattr(compiling, "torch", fake)


@pytest.mark.parametrize(
    "words", [["optim.name=lion"], ["optim.name=adamw", "train.ema=0.9", "train.clip_norm=1", "train.accumulate=2"]]
)
def test_a_compiled_step_is_one_graph_that_is_compiled_once(recipe, words, monkeypatch):
    compile_with(monkeypatch, "aot_eager")  # the graphs alone: a C++ compiler takes a minute
    monkeypatch.setattr(model_module, "GPUS", ("cpu",))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    words = [*words, "augment.compile=false"]  # as else after half a minute of it
    folder = run(recipe, [*words, "train.compile=true", "train.record_steps=true"], runs=recipe.parent, quiet=True)
    own = 1 if "optim.name=lion" in words else 0  # the optimizer's update
    assert counters["stats"]["unique_graphs"] == 1 + own and not counters["graph_break"]
    plain = run(recipe, [*words, "train.record_steps=true"], runs=recipe.parent, quiet=True)
    a, b = ([row["loss"] for row in read_jsonl(f / "steps.jsonl")] for f in (folder, plain))
    assert len(a) == 30 and a == pytest.approx(b, rel=1e-4)


def test_a_compiler_that_fails_is_a_warning_and_the_run_is_the_same(recipe, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\nx.cpp:2: error: no C++ compiler\nmore")

    plain = run(recipe, ["train.record_steps=true"], runs=recipe.parent, quiet=True)
    compile_with(monkeypatch, broken)
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=r"train.compile: .* uncompiled, which is slower: .*error: no C\+\+ compiler$"):
        folder = run(recipe, ["train.record_steps=true", "train.compile=true"], runs=recipe.parent, quiet=True)
    assert read_jsonl(folder / "steps.jsonl") == read_jsonl(plain / "steps.jsonl")


@pytest.fixture
def captured(monkeypatch):
    """Steps are captured as on a GPU, by what a CPU can do: a replay does it all again, with the same tensors."""
    captures = []

    def capture(act):
        results = [torch.zeros(0), torch.zeros(0)]
        captures.append(act)

        def replay():
            for kept, made in zip(results, act(), strict=True):
                kept.resize_(made.shape).copy_(made)

        return replay, tuple(results)

    monkeypatch.setattr(step_graph, "capture", capture)
    monkeypatch.setattr(step_module, "GPUS", ("cpu",))
    return captures


@pytest.mark.parametrize(
    "words",
    [["optim.name=lion"], ["optim.name=adamw", "train.ema=0.9", "train.clip_norm=1"],
     ["optim.name=sgd", "optim.momentum=0.9"], ["train.accumulate=2"]],
    ids=["lion", "adamw", "sgd", "pieces"],
)  # fmt: skip
def test_a_captured_step_is_the_same_step(recipe, words, captured):
    words = [*words, "train.record_steps=true", "train.epochs=2"]
    by_graph, resumed, plain = {}, {}, {}
    for schedule in ("cosine", "constant"):
        own = [*words, f"schedule.name={schedule}"]
        by_graph[schedule] = run(recipe, own, runs=recipe.parent, quiet=True)
        plain[schedule] = run(recipe, [*own, "train.cuda_graphs=false"], runs=recipe.parent, quiet=True)
    first = run(recipe, [*words, "schedule.name=constant", "train.epochs=1"], runs=recipe.parent, quiet=True)
    resumed["constant"] = run(first / "recipe.yaml", ["train.epochs=2"], runs=recipe.parent, quiet=True, resume=True,
                              force=True)  # fmt: skip
    assert len(captured) == 4  # one a run
    for runs in (by_graph, resumed):
        for schedule, folder in runs.items():
            steps, expected = (read_jsonl(f / "steps.jsonl") for f in (folder, plain[schedule]))
            assert len(steps) == len(expected) > 10
            assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in expected], rel=1e-6)
            rates = ([row["lr"] for row in read_jsonl(f / "metrics.jsonl")] for f in (folder, plain[schedule]))
            assert next(rates) == pytest.approx(next(rates), rel=1e-6)


def test_batches_of_another_size_go_without_the_graph(captured):
    def take(batch):
        sizes.append(len(batch.labels))
        return (batch.images.sum()[None], batch.labels.sum()[None])

    sizes, graph = [], step_graph.StepGraph(take, enabled=True)
    for size in (4, 4, 4, 4, 3, 4):
        images, labels = torch.rand(size, 3), torch.arange(size)
        loss, right = graph(Batch(images, labels, labels))
        assert float(loss) == float(images.sum()) and int(right) == int(labels.sum())
    assert sizes == [4, 4, 4, 4, 3, 4] and len(captured) == 1


def test_a_graph_that_cannot_be_captured_is_a_warning(monkeypatch):
    def broken(act):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(step_graph, "capture", broken)
    graph = step_graph.StepGraph(lambda batch: (batch.images.sum()[None],), enabled=True)
    batch = Batch(torch.ones(4, 3), torch.arange(4), torch.arange(4))
    with pytest.warns(
        UserWarning, match="cuda_graphs: steps run without, which is slower: operation not permitted"
    ) as w:
        assert [float(graph(batch)[0]) for _ in range(6)] == [12.0] * 6
    assert len(w) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "needs a GPU; leave"), (["train.precision=fp16"], "fp16"), (["model.dropout=0.1"], "dropout, whose seed")],
)  # fmt: skip
def test_graphs_that_cannot_be_are_refused_when_asked_for(recipe, words, message, monkeypatch):
    if words:
        monkeypatch.setattr(step_module, "GPUS", ("cpu",))
    asked = load_recipe(recipe, ["train.cuda_graphs=true", *words])
    with pytest.raises(Error, match=message):
        step_module.uses_graph(asked, torch.device("cpu"), World())
    assert not step_module.uses_graph(load_recipe(recipe, words), torch.device("cpu"), World())


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "sgd"])
def test_what_is_slow_to_import_is_not_imported_before_the_first_step(recipe, optimizer):
    code = (
        "import sys\nfrom trainer.train import Trainer, run\n"
        "step = Trainer.train_step\n"
        "def stop(self, batch):\n"
        "    step(self, batch)\n"
        "    slow = 'torch._dynamo', 'matplotlib', 'tensorboard', 'scipy'\n"
        "    sys.exit(' '.join(m for m in slow if m in sys.modules))\n"
        "Trainer.train_step = stop\n"
        "run(sys.argv[1], sys.argv[2:], quiet=True)"
    )
    words = [f"optim.name={optimizer}", "train.clip_norm=1", "train.ema=0.9"]
    done = subprocess.run(
        [sys.executable, "-c", code, recipe, *words], cwd=recipe.parent, capture_output=True, text=True, check=False
    )
    assert without_progress(done.stderr).strip() == ""
