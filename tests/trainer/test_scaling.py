import json

import numpy as np
import pytest
from conftest import run_cli

from mlpdata import Error
from trainer.scaling import RunPoint, exponent, fit, frontier, read_point


@pytest.mark.parametrize(
    ("a", "b", "alpha", "e_inf"), [(0.5, 0.0, 0.3, 0.1), (0.4, 0.05, 0.15, 0.0), (1.0, 0.3, 0.5, 0.25)]
)
def test_known_exponents_are_found(a, b, alpha, e_inf):
    compute = np.geomspace(1e12, 1e17, 12)
    unit = np.exp(np.log(compute).mean())
    law = fit(compute, a * (b + compute / unit) ** -alpha * 0.3 + e_inf)
    assert law.alpha == pytest.approx(alpha, rel=0.02) and law.e_inf == pytest.approx(e_inf, abs=0.01)
    assert law.rms < 1e-4


def test_noise_moves_the_exponent_little():
    compute = np.geomspace(1e13, 1e18, 20)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, 20))
    error = (0.3 * (compute / 1e15) ** -0.25 + 0.02) * noise
    law = fit(compute, error)
    assert law.alpha == pytest.approx(0.25, abs=0.04) and law.rms < 0.02
    assert np.allclose(law(compute), error, rtol=0.05)


def test_frontier_and_exponents():
    points = [RunPoint("x", 10.0**k, 0.5 / k, 10 ** (k // 2), 10.0 ** (k / 2)) for k in range(2, 8, 2)]
    worse = RunPoint("worse", 10**5, 0.4, 1, 1.0)
    assert frontier([*points, worse]) == points
    compute = np.array([p.compute for p in points])
    assert exponent(compute, np.array([float(p.parameters) for p in points])) == pytest.approx(0.5)
    assert exponent(compute[:2], compute[:2]) is None


def write_run(folder, compute, error, parameters=1000):
    folder.mkdir()
    row = {"epoch": 1, "step": 1, "train_loss": 1.0, "val_top1": 1 - error, "flops": compute, "parameters": parameters}
    (folder / "metrics.jsonl").write_text(json.dumps(row | {"images_per_s": 10.0, "seconds": 5.0}) + "\n")
    (folder / "summary.json").write_text("{}")


def test_the_command(tmp_path):
    for k in range(8):
        write_run(tmp_path / f"run-{k}", 1e12 * 4**k, 0.8 * 4 ** (-0.2 * k) + 0.05, parameters=1000 * 2**k)
    out = tmp_path / "law.png"
    done = run_cli("scaling", *sorted(tmp_path.glob("run-*")), "-o", out)
    assert done.returncode == 0, done.stderr
    assert "^-0.2" in done.stdout and "parameters ~ C^0.50" in done.stdout
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_mistakes(tmp_path):
    (tmp_path / "no").mkdir()
    with pytest.raises(Error, match="is no finished run"):
        read_point(tmp_path / "no")
    with pytest.raises(Error, match="as many runs of different compute, not 3"):
        fit(np.array([1e12, 2e12, 3e12]), np.array([0.5, 0.4, 0.3]))
    with pytest.raises(Error, match="fits no power law"):
        fit(np.geomspace(1, 10, 5), np.array([0.5, 0.4, 0.3, 0.2, 0.0]))
