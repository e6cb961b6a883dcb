"""Scaling laws of finished runs: E(C) = a (b + C)^-alpha + E_inf (section 4 of the paper), fitted and drawn.

E is the held-out error at the end of a run, C its compute: 3 x forward FLOPs x images x epochs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from mlpdata.errors import Error, first_line
from trainer.report import read_metrics
from trainer.run_directory import write_file

UNKNOWNS = 4


@dataclass(frozen=True)
class RunPoint:
    """A finished run: compute in FLOP, error as a share, parameters, images seen."""

    name: str
    compute: float
    error: float
    parameters: int
    images: float


@dataclass(frozen=True)
class ScalingLaw:
    """E(C) = a (b + C)^-alpha + e_inf, with C in units of `unit` FLOP. rms: of log E about the fit."""

    a: float
    b: float
    alpha: float
    e_inf: float
    unit: float
    rms: float

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        return self.a * (self.b + np.asarray(compute) / self.unit) ** -self.alpha + self.e_inf


def read_point(run: Path) -> RunPoint:
    """The last measures of a run. Raises Error for a run that did not end with an evaluation."""
    rows = read_metrics(run)
    if not (run / "summary.json").is_file() or not rows or "val_top1" not in rows[-1]:
        raise Error(f"{run} is no finished run: it has no summary.json, or no evaluation at its end")
    last = rows[-1]
    try:
        images = sum(r["images_per_s"] * r["seconds"] for r in rows)
        numbers = [float(x) for x in (last["flops"], 1 - last["val_top1"], last["parameters"], images)]
    except KeyError as e:
        raise Error(f"{run}: its metrics.jsonl has no {e}") from None
    except TypeError:
        numbers = [np.nan]
    if not np.isfinite(numbers).all():
        raise Error(f"{run}: its metrics.jsonl has other things than numbers where numbers belong")
    compute, error, parameters, images = numbers
    return RunPoint(run.name, compute, error, int(parameters), images)


def fit(compute: np.ndarray, error: np.ndarray) -> ScalingLaw:
    """Least squares of log E from several starts, with all four constants at least 0.

    compute: (n,) FLOP. error: (n,) above 0. Raises Error for fewer points than unknowns.
    """
    if len(set(compute.tolist())) < UNKNOWNS:
        raise Error(f"a law with {UNKNOWNS} unknowns needs as many runs of different compute, not {len(compute)}")
    if (error <= 0).any() or (compute <= 0).any():
        raise Error("a run without errors, or without compute, fits no power law")
    unit = float(np.exp(np.log(compute).mean()))
    c, target = compute / unit, np.log(error)

    def residual(p: np.ndarray) -> np.ndarray:
        log_a, b, alpha, e_inf = p
        return np.log(np.exp(log_a) * (b + c) ** -alpha + e_inf) - target

    low, high = [-20.0, 0.0, 1e-3, 0.0], [5.0, 100.0, 5.0, float(error.min())]
    best = None
    for alpha in (0.1, 0.3, 1.0):
        for share in (0.0, 0.5, 0.9):
            e_inf = share * float(error.min())
            start = [np.log(max(np.median(error) - e_inf, 1e-6)), 0.01, alpha, e_inf]
            result = least_squares(
                residual, np.clip(start, low, high), bounds=(low, high), x_scale="jac", max_nfev=2000
            )
            if best is None or result.cost < best.cost:
                best = result
    log_a, b, alpha, e_inf = best.x
    rms = float(np.sqrt(2 * best.cost / len(c)))
    return ScalingLaw(float(np.exp(log_a)), float(b), float(alpha), float(e_inf), unit, rms)


def frontier(points: list[RunPoint]) -> list[RunPoint]:
    """The runs that no run with at most their compute beats, in the order of compute."""
    best: list[RunPoint] = []
    for point in sorted(points, key=lambda p: (p.compute, p.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    return best


def exponent(compute: np.ndarray, quantity: np.ndarray) -> float | None:
    """The x of quantity ~ C^x by least squares of the logarithms; None for fewer than three points.

    >>> round(exponent(np.array([1.0, 4.0, 16.0]), np.array([1.0, 2.0, 4.0])), 3)
    0.5
    """
    return float(np.polyfit(np.log(compute), np.log(quantity), 1)[0]) if len(compute) >= 3 else None


def run(runs: list[Path], out: Path) -> str:
    """Fit the runs and draw them to `out`; returns the report. Raises Error."""
    points = [read_point(Path(r)) for r in runs]
    law = fit(np.array([p.compute for p in points]), np.array([p.error for p in points]))
    best = frontier(points)
    compute = np.array([p.compute for p in best])
    sizes = exponent(compute, np.array([p.parameters for p in best], float))
    images = exponent(compute, np.array([p.images for p in best]))
    lines = [
        f"E(C) = {law.a:.3g} ({law.b:.3g} + C)^-{law.alpha:.3f} + {law.e_inf:.3g}, C in {law.unit:.3g} FLOP; "
        f"{len(points)} runs, {law.rms:.1%} rms about it"
    ]
    if sizes is not None:
        lines.append(f"of the {len(best)} runs that none of less compute beats: "
                     f"parameters ~ C^{sizes:.2f}, images ~ C^{images:.2f}")  # fmt: skip
    draw(points, law, out, "\n".join(lines))
    return "\n".join([*lines, f"plot: {out}"])


def draw(points: list[RunPoint], law: ScalingLaw, out: Path, title: str) -> None:
    """Draw error over compute, both logarithmic, one colour for each model size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for parameters in sorted({p.parameters for p in points}):
        same_size = sorted((p for p in points if p.parameters == parameters), key=lambda p: p.compute)
        axes.plot(
            [p.compute for p in same_size],
            [p.error for p in same_size],
            "o-",
            label=f"{parameters / 1e6:.2g}M parameters",
        )
    compute = np.array([p.compute for p in points])
    line = np.geomspace(compute.min() / 1.5, compute.max() * 1.5, 200)
    axes.plot(line, law(line), "k--", label=f"alpha = {law.alpha:.2f}")
    axes.set(xscale="log", yscale="log", xlabel="compute, FLOP", ylabel="held-out error")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    image = io.BytesIO()
    try:
        figure.savefig(image, dpi=110, format=out.suffix.lstrip(".") or "png")
    except ValueError as e:  # a format that matplotlib does not know
        raise Error(f"cannot write {out}: {first_line(e)}") from None
    finally:
        plt.close(figure)
    write_file(out, image.getbuffer())
