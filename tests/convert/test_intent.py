"""Doing what the person meant: what is there already, what is asked for wrongly, what a message has to say."""

import io
import os
import re
import shutil

import pytest
from archives import damaged_inside, encoded, make_cifar, make_folder, make_imagenet, picture
from conftest import Inline, convert_quietly, run_cli, sums
from PIL import Image

from mlpdata import Error
from mlpdata.convert import run
from mlpdata.convert.derived import derive
from mlpdata.convert.options import Options
from mlpdata.convert.plan import make_plan
from mlpdata.derive.derivation import Derivation
from mlpdata.inspect import info, preview, report, stats, verify
from mlpdata.loader.loader import Loader
from mlpdata.shards.manifest import Manifest

SEVERAL = re.compile(r"(?<![\d.,/-])1 (?!is\b|was\b|has\b|s\b)\w+(?<!s)s\b(?!/s)|(?<![\d.,])1 \w+es\b(?!/s)")


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Inline)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def photos(tmp_path):
    """Options for a folder of photographs, and the directory that they make."""
    make_folder(tmp_path / "photos", per_class=5)
    options = {"dataset": "folder", "source": str(tmp_path / "photos"), "res": 16, "out": tmp_path / "out"}
    return options, tmp_path / "out"


@pytest.mark.parametrize(
    ("resize", "res", "said"),
    [
        ("squash", 64, "warning: 4 of 5 images enlarged to 64 px, the smallest from 20 px; --res 20 enlarges none"),
        ("crop", 30, "warning: 1 of 5 images enlarged to 30 px, the smallest from 20 px; --res 20 enlarges none"),
        ("squash", 20, None),
        ("longest", 64, None),  # which leaves smaller images as they are
    ],
)
def test_images_that_are_enlarged_are_warned_of_once(tmp_path, resize, res, said):
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    for i, (width, height) in enumerate([(20, 90), (40, 40), (70, 50), (60, 90), (64, 64)]):
        (folder / f"{i}.png").write_bytes(encoded(picture(width, height, i), "PNG"))
    root = tmp_path / "out"
    _, lines = convert_quietly(dataset="folder", source=str(folder.parent), resize=resize, res=res, out=root)
    assert [line for line in lines if "images enlarged" in line] == ([said] if said else [])
    lines = []
    derive(Derivation(command="subset", directories=(root,)), tmp_path / "subset", say=lines.append)
    assert lines and not [line for line in lines if "images enlarged" in line]


def test_a_data_set_of_a_known_size_is_enlarged_without_a_warning(tmp_path):
    make_cifar(tmp_path / "c.tar.gz")
    _, lines = convert_quietly(dataset="cifar10", source=str(tmp_path / "c.tar.gz"), res=40, out=tmp_path / "out")
    assert not [line for line in lines if "images enlarged" in line]


# --------------------------------------------------------------------------------------- what is there already


@pytest.mark.parametrize("name", ["train-000000.tar", "train.beton", "README.md"])
def test_a_file_that_changed_but_kept_its_size_is_made_again(photos, name):
    options, root = photos
    convert_quietly(**options)
    before = sums(root)
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)
    later = (root / "manifest.json").stat().st_mtime_ns + 1_000_000_000
    os.utime(root / name, ns=(later, later))
    _, lines = convert_quietly(**options)
    assert any(f"{root / name} has sha256" in line and "is made again" in line for line in lines)
    assert sums(root) == before
    os.utime(root / name, ns=(later, later))  # touched, but the same
    assert "nothing to do" in convert_quietly(**options)[1][-1] and sums(root) == before


def test_overwrite_replaces_any_conversion_of_ours_and_nothing_else(photos):
    options, root = photos
    convert_quietly(**options)
    (root / "notes.txt").write_text("of the user")
    with pytest.raises(
        Error,
        match=r"holds another conversion, from photos: asked for --res 12, found --res 16; .*, or say --overwrite$",
    ):
        convert_quietly(**{**options, "res": 12})
    manifest, lines = convert_quietly(**{**options, "res": 12}, overwrite=True)
    assert manifest.res == Manifest.load(root).res == 12
    assert any(
        line.startswith(f"{root} is overwritten: it held mlpdata convert folder --source photos --res 16")
        for line in lines
    )
    assert (root / "notes.txt").read_text() == "of the user"
    before = sums(root)
    said = convert_quietly(**{**options, "res": 12})[1][-1]
    assert "nothing to do (`mlpdata verify` reads every byte, --overwrite makes it again)" in said
    convert_quietly(**{**options, "res": 12}, overwrite=True)
    assert sums(root) == before
    (root / "manifest.json").unlink()
    for path in root.iterdir():
        path.unlink()
    (root / "thesis.tex").write_text("mine")
    with pytest.raises(Error, match="not empty and not a conversion of mlpdata"):
        convert_quietly(**options, overwrite=True)
    with pytest.raises(Error, match="--overwrite would delete the work of other machines"):
        Options(dataset="folder", part=(1, 2), overwrite=True)


@pytest.mark.parametrize("finished", [True, False])
def test_another_conversion_is_told_by_the_options_that_differ(photos, monkeypatch, finished):
    options, _ = photos
    with monkeypatch.context() as stop:
        if finished:
            convert_quietly(**options)
        else:
            stop.setattr(run, "count_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(Error, match="stopped"):
                convert_quietly(**options)
    for changes, differs in (
        ({"decode": "exact"}, "asked for --decode exact, found --decode fast"),
        ({"codec": "jpg", "seed": 3}, "asked for --codec jpg --seed 3, found --codec auto --seed 0"),
        ({"splits": ("val",)}, "asked for --split val, found --split train --split val"),
        (
            {"dataset": "shapes", "source": None},
            "asked for convert shapes, found convert folder;",
        ),
    ):
        with pytest.raises(Error) as caught:
            convert_quietly(**options | changes)
        assert "holds another conversion, from photos" in str(caught.value)
        assert re.search(differs, str(caught.value))
    other = photos[1].parent / "pictures"
    make_folder(other, per_class=5)
    with pytest.raises(Error, match="asked for pictures, found photos"):
        convert_quietly(**options | {"source": str(other)})


@pytest.mark.parametrize("damage", ["cut", "emptied", "of wrong types", "of another version"])
def test_overwrite_replaces_a_directory_whose_manifest_is_damaged(photos, damage):
    options, root = photos
    convert_quietly(**options)
    before = sums(root)
    (root / "thesis.tex").write_text("mine")
    path = root / "manifest.json"
    text = path.read_text()
    path.write_text({
        "cut": text[:900],
        "emptied": "",
        "of wrong types": text.replace('"res": 16', '"res": "16"'),
        "of another version": text.replace('"format_version": 1', '"format_version": 7'),
    }[damage])  # fmt: skip
    with pytest.raises(Error, match=r"manifest\.json .*, or say --overwrite$"):
        convert_quietly(**options)
    _, lines = convert_quietly(**options, overwrite=True)
    told = [line for line in lines if "is overwritten" in line]
    assert len(told) == 1 and "manifest.json" in told[0] and "removed: README.md, " in told[0]
    assert (root / "thesis.tex").read_text() == "mine"
    (root / "thesis.tex").unlink()
    assert sums(root) == before


def test_overwrite_deletes_nothing_where_somebody_elses_manifest_stands(photos):
    options, root = photos
    root.mkdir()
    for name in ("manifest.json", "train-000000.tar", "README.md"):
        (root / name).write_text('{"name": "my page"}')
    with pytest.raises(Error, match=r"out does not look like a shard directory: delete it, or choose another"):
        convert_quietly(**options, overwrite=True)
    assert {p.read_text() for p in root.iterdir() if p.is_file()} == {'{"name": "my page"}'}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_work_directory_that_is_not_ours_is_never_emptied(photos, damaged):
    options, root = photos
    convert_quietly(**options)
    if damaged:
        (root / "train.beton").unlink()
    (root.parent / "theirs" / "sub").mkdir(parents=True)
    (root.parent / "theirs" / "sub" / "thesis.tex").write_text("mine")
    for place in (lambda: (root / ".convert").symlink_to(root.parent / "theirs"),
                  lambda: (root / ".convert").unlink() or shutil.copytree(root.parent / "theirs", root / ".convert"),
                  lambda: (root / "manifest.json").unlink()):  # fmt: skip
        place()
        for overwrite in (False, True):
            with pytest.raises(Error, match=r"\.convert\S* (is not the folder that|does not belong)"):
                convert_quietly(**options, overwrite=overwrite)
            assert (root / ".convert" / "sub" / "thesis.tex").read_text() == "mine"


def test_overwrite_never_deletes_what_it_reads(photos):
    options, root = photos
    convert_quietly(**options, splits=("train",))
    before = sums(root)
    for source in (root / "train-000000.tar", root.parent / "link.tar"):
        if not source.exists():
            source.symlink_to(root / "train-000000.tar")
        with pytest.raises(Error, match=r"lies in .*out, whose files are deleted and written; choose another --out"):
            convert_quietly(dataset="hub", source=str(source), res=8, out=root, overwrite=True)
    assert sums(root) == before


def test_overwrite_removes_unfinished_work(photos, monkeypatch):
    options, root = photos
    convert_quietly(**options)
    expected = sums(root)
    shutil.rmtree(root)
    with monkeypatch.context() as stop:
        stop.setattr(run, "count_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Error, match=r"the same command goes on from here$"):
            convert_quietly(**{**options, "res": 12})
        differs = "from photos, unfinished: asked for --res 16, found --res 12"
        with pytest.raises(Error, match=rf"holds another conversion, {differs};.*--overwrite$"):
            convert_quietly(**options)
        with pytest.raises(Error, match=r"goes on from here, without --overwrite$"):
            convert_quietly(**options, overwrite=True)
        parts = {path.name: path.stat().st_mtime_ns for path in (root / ".convert" / "parts").iterdir()}
    _, lines = convert_quietly(**options)  # what the overwriting run did is not lost
    assert any("going on" in line for line in lines) and parts
    assert sums(root) == expected


def test_a_failed_first_try_in_which_nothing_was_made_does_not_block_the_next(photos, monkeypatch):
    options, _ = photos
    with monkeypatch.context() as stop:
        stop.setattr(run, "convert_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Error, match="stopped"):
            convert_quietly(**{**options, "res": 12})
    assert convert_quietly(**options)[0].res == 16


# ------------------------------------------------------------------------------------------------------ messages


def test_the_default_directory_of_a_folder_carries_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "my photos")
    make_cifar(tmp_path / "c.tar.gz")
    for name, source, root in (
        ("folder", "my photos/", "shards/folder-my_photos-8"),
        ("folder", str(tmp_path / "my photos"), "shards/folder-my_photos-8"),
        ("cifar10", "c.tar.gz", "shards/cifar10-8"),
    ):
        plan = make_plan(Options(dataset=name, source=source, res=8))
        assert plan.root.as_posix() == root


def test_a_split_without_images_is_not_called_damaged(tmp_path):
    """Broken images of another split are no reason for an empty one."""
    make_imagenet(tmp_path / "f.tar", per_class=2, change=lambda classes: breaking(classes, every=True))
    options = {"dataset": "imagenet21k", "source": str(tmp_path / "f.tar"), "res": 8, "out": tmp_path / "out"}
    with pytest.raises(Error, match="split 'train' is empty: none of its images could be read"):
        convert_quietly(**options, min_class_size=0, val_per_class=0, max_skipped=1.0)


def breaking(classes, every=False):
    for files in list(classes.values())[: None if every else 1]:
        for name in list(files)[1:] if not every else files:
            files[name] = b"broken"


def test_a_class_whose_readable_images_are_all_held_out_is_refused(tmp_path):
    def change(classes):
        files = next(iter(classes.values()))
        for name in sorted(files)[2:]:
            files[name] = damaged_inside(encoded(picture(40, 40, 1)))

    make_imagenet(tmp_path / "f.tar", per_class=4, change=change)
    options = {"dataset": "imagenet21k", "source": str(tmp_path / "f.tar"), "res": 8, "out": tmp_path / "out"}
    with pytest.raises(Error, match="class n01440764 has 2 images that can be read: --val-per-class 2 leaves none"):
        convert_quietly(**options, val_per_class=2, max_skipped=0.5)
    assert not (tmp_path / "out").exists()
    convert_quietly(**options, val_per_class=1, max_skipped=0.5)


def test_shards_of_ours_are_a_source_again(photos_dir, tmp_path):
    """A whole directory, or one tar of it: the index beside is no data set, and the table names one split twice."""
    held_out = Manifest.load(photos_dir).splits["val"]
    for source, n in ((photos_dir, held_out.num_samples), (photos_dir / "val-000000.tar", held_out.tar_lengths[0])):
        out = tmp_path / source.name
        manifest, _ = convert_quietly(dataset="hub", source=str(source), res=32, format="tar", out=out)
        assert manifest.splits["val"].num_samples == n


def test_one_of_something_is_no_several(tmp_path):
    """Of one image of one class, whatever is said of it."""
    make_folder(tmp_path / "in", splits=("train",), classes=("cat",), per_class=1)
    root = tmp_path / "out"
    _, lines = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=root, part=(1, 1))
    lines += convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=root)[1]
    lines += [info.info(root), stats.stats(root), preview.preview(root, tmp_path / "p.png"), repr(Loader(root))]
    lines += [
        verify.verify(root, workers=1, quiet=True)[0],
        report.report(root, tmp_path / "r.html"),
        *SEVERAL.findall("1 classes"),
    ]
    assert SEVERAL.findall("\n".join(lines)) == ["1 classes"]  # the last one shows that they are found
    assert not SEVERAL.search((tmp_path / "r.html").read_text())


def test_the_size_of_a_small_beton_is_said_as_it_will_be(photos):
    options, root = photos
    _, lines = convert_quietly(**options)
    total = sum(path.stat().st_size for path in root.glob("*.beton"))
    assert f"beton (raw, about {total / 1e6:.0f} MB, padded to pages of 8 MiB)" in lines[0]
    sizes = [float(n) for n in re.findall(r"([\d.]+) MB", f"{lines[0]} {lines[-1]} {info.info(root)}")]
    peak, whole = float(re.search(r"at most about ([\d.]+) MB", lines[0])[1]), total / 1e6
    assert peak >= whole and all(n in (peak, pytest.approx(whole, rel=0.1)) for n in sizes if n > 1)


# -------------------------------------------------------------------------------------------------------- decode


def test_what_was_decoded_exactly_is_not_called_a_scaled_decode(tmp_path):
    make_folder(tmp_path / "in", splits=("train",), per_class=3, kind="PNG")
    _, lines = convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=tmp_path / "out")
    assert [line for line in lines if "fidelity" in line] == [
        "fidelity: pixels equal an exact decode, as measured on 9 images"
    ]


def photograph(width, height, seed):
    """Sharp detail, which a decode at reduced scale loses some of."""
    out = io.BytesIO()
    tiles = [picture(32, 32, seed + i) for i in range(9)]
    image = Image.new("RGB", (width, height))
    for i, tile in enumerate(tiles):
        image.paste(Image.fromarray(tile), (width * (i % 3) // 3, height * (i // 3) // 3))
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def test_exact_decode_is_chosen_above_128_pixels_and_disclosed(tmp_path):
    folder = tmp_path / "in" / "train" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "in" / "train" / "b").mkdir()
    for i in range(16):
        (folder / f"{i}.jpg").write_bytes(photograph(900, 700, i))
        (folder.with_name("b") / f"{i}.jpg").write_bytes(photograph(900, 700, 50 + i))
    options = {"dataset": "folder", "source": str(tmp_path / "in")}
    seen = {}
    for name, more in {
        "fast": {"res": 64},
        "exact": {"res": 64, "decode": "exact"},
        "large": {"res": 136},
        "large exact": {"res": 136, "decode": "exact"},
        "large fast": {"res": 136, "decode": "fast"},
    }.items():
        manifest, lines = convert_quietly(**options, **more, out=tmp_path / name)
        seen[name] = sums(tmp_path / name)["train.beton"]
        is_fast = name.endswith("fast")
        assert (manifest.fidelity is not None) == any("fidelity" in line for line in lines) == is_fast
        assert ("--decode" in manifest.command) == (name != "fast")
        card = (tmp_path / name / "README.md").read_text()
        assert ("JPEGs were decoded at reduced scale" in card) == is_fast
    assert seen["fast"] != seen["exact"]
    assert seen["large"] == seen["large exact"] != seen["large fast"]


def test_the_command_line_takes_both(tmp_path):
    words = ["convert", "shapes", "--res", 8, "--limit", 20, "--quiet", "--out", tmp_path / "out"]
    assert run_cli(*words, "--decode", "fast").returncode == 0
    done = run_cli(*words, "--seed", 1)
    assert done.returncode == 1 and "--overwrite" in done.stderr
    assert run_cli(*words, "--seed", 1, "--overwrite").returncode == 0
    assert Manifest.load(tmp_path / "out").seed == 1
