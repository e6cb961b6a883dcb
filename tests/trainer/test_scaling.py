import json

import numpy as np
import pytest
from conftest import run_cli

from mlpdata import Error
from trainer.scaling import RunPoint, describe, exponent, fit, frontier, read_point, scaling_figure


@pytest.mark.parametrize(
    ("a", "b", "alpha", "e_inf"), [(0.5, 0.0, 0.3, 0.1), (0.4, 0.05, 0.15, 0.0), (1.0, 0.3, 0.5, 0.25)]
)
def test_known_exponents_are_found(a, b, alpha, e_inf):
    compute = np.geomspace(1e12, 1e17, 12)
    unit = np.exp(np.log(compute).mean())
    law = fit(compute, a * (b + compute / unit) ** -alpha * 0.3 + e_inf)
    assert law.alpha == pytest.approx(alpha, rel=0.02) and law.e_inf == pytest.approx(e_inf, abs=0.01)
    assert law.rms < 1e-4 and law.alpha_interval == pytest.approx((alpha, alpha), rel=0.02)
    assert law.has_floor == (e_inf > 0)


def test_noise_moves_the_exponent_little():
    compute = np.geomspace(1e13, 1e18, 20)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, 20))
    error = (0.3 * (compute / 1e15) ** -0.25 + 0.02) * noise
    law = fit(compute, error)
    assert law.alpha == pytest.approx(0.25, abs=0.04) and law.rms < 0.02
    assert np.allclose(law(compute), error, rtol=0.05)
    low, high = law.alpha_interval
    assert low <= law.alpha <= high and high - low < 0.2


def test_frontier_and_exponents():
    points = [RunPoint("x", 10.0**k, 0.5 / k, 10 ** (k // 2), 10.0 ** (k / 2)) for k in range(2, 8, 2)]
    worse = RunPoint("worse", 10**5, 0.4, 1, 1.0)
    assert frontier([*points, worse]) == points
    compute = np.array([p.compute for p in points])
    assert exponent(compute, np.array([float(p.parameters) for p in points])) == pytest.approx((0.5, 0), abs=1e-6)
    assert exponent(compute[:2], compute[:2]) is None
    x, half_width = exponent(np.array([1.0, 2, 4, 8]), np.array([1.0, 2.2, 3.8, 8.1]))
    assert 0 < half_width < 0.3 and abs(x - 1) < half_width


def points_of(error, per_decade=4, sizes=3):
    compute = 10 ** (13 + np.arange(4 * per_decade) / per_decade)
    return [RunPoint(f"run {k}", c, error(c) * (1 + 0.02 * (-1) ** k), 1000 * 10 ** (k % sizes), c / 1e6)
            for k, c in enumerate(compute.tolist())]  # fmt: skip


def law_of(points):
    return fit(np.array([p.compute for p in points]), np.array([p.error for p in points]))


def test_a_floor_that_is_none_is_not_identified():
    points = points_of(lambda c: 0.3 * (c / 1e15) ** -0.3)
    law = law_of(points)
    law_line, intervals, exponents = describe(points, law).splitlines()
    assert not law.has_floor and "E_inf is not identified: 0.00% to" in intervals and "bootstrap" in intervals
    assert f"alpha {law.alpha:.3f}, {law.alpha_interval[0]:.3f} to {law.alpha_interval[1]:.3f}" in intervals
    assert f"C^-{law.alpha:.3f}, C in " in law_line  # neither a b nor a floor of 1e-17
    assert (
        exponents.startswith(f"frontier of {len(frontier(points))} runs: parameters ~ C^") and "variance" in exponents
    )


def test_the_lowest_error_itself_is_no_floor():
    points = points_of(lambda c: 0.3 if c > 1e13 else 0.5)
    law = law_of(points)
    assert law.e_inf == pytest.approx(min(p.error for p in points), rel=0.01)
    assert not law.has_floor and "E_inf is not identified" in describe(points, law)


def test_a_floor_that_is_one_has_an_interval():
    points = points_of(lambda c: 0.3 * (c / 1e15) ** -0.3 + 0.2)
    law = law_of(points)
    low, high = law.e_inf_interval
    assert law.has_floor and 0.1 < low < 0.2 < high < 0.25
    assert f"E_inf {law.e_inf:.2%}, {low:.2%} to {high:.2%}" in describe(points, law)
    figure = scaling_figure(points, law, "")
    assert f"E_inf = {law.e_inf:.2%}" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_runs_of_equal_compute_count_once():
    compute = np.array([1e12, 1e12, 2e12, 4e12])
    with pytest.raises(Error, match="needs 4 or more runs of different compute, not 3"):
        fit(compute, np.array([0.5, 0.5, 0.4, 0.3]))


def test_as_many_runs_as_unknowns_have_no_intervals():
    points = points_of(lambda c: 0.3 * (c / 1e15) ** -0.3, per_decade=1)
    law = law_of(points)
    assert law.alpha_interval is None and "no intervals, and E_inf is not identified" in describe(points, law)
    assert scaling_figure(points, law, "").axes


@pytest.mark.parametrize(("alpha", "floor"), [(0.3, 0.0), (0.1, 0.05), (0.8, 0.0)])
def test_the_plot_is_in_percent_and_marks_the_frontier(alpha, floor):
    points = points_of(lambda c: 0.02 * (c / 1e16) ** -alpha + floor)
    law = law_of(points)
    (axes,) = scaling_figure(points, law, "a title").axes
    axes.figure.draw_without_rendering()
    (low, high), ticks = axes.get_ylim(), axes.yaxis.get_major_ticks()
    seen = {tick.get_loc(): tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high}
    assert len(seen) >= 3 and all(float(text.removesuffix("%")) == pytest.approx(100 * y) for y, text in seen.items())
    assert axes.get_title() == "a title"
    (rings,) = (line for line in axes.lines if str(line.get_label()).startswith("frontier"))
    assert rings.get_xydata().tolist() == [[p.compute, p.error] for p in frontier(points)]
    assert any(str(line.get_label()).startswith(f"fit to all runs: alpha = {law.alpha:.3f}, ") for line in axes.lines)


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
    with pytest.raises(Error, match="needs 4 or more runs of different compute, not 3"):
        fit(np.array([1e12, 2e12, 3e12]), np.array([0.5, 0.4, 0.3]))
    with pytest.raises(Error, match="fits no power law"):
        fit(np.geomspace(1, 10, 5), np.array([0.5, 0.4, 0.3, 0.2, 0.0]))
