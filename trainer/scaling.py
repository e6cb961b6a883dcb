"""Scaling laws of finished runs: E(C) = a (b + C)^-alpha + E_inf (section 4 of the paper), fitted and drawn.

E is the held-out error at the end of a run, C its compute: 3 x forward FLOPs x images x epochs.
Intervals are of 95%: those of the law's constants by a bootstrap of the fit's residuals (Efron, 1979), those of the
exponents of the frontier by the variance of an ordinary least-squares slope and Student's t. Where a constant is at its
bound, as b often is at 0, the bootstrap's are narrow: of 40 simulated laws with b = 0 and 20 runs each, they held alpha
in 35 and E_inf in 36.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.optimize import least_squares
from scipy.stats import norm, t

from mlpdata.errors import Error, first_line, printable
from mlpdata.system.files import check_output
from trainer.report import read_metrics
from trainer.run_directory import write_file

UNKNOWNS = 4
RESAMPLES = 200
NO_FLOOR = 0.01  # of the lowest error: a floor as near to 0 or to that error is none


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
    """E(C) = a (b + C)^-alpha + e_inf, with C in units of `unit` FLOP. rms: of log E about the fit.

    alpha_interval, e_inf_interval: from 2.5% to 97.5% of the bootstrap; None for as few runs as unknowns, which leave
    no residuals. has_floor: whether e_inf is identified: its interval stays clear of 0, and it is not the lowest error
    itself, the most that a fit may give.
    """

    a: float
    b: float
    alpha: float
    e_inf: float
    unit: float
    rms: float
    alpha_interval: tuple[float, float] | None = None
    e_inf_interval: tuple[float, float] | None = None
    has_floor: bool = False

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        return self.a * (self.b + np.asarray(compute) / self.unit) ** -self.alpha + self.e_inf


def read_point(run: Path) -> RunPoint:
    """The last measures of a run. Raises Error for a run that did not end with an evaluation."""
    if not run.is_dir():
        raise Error(f"there is no run directory {run}")
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
        raise Error(f"{run}: its metrics.jsonl has values that are not numbers; train it again")
    compute, error, parameters, images = numbers
    return RunPoint(run.name, compute, error, int(parameters), images)


def fit(compute: np.ndarray, error: np.ndarray) -> ScalingLaw:
    """Least squares of log E from several starts, with all four constants at least 0.

    compute: (n,) FLOP. error: (n,) above 0. Raises Error for fewer points than unknowns.
    """
    if (n := len(set(compute.tolist()))) < UNKNOWNS:
        raise Error(f"a law with {UNKNOWNS} unknowns needs {UNKNOWNS} or more runs of different compute, not {n}")
    if (error <= 0).any() or (compute <= 0).any():
        raise Error("a run without errors, or without compute, fits no power law")
    unit = float(np.exp(np.log(compute).mean()))
    c, target = compute / unit, np.log(error)

    def predict(p: np.ndarray) -> np.ndarray:
        log_a, b, alpha, e_inf = p
        return np.log(np.exp(log_a) * (b + c) ** -alpha + e_inf)

    low, high = [-20.0, 0.0, 1e-3, 0.0], [5.0, 100.0, 5.0, float(error.min())]

    def solve(start: np.ndarray | list[float], log_error: np.ndarray, max_nfev: int = 2000):
        return least_squares(
            lambda p: predict(p) - log_error,
            np.clip(start, low, high),
            bounds=(low, high),
            x_scale="jac",
            max_nfev=max_nfev,
        )

    starts = []
    for alpha in (0.1, 0.3, 1.0):
        for share in (0.0, 0.5, 0.9):
            e_inf = share * float(error.min())
            starts.append([np.log(max(np.median(error) - e_inf, 1e-6)), 0.01, alpha, e_inf])
    best = min((solve(start, target) for start in starts), key=lambda result: result.cost)
    log_a, b, alpha, e_inf = best.x.tolist()
    rms = float(np.sqrt(2 * best.cost / len(c)))
    law = ScalingLaw(float(np.exp(log_a)), b, alpha, e_inf, unit, rms)
    if len(c) == UNKNOWNS:
        return law
    # A fit shrinks its residuals, and few of them show their spread badly: Student's t widens them.
    left = len(c) - UNKNOWNS
    residuals = (target - predict(best.x)) * np.sqrt(len(c) / left) * t.ppf(0.975, left) / norm.ppf(0.975)
    rng = np.random.default_rng(0)
    # Halfway to a law without a floor, lest every fit ends where the first one did.
    start = best.x * [1.0, 1.0, 1.0, 0.5]
    fits = [solve(start, predict(best.x) + rng.choice(residuals, len(c)), 50).x for _ in range(RESAMPLES)]
    alphas, floors = (tuple(np.percentile([x[k] for x in fits], (2.5, 97.5)).tolist()) for k in (2, 3))
    near_0, near_lowest = NO_FLOOR * float(error.min()), (1 - NO_FLOOR) * float(error.min())
    has_floor = near_0 < min(floors[0], e_inf) and e_inf < near_lowest
    return replace(law, alpha_interval=alphas, e_inf_interval=floors, has_floor=has_floor)


def frontier(points: list[RunPoint]) -> list[RunPoint]:
    """The runs that no run with at most their compute beats, in the order of compute."""
    best: list[RunPoint] = []
    for point in sorted(points, key=lambda p: (p.compute, p.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    return best


def exponent(compute: np.ndarray, quantity: np.ndarray) -> tuple[float, float] | None:
    """The x of quantity ~ C^x by least squares of the logarithms, and half the width of its interval.

    None for fewer than three points.

    >>> x, half_width = exponent(np.array([1.0, 4.0, 16.0]), np.array([1.0, 2.0, 4.0]))
    >>> round(x, 3), round(half_width, 3)
    (0.5, 0.0)
    """
    if len(compute) < 3:
        return None
    x, y, left = np.log(compute), np.log(quantity), len(compute) - 2
    slope, constant = np.polyfit(x, y, 1)
    variance = ((y - slope * x - constant) ** 2).sum() / left / ((x - x.mean()) ** 2).sum()
    return float(slope), float(np.sqrt(variance) * t.ppf(0.975, left))


def describe(points: list[RunPoint], law: ScalingLaw) -> str:
    """The law, its floor and the exponents of the frontier, a line each."""
    lowest = min(p.compute for p in points) / law.unit
    base = f"({law.b:.3g} + C)" if law.b > 1e-3 * lowest else "C"  # a smaller b bends nothing
    floor = f" + {law.e_inf:.3g}" if law.e_inf > NO_FLOOR * min(p.error for p in points) else ""
    lines = [
        f"E(C) = {law.a:.3g} {base}^-{law.alpha:.3f}{floor}, C in {law.unit:.3g} FLOP; "
        f"{len(points)} runs, rms residual {law.rms:.1%}"
    ]
    if law.alpha_interval is None or law.e_inf_interval is None:
        lines.append(f"{UNKNOWNS} runs for {UNKNOWNS} unknowns: no intervals, and E_inf is not identified")
    else:
        low, high = law.e_inf_interval
        floor = (
            f"{law.e_inf:.2%}, {low:.2%} to {high:.2%}"
            if law.has_floor
            else f"is not identified: {low:.2%} to {high:.2%}"
        )
        lines.append(f"alpha {law.alpha:.3f}, {_interval(*law.alpha_interval)}; E_inf {floor} (95%, bootstrap)")
    best = frontier(points)
    compute = np.array([p.compute for p in best])
    sizes = exponent(compute, np.array([p.parameters for p in best], float))
    images = exponent(compute, np.array([p.images for p in best]))
    if sizes and images:
        texts = (f"{name} ~ C^{x:.2f}, {_interval(x - half, x + half, 2)}"
                 for name, (x, half) in (("parameters", sizes), ("images", images)))  # fmt: skip
        lines.append(f"frontier of {len(best)} runs: {'; '.join(texts)} (95%, by the slope's variance)")
    return "\n".join(lines)


def _interval(low: float, high: float, digits: int = 3) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}"


def run(runs: list[Path], out: Path) -> str:
    """Fit the runs and draw them to `out`; returns the report. Raises Error."""
    check_output(out)
    points = [read_point(Path(r)) for r in runs]
    law = fit(np.array([p.compute for p in points]), np.array([p.error for p in points]))
    text = describe(points, law)
    image = io.BytesIO()
    try:
        scaling_figure(points, law, text).savefig(image, dpi=110, format=out.suffix.lstrip(".") or "png")
    except ValueError as e:  # a format that matplotlib does not know
        raise Error(f"cannot write {out}: {first_line(e)}") from None
    write_file(out, image.getbuffer())
    return f"{text}\n{printable(f'plot: {out}')}"


def scaling_figure(points: list[RunPoint], law: ScalingLaw, title: str) -> Figure:
    """Error over compute, both logarithmic: a colour for each model size, a ring around the runs of the frontier."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for parameters in sorted({p.parameters for p in points}):
        same_size = sorted((p for p in points if p.parameters == parameters), key=lambda p: p.compute)
        axes.plot(
            [p.compute for p in same_size],
            [p.error for p in same_size],
            "o-",
            label=f"{parameters / 1e6:.2g}M parameters",
        )
    best = frontier(points)
    label = "frontier: no run of less compute is as good"
    axes.plot([p.compute for p in best], [p.error for p in best], "o", ms=11, mfc="none", mec="black", label=label)
    compute = np.array([p.compute for p in points])
    line = np.geomspace(compute.min() / 1.5, compute.max() * 1.5, 200)
    interval = f", {_interval(*law.alpha_interval)}" if law.alpha_interval else ""
    axes.plot(line, law(line), "k--", label=f"fit to all runs: alpha = {law.alpha:.3f}{interval}")
    if law.has_floor:
        axes.axhline(law.e_inf, color="grey", linestyle=":", label=f"E_inf = {law.e_inf:.2%}")
    axes.set(xscale="log", yscale="log", xlabel="compute, FLOP", ylabel="held-out error")
    low, high = axes.get_ylim()
    few_decades = MaxNLocator(nbins=8, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_locator(few_decades if high / low < 20 else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}%"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9)
    return figure
