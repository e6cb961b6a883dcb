"""What the dataset card says of classes."""

from archives import SYNSETS, make_folder, make_imagenet
from conftest import convert_quietly

from mlpdata import labels
from mlpdata.shards import card


def card_of(root, **options):
    convert_quietly(**options, out=root, workers=1, res=8, format="beton")
    return (root / "README.md").read_text()


def test_the_card_names_the_wordnet_id_of_every_label(tmp_path, monkeypatch):
    make_imagenet(tmp_path / "f.tar", per_class=2)
    options = {"dataset": "imagenet21k", "source": str(tmp_path / "f.tar"), "min_class_size": 0, "val_per_class": 0}
    text = card_of(tmp_path / "out", **options)
    rows = [line.split(" | ") for line in text.splitlines() if " | n0" in line]
    assert [row[1] for row in rows] == sorted(SYNSETS) and [row[0] for row in rows][:2] == ["| 0", "| 1"]
    assert all(row[2] == f"{labels.readable(row[1])} |" for row in rows)
    monkeypatch.setattr(card, "MAX_CARD_CLASSES", 2)
    text = card_of(tmp_path / "many", **options)
    assert f"WordNet ids of the {len(SYNSETS)} classes" in text and " | n0" not in text


def test_other_classes_need_no_table(tmp_path):
    make_folder(tmp_path / "in", per_class=2)
    assert "WordNet" not in card_of(tmp_path / "out", dataset="folder", source=str(tmp_path / "in"))
