"""What is not installed: one place says how to install it, and a command that refuses leaves everything as it was."""

import sys

import fsspec  # noqa: F401
import pytest
from archives import make_folder
from conftest import ROOT, convert_quietly, sums

from mlpdata import Error
from mlpdata.inspect import doctor
from mlpdata.shards import remote
from mlpdata.system.optional import OPTIONAL, missing


def test_doctor_and_errors_say_the_same(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    text, _ = doctor.doctor()
    for name, what in OPTIONAL.items():
        assert f"no {name}: for {what.purpose}: {what.install}" in text
        assert str(missing(name, "this")) == f"this needs {name}: {what.install}"


def test_nothing_else_says_how_to_install_what_is_optional():
    extras = {what.install.partition(";")[0] for what in OPTIONAL.values()}
    for path in [*(ROOT / "mlpdata").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]:
        if path.name != "optional.py":
            assert not any(install in path.read_text() for install in extras), path


@pytest.mark.parametrize("why", ["no Ray", "no cluster"])
def test_convert_without_a_cluster_makes_and_overwrites_nothing(tmp_path, monkeypatch, why):
    make_folder(tmp_path / "in", splits=("train",), per_class=2)
    options = {"dataset": "folder", "source": str(tmp_path / "in")}
    message = r"^--engine ray needs ray: pip install 'mlpdata\[ray\]'$"
    convert_quietly(**options, res=8, out=tmp_path / "old", workers=1)
    before = sums(tmp_path / "old")
    if why == "no Ray":
        monkeypatch.setitem(sys.modules, "ray", None)
    else:
        pytest.importorskip("ray", reason="ray is not installed")
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        message = "no Ray cluster found"
    with pytest.raises(Error, match=message):
        convert_quietly(**options, res=16, out=tmp_path / "new", engine="ray")
    with pytest.raises(Error, match=message):
        convert_quietly(**options, res=16, out=tmp_path / "old", engine="ray", overwrite=True)
    assert sums(tmp_path / "old") == before and not (tmp_path / "new").exists()


def test_object_storage_without_its_package(monkeypatch):
    for protocol in ("s3", "s3a"):  # what another test of this process has loaded
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(Error, match=r"s3://bucket/x needs s3fs: pip install 'mlpdata\[remote\]'"):
        remote.open_store("s3://bucket/x")
