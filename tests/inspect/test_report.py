"""The report page: what it says is so, names are text, nothing comes from elsewhere; and a browser has no complaint."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, picture
from conftest import HANG_S, change_manifest, convert_quietly, run_cli
from PIL import Image

from mlpdata import image
from mlpdata.errors import Error
from mlpdata.inspect import originals, report
from mlpdata.shards.manifest import Manifest

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
CLASSES = ["<b>cat", "<img src=x onerror=alert(1)>", 'dog & "co"\'s']
VOID = {"meta", "link", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """The text of a page, its tags in their order, and every address in it; raises for tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.words, self.tags, self.addresses, self.open = [], [], [], []
        self.feed(path.read_text())
        self.close()
        self.text = " ".join(" ".join(self.words).split())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title"):
            self.words.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, shards): 3 classes with HTML for names; a leak, a twin of another class, and a file that is no image."""
    base = tmp_path_factory.mktemp("report")
    for split, n in (("train", 6), ("val", 4)):
        for k, name in enumerate(CLASSES):
            folder = base / "in" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}.jpg").write_bytes(encoded(picture(200 + 40 * k, 150, 100 * k + 10 * len(split) + i)))
    train, val = base / "in" / "train", base / "in" / "val"
    shutil.copy(train / CLASSES[0] / "0.jpg", train / CLASSES[1] / "twin.jpg")
    shutil.copy(train / CLASSES[0] / "1.jpg", val / CLASSES[0] / "twin.jpg")
    (train / CLASSES[2] / "<i>.jpg").write_bytes(b"no image")
    convert_quietly(dataset="folder", source=str(base / "in"), res=24, out=base / "out", workers=1, max_skipped=0.2)
    return base / "in", base / "out"


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "r.html"
    report.report(made[1], path, source=str(made[0]))
    return path


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(page):
    parsed = Page(page)
    assert not {"script", "iframe", "object", "embed", "form"} & set(parsed.tags)
    assert parsed.addresses and all(address.startswith("data:") for address in parsed.addresses)
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_names_are_text_whatever_they_hold(page):
    parsed = Page(page)
    assert all(name in parsed.text for name in CLASSES) and 'train/dog & "co"\'s/<i>.jpg' in parsed.text
    assert parsed.tags.count("b") == 2 + 2 and "i" not in parsed.tags  # of two splits; a leak and a twin


def test_what_speaks_against_the_data_set_comes_first(page, made):
    text = Page(page).text
    manifest = Manifest.load(made[1])
    wanted = [
        "1 of 20 train images (5.00%) could not be used.",
        "Leak: 1 of 19 train images (5.26%) also appears in val.",
        "Leak: 1 of 13 val images (7.69%) also appears in train.",
        "1 group of equal images has more than one label.",
        "1 of 19 train images (5.26%) repeats an earlier one.",
    ]
    places = [text.index(sentence) for sentence in wanted]
    assert places == sorted(places)
    assert f"{manifest.fidelity['psnr_db']} dB" in text and manifest.command in text
    assert manifest.files["train.beton"]["sha256"] in text
    for library in ("mlpdata", "ffcv", "webdataset", "datasets", "numpy"):
        assert f"{library} " in text[text.index("How to load it") :]


def test_charts_have_scales_and_units(page, made):
    text = page.read_text()
    counts = Manifest.load(made[1]).splits["train"].class_counts
    top = f"<span>{max(counts)}</span><span>{max(counts) / 2:g}</span><span>0</span>"
    assert top in text and "<span>largest class</span><span>smallest class</span>" in text
    assert re.search(r'<div class="x"><span>\d+ px</span><span>\d+ px</span><span>\d+ px</span></div>', text)


def test_a_data_set_without_faults_is_called_so(shapes_dir, tmp_path):
    report.report(shapes_dir, tmp_path / "r.html")
    text = Page(tmp_path / "r.html").text
    for sentence in ("Every image of the source could be used.", "No image is in two splits.", "exact decode."):
        assert sentence in text
    assert "Leak" not in text and "No two images have equal pixels." in text
    before = (tmp_path / "r.html").read_bytes()
    report.report(shapes_dir, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == before
    for name, better in ((".", "report.html"), ("r.txt", "r.html")):
        with pytest.raises(Error, match=f"call it {better}, not"):
            report.report(shapes_dir, Path(name))


def test_the_worst_images_stand_beside_their_exact_decode(made):
    root, manifest = made[1], Manifest.load(made[1])
    compared = originals.compare(root, manifest, str(made[0]))
    assert len(compared) == sum(info.num_samples for info in manifest.splits.values())
    assert [c.psnr_db for c in compared] == sorted(c.psnr_db for c in compared) and compared[0].max_diff > 0
    for c in compared[:3]:
        exact = image.decode_exact((made[0] / c.origin).read_bytes())
        expected = image.resized(exact, image.Resize(24), exact.shape[1], exact.shape[0])
        assert np.array_equal(c.exact, expected) and c.key.endswith(c.origin.rpartition("/")[2].removesuffix(".jpg"))
        assert np.array_equal(c.stored, image.decode((made[0] / c.origin).read_bytes(), image.Resize(24))[0])


def test_another_source_is_refused(made, tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "other.jpg").write_bytes(encoded(picture(50, 50, 0)))
    with pytest.raises(Error, match="none of the images of"):
        report.report(made[1], tmp_path / "r.html", source=str(tmp_path / "in"))
    assert not (tmp_path / "r.html").exists()


def test_a_source_of_other_images_by_the_same_names_is_refused(tmp_path):
    for seed in (0, 500):
        for i in range(8):
            path = tmp_path / f"in-{seed}" / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(50, 40, seed + i)))
    convert_quietly(dataset="folder", source=str(tmp_path / "in-0"), res=16, format="tar", out=tmp_path / "out")
    report.report(tmp_path / "out", tmp_path / "r.html", source=str(tmp_path / "in-0"))
    with pytest.raises(Error, match=r"in-500 has other images than .*, of the same names; pass its own source"):
        report.report(tmp_path / "out", tmp_path / "s.html", source=str(tmp_path / "in-500"))


def test_many_classes_are_listed_in_part(made, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LISTED_CLASSES", 1)
    monkeypatch.setattr(report, "BARS", 2)
    report.report(made[1], tmp_path / "r.html")
    text = Page(tmp_path / "r.html").text
    assert "1 class with the fewest images; 2 more not listed" in text
    assert "--source ORIGINALS" in text  # which are not in the download folder


def test_originals_that_nobody_asked_for_cost_no_report(tmp_path, monkeypatch, shapes_dir):
    shutil.copytree(shapes_dir, tmp_path / "copy")
    for dataset, seen in (("stl10", "could not be compared: "), ("unknown to this version", "were not found")):
        change_manifest(tmp_path / "copy", dataset=dataset)
        monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir(exist_ok=True)
        (originals.download_folder() / "stl10_binary.tar.gz").write_bytes(b"no archive")
        report.report(tmp_path / "copy", tmp_path / "r.html")
        assert seen in Page(tmp_path / "r.html").text
    with pytest.raises(Error, match="unknown to this version"):
        report.report(tmp_path / "copy", tmp_path / "r.html", source=str(tmp_path))


def test_the_command(made, tmp_path):
    done = run_cli("report", made[1], "-o", tmp_path / "r.html")
    assert done.returncode == 0 and "open it in a browser" in done.stdout, done.stderr
    for out, message in (("r.pdf", "call it r.html, not r.pdf"), ("none/../r.html/x.html", "r.html is a file")):
        done = run_cli("report", made[1], "-o", out, cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_it_without_a_complaint(page, tmp_path):
    def dump(path):
        words = [BROWSER, "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
        return subprocess.run(words, capture_output=True, text=True, timeout=HANG_S, check=True)

    done = dump(page)
    assert "CONSOLE" not in done.stderr and "What to know before you trust it" in done.stdout
    assert '<img src="x"' not in done.stdout and "&lt;b&gt;cat" in done.stdout
    bad = tmp_path / "bad.html"
    bad.write_text("<script>throw new Error('seen')</script>")
    assert "CONSOLE" in dump(bad).stderr  # where there is a complaint, it is seen


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here: apt install chromium-headless-shell")
def test_the_page_fits_a_phone_and_follows_dark_mode(page, tmp_path):
    def screenshot(name, *options):
        words = [BROWSER, "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=400,6000"]
        words += [f"--user-data-dir={tmp_path / name}", f"--screenshot={tmp_path / name}.png", *options, page.as_uri()]
        subprocess.run(words, capture_output=True, timeout=HANG_S, check=True)
        return np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))

    light = screenshot("light")
    assert light.shape[1] == 400 and light[:, :8].min() == 255 == light[:, -8:].min()  # margins: nothing is cut off
    dark = screenshot("dark", "--blink-settings=preferredColorScheme=0")
    assert dark[:, :8].max() < 60 < 200 < dark.max()
