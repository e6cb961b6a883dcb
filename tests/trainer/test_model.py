import json
import zipfile

import pytest
import torch
import torch.nn.functional as F

import trainer
from mlpdata import Error
from trainer.flops import forward_flops
from trainer.model import num_parameters
from trainer.recipe import Model


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("B_6-Wi_512", 24_657_374),
        ("B_12-Wi_512", 37_261_790),
        ("B_6-Wi_1024", 74_469_342),
        ("B_12-Wi_1024", 124_843_998),
    ],
)
def test_parameter_counts_of_the_paper(name, count):
    assert num_parameters(trainer.build(name, res=64, num_classes=11_230)) == count


def test_b_mlp_is_the_papers_formula():
    model = trainer.build("B_2-Wi_8", res=4, num_classes=5, seed=0)
    state = model.state_dict()
    x = torch.randn(3, 3, 4, 4)
    z = F.linear(x.flatten(1), state["linear_in.weight"], state["linear_in.bias"])
    for i in range(2):
        h = F.layer_norm(z, (8,), state[f"layernorms.{i}.weight"], state[f"layernorms.{i}.bias"])
        h = F.gelu(F.linear(h, state[f"blocks.{i}.block.0.weight"], state[f"blocks.{i}.block.0.bias"]))
        z = z + F.linear(h, state[f"blocks.{i}.block.2.weight"], state[f"blocks.{i}.block.2.bias"])
    expected = F.linear(z, state["linear_out.weight"], state["linear_out.bias"])
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert torch.equal(model(x), model(x.flatten(1)))
    assert state["blocks.0.block.0.weight"].shape == (32, 8)


def test_s_mlp_is_the_papers_formula():
    model = trainer.build("S_3-Wi_8", res=4, num_classes=5, seed=0)
    state = model.state_dict()
    x = torch.randn(3, 48)
    z = F.linear(x, state["linear_in.weight"], state["linear_in.bias"])
    for i in range(2):
        h = F.gelu(F.layer_norm(z, (8,), state[f"layernorms.{i}.weight"], state[f"layernorms.{i}.bias"]))
        z = F.linear(h, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
    expected = F.linear(z, state["linear_out.weight"], state["linear_out.bias"])
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert "layers.2.weight" not in state


def test_initialisation_follows_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = (trainer.build("B_1-Wi_8", 4, 5, seed=s).linear_in.weight for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_options():
    config = Model(kind="s_mlp", depth=2, width=8, norm="batch", activation="relu", dropout=0.5)
    model = trainer.build(config, 4, 5, seed=0)
    assert isinstance(model.layernorms[0], torch.nn.BatchNorm1d)
    x = torch.randn(6, 48)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    for name in ("B_1-Wi_8-E_2", "B_1-Wi_8-Ex_2"):  # the authors' code takes any word there
        assert trainer.build(name, 4, 5).blocks[0].block[0].out_features == 16
    named = trainer.build(Model(name="B_1-Wi_8", activation="relu", norm="none"), 4, 5)
    assert isinstance(named.blocks[0].block[1], torch.nn.ReLU) and isinstance(named.layernorms[0], torch.nn.Identity)


def test_flops_of_a_known_model():
    model = trainer.build("B_1-Wi_8", 4, 5)
    assert forward_flops(model) == 2 * (48 * 8 + 8 * 32 * 2 + 8 * 5)


@pytest.mark.parametrize("name", ["B_12", "B_0-Wi_8", "X_1-Wi_8", "B_1-Wi_8-E_0", "S_1-Wi_8-E_2", ""])
def test_bad_names(name):
    with pytest.raises(Error, match="is not like B_12-Wi_1024"):
        trainer.build(name, 4, 5)


# ----------------------------------------------------------------------------------------------------- checkpoints


def authors_state(expansion=4, depth=3, width=16, inputs=3 * 64, classes=7):
    state = {"linear_in.weight": (width, inputs), "linear_in.bias": (width,)}
    for i in range(depth):
        state |= {
            f"blocks.{i}.block.0.weight": (expansion * width, width),
            f"blocks.{i}.block.0.bias": (expansion * width,),
            f"blocks.{i}.block.2.weight": (width, expansion * width),
            f"blocks.{i}.block.2.bias": (width,),
            f"layernorms.{i}.weight": (width,),
            f"layernorms.{i}.bias": (width,),
        }
    state |= {"linear_out.weight": (classes, width), "linear_out.bias": (classes,)}
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=generator) for k, s in state.items()}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
@pytest.mark.parametrize("zipped", [True, False])  # torch wrote plain pickles before 1.6
def test_the_authors_checkpoints_load_unchanged(tmp_path, wrap, zipped):
    state = authors_state()
    torch.save(wrap(state), tmp_path / "B_3.pt", _use_new_zipfile_serialization=zipped)
    model = trainer.load(tmp_path / "B_3.pt")
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)


def test_a_standard_mlp_of_the_authors_loads(tmp_path):
    state = trainer.build("S_4-Wi_16", 8, 7, seed=0).state_dict()
    torch.save({k.replace("layernorms", "layer_norms"): v for k, v in state.items()}, tmp_path / "s.pt")
    model = trainer.load(tmp_path / "s.pt")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("true",)


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(Error, match="no checkpoint at"):
        trainer.load(tmp_path / "none.pt")
    torch.save({"x": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(Error, match="loaded safely"):
        trainer.load(tmp_path / "evil.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 10)
    with pytest.raises(Error, match="checkpoint of this trainer"):
        trainer.load(tmp_path / "noise.safetensors")
    state = authors_state()
    state.pop("layernorms.1.weight")
    torch.save(state, tmp_path / "lacks.pt")
    with pytest.raises(Error, match="does not fit"):
        trainer.load(tmp_path / "lacks.pt")


# ------------------------------------------------------------------------------------------- checkpoints of strangers

OURS = {"name": "x", "data": {"shards": "x"}, "model": {"depth": 1, "width": 8}}


def ours(path, tensors=None, **facts):
    from safetensors.torch import save

    path.write_bytes(save(tensors or {"a": torch.zeros(1)}, {"mlpdata": json.dumps(facts)}))
    return path


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"recipe": {**OURS, "model": {"width": 65536, "depth": 1}}, "res": 64}, r"of 'a' the model has nothing"),
        ({"recipe": {**OURS, "model": {"width": 65536, "depth": 20}}, "res": 64}, "depth 20, but 1 tensors"),
        ({"recipe": {**OURS, "model": {"width": 8, "depth": 10**6}}, "res": 64}, "model.depth must be at most"),
        ({"recipe": OURS, "res": 16, "num_classes": 10**9}, "num_classes 1000000000, which must be"),
        *(({"recipe": OURS, "res": v}, "res .* must be a whole number from 1 to 1,024")
          for v in (10**6, "x", None, [], -1, 0, 1.5, True, 10**30, float("nan"))),
        *(({"recipe": r, "res": 16}, "no recipe inside that can be read|lacks metadata")
          for r in ("x", None, [], 5, {}, {**OURS, "model": 5}, {**OURS, "x": 1}, {**OURS, "name": "\ud800"})),
        ({"recipe": OURS, "res": 16, "mean": [1, float("nan"), 1]}, "mean .* must be three numbers"),
        ({"recipe": OURS, "res": 16, "std": "x"}, "std 'x', which must be three numbers"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_says_is_checked_before_anything_is_made(tmp_path, facts, message):
    with pytest.raises(Error, match=message) as caught:
        trainer.load(ours(tmp_path / "a.safetensors", **{"num_classes": 10, **facts}))
    assert "\n" not in str(caught.value)


def test_what_a_checkpoint_says_of_itself_is_bounded(tmp_path):
    from safetensors.torch import save

    for text in ("[" * 100_000, "{", "[]", "5", "null", "\0", '"' + "x" * (2 << 20) + '"'):
        (tmp_path / "a.safetensors").write_bytes(save({"a": torch.zeros(1)}, {"mlpdata": text}))
        with pytest.raises(Error, match="checkpoint of this trainer") as caught:
            trainer.load(tmp_path / "a.safetensors")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**s, "linear_in.weight": torch.zeros(1).expand(10**9, 3072)},
            "'linear_in.weight' is no plain tensor",
        ),
        (lambda s: {**s, "linear_out.weight": torch.zeros(1).expand(10**10, 16)}, "'linear_out.weight' is no plain"),
        (lambda s: {**s, "linear_in.weight": s["linear_in.weight"].to_sparse()}, "no plain tensor"),
        (lambda s: {**s, "linear_in.weight": s["linear_in.weight"].to("meta")}, "no plain tensor"),
        (lambda s: {**s, "blocks.0.block.0.weight": 5}, "no plain tensor"),
        (lambda s: {**s, "blocks.0.block.0.weight": torch.zeros(())}, "its expansion is 0"),
        (lambda s: {**s, "linear_in.weight": torch.zeros(0, 192)}, "its width is 0"),
        (lambda s: {**s, "linear_out.weight": torch.zeros(0, 16)}, "it has 0 classes"),
        (lambda s: {**s, "linear_in.weight": torch.zeros(16, 0)}, "takes 0 inputs"),
        (lambda s: {**s, **{f"blocks.{i}.block.0.weight": torch.zeros(1) for i in range(2000)}}, "its depth is 2000"),
        (lambda s: {k: v.to(torch.complex64) for k, v in s.items()}, "torch.complex64, which are no weights"),
        (lambda s: {k: v.bool() for k, v in s.items()}, "torch.bool, which are no weights"),
        (lambda s: {**s, "linear_out.bias": s["linear_out.bias"] * float("nan")}, "that are no finite numbers"),
        (lambda s: {**s, "more": torch.zeros(1)}, "of 'more' the model has nothing, the file \\[1\\]"),
    ],
)
def test_state_dicts_that_claim_more_than_they_hold(tmp_path, change, message):
    torch.save(change(authors_state()), tmp_path / "a.pt")
    with pytest.raises(Error, match=message) as caught:
        trainer.load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_a_packed_file_that_hides_a_large_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as f:
        f.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(Error, match=r"is compressed, which torch.save never does"):
        trainer.load(tmp_path / "a.pt")
    with pytest.raises(Error, match=r"has no best\.safetensors: give .* a run directory that has one$"):
        trainer.load(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "best.safetensors").write_bytes(b"x")
    with pytest.raises(Error, match=r"has no best\.safetensors: give .* a run directory that has one, as .*tiny$"):
        trainer.load(tmp_path)
