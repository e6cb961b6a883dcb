"""What stands where something is to be written is named before the work."""

import shutil

import pytest

from mlpdata import Error
from mlpdata.convert.options import Options
from mlpdata.convert.run import convert
from mlpdata.export.options import ExportOptions
from mlpdata.export.run import export
from mlpdata.fetch.download import RemoteFile, fetch
from mlpdata.inspect.preview import preview
from mlpdata.inspect.report import report
from mlpdata.system.files import make_folder
from trainer import run_directory, scaling
from trainer.evaluate import EvalOptions
from trainer.evaluate import run as evaluate

WRITERS = {
    "convert": lambda shards, out: convert(Options(dataset="shapes", out=out, quiet=True), say=lambda line: None),
    "export": lambda shards, out: export(ExportOptions(root=shards, to="npz", out=out), say=lambda line: None),
    "report": lambda shards, out: report(shards, out),
    "preview": lambda shards, out: preview(shards, out),
    "scaling": lambda shards, out: scaling.run([], out),
    "eval": lambda shards, out: evaluate(EvalOptions(checkpoint=out, shards=shards, predictions=out)),
    "train": lambda shards, out: run_directory.create(out, "run"),
    "download": lambda shards, out: fetch(RemoteFile(name="a", urls=()), out),
    "a folder": lambda shards, out: make_folder(out),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_link_that_leads_nowhere_is_called_that(writer, inside, shapes_dir, tmp_path):
    suffix = {"report": ".html", "preview": ".png", "eval": ".parquet"}.get(writer, "")
    link = tmp_path / ("link" if inside else f"link{suffix}")
    link.symlink_to("away")
    out = link / f"x{suffix}" if inside else link
    with pytest.raises(Error) as raised:
        WRITERS[writer](shapes_dir, out)
    said = str(raised.value)
    assert "a symbolic link to away, which does not exist" in said and str(link) in said
    assert list(tmp_path.iterdir()) == [link] and link.is_symlink()


def test_a_link_to_a_folder_is_a_folder(tmp_path, shapes_dir):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    make_folder(tmp_path / "link")
    make_folder(tmp_path / "link" / "new")
    assert (tmp_path / "there" / "new").is_dir()
    WRITERS["export"](shapes_dir, tmp_path / "link" / "new")
    assert (tmp_path / "there" / "new" / "export.json").exists()
    shutil.rmtree(tmp_path / "there")
