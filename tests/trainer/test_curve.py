import pytest

from mlpdata.augment.settings import Augmentation
from trainer.curve import curve_figure, draw_curve
from trainer.recipe import Data, Optim, Recipe, Train


def recipe_with(**fields):
    return Recipe(**{"name": "a$b^{$", "data": Data(shards="shards"), "augment": Augmentation()} | fields)


def rows_of(epochs, every=1):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 2 / epoch, "train_top1": 0.5 - 0.4 / epoch, "lr": 1e-3 / epoch}
        if every and (epoch % every == 0 or epoch == epochs):
            row |= {"val_loss": 3 / epoch, "val_top1": 0.6 - 0.4 / epoch, "val_top5": 0.9 - 0.4 / epoch}
        rows.append(row)
    return rows


def visible_ticks(axis):
    axis.axes.figure.draw_without_rendering()
    low, high = axis.get_view_interval()
    return {t.get_loc(): t.label1.get_text() for t in axis.get_major_ticks() if low <= t.get_loc() <= high}


def legend(axes):
    return [text.get_text().replace("\n", " ") for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20, 300])
def test_epochs_are_whole_and_accuracy_is_in_percent(epochs):
    loss, accuracy, rate = curve_figure(recipe_with(), rows_of(epochs)).axes
    for axes in (loss, accuracy, rate):
        ticks = visible_ticks(axes.xaxis)
        assert ticks and all(x == round(x) and float(text) == x for x, text in ticks.items())
        assert axes.get_xlabel() == "epoch"
    ticks = visible_ticks(accuracy.yaxis)
    assert all(text.endswith("%") and float(text[:-1]) == pytest.approx(100 * y) for y, text in ticks.items())
    assert accuracy.get_title() == f"best val top-1 {0.6 - 0.4 / epochs:.2%}, epoch {epochs}"


def test_a_single_evaluation_is_a_marker():
    loss, accuracy, _ = curve_figure(recipe_with(), rows_of(300, every=300)).axes
    for axes, labels in ((loss, {"val"}), (accuracy, {"val top-1", "val top-5"})):
        lines = {line.get_label(): line for line in axes.lines if line.get_label() in labels}
        assert set(lines) == labels
        assert all(list(line.get_xdata()) == [300] and line.get_marker() == "o" for line in lines.values())


def test_the_learning_rate_is_drawn():
    rows = rows_of(5)
    rate = curve_figure(recipe_with(), rows).axes[2]
    (line,) = rate.lines
    assert list(line.get_ydata()) == [row["lr"] for row in rows] and line.get_marker() == "o"
    assert rate.get_title() == "learning rate"
    assert curve_figure(recipe_with(optim=Optim(head_lr=1e-2)), rows).axes[2].get_title() == "learning rate of the body"
    assert curve_figure(recipe_with(), [rows[0] | {"lr": 0.0}]).axes[2].get_ylim()[1] > 0


def test_the_legend_says_why_training_is_not_comparable():
    augment = Augmentation(flip=True, mixup=0.8)
    recipe = recipe_with(augment=augment, train=Train(label_smoothing=0.1, ema=0.99))
    loss, accuracy, _ = curve_figure(recipe, rows_of(3)).axes
    why = "mean over the epoch not comparable with val: mixup 0.8, "
    assert legend(loss) == [f"train, {why}label smoothing 0.1, augmentation", "val, averaged weights"]
    assert legend(accuracy)[0] == f"train top-1, {why}augmentation"
    plain = recipe_with(augment=Augmentation(flip=False, crop_scale=None))
    assert legend(curve_figure(plain, rows_of(3)).axes[0]) == ["train, mean over the epoch", "val"]


def test_without_evaluations_training_alone_is_drawn(tmp_path):
    figure = curve_figure(recipe_with(), rows_of(3, every=0))
    assert legend(figure.axes[0]) == ["train, mean over the epoch"]
    assert figure.axes[1].get_title() == "nothing held out"
    assert figure.get_suptitle() == "a$b^{$"
    assert draw_curve(tmp_path, recipe_with(), rows_of(3)).read_bytes()[:4] == b"\x89PNG"


def test_real_labels_are_drawn():
    rows = [row | {"val_real": 0.7} for row in rows_of(3)]
    assert "val ReaL" in legend(curve_figure(recipe_with(), rows).axes[1])
