import os
import pwd
import tempfile

import pytest
from archives import make_cifar

from mlpdata import Error, datasets
from mlpdata.fetch import official
from mlpdata.inspect.catalogue import catalogue


def test_unknown_name_gives_the_nearest():
    with pytest.raises(Error, match="no data set 'cifar1O'; did you mean 'cifar10'"):
        datasets.get("cifar1O")


def test_missing_archive_says_what_to_get_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(Error) as caught:
        datasets.open_source(datasets.get("cifar10"), None, res=32, seed=0)
    for part in ("cifar-10-python.tar.gz", "https://", "170,498,071", f"{tmp_path} ($MLPDATA_HOME)", "--source"):
        assert part in str(caught.value)


def test_archive_in_the_download_folder_or_in_a_given_one_is_found(tmp_path, monkeypatch):
    make_cifar(tmp_path / "cifar-10-python.tar.gz")
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    spec = datasets.get("cifar10")
    assert datasets.open_source(spec, None, res=32, seed=0).classes
    assert datasets.open_source(spec, str(tmp_path), res=32, seed=0).classes
    assert "(here: cifar-10-python.tar.gz)" in catalogue()


def test_without_a_home_downloads_are_looked_for_in_the_temporary_folder(tmp_path, monkeypatch):
    """As in a container that is told the number of a user whom it does not know."""
    for name in ("HOME", "XDG_CACHE_HOME", "MLPDATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert official.download_folder() == tmp_path / f"mlpdata-{os.getuid()}"
    assert "cifar10" in catalogue()


def test_a_name_like_none_is_not_guessed():
    with pytest.raises(Error, match=r"no data set .mnist. \(there are"):
        datasets.get("mnist")


def test_sources_that_make_no_sense(tmp_path):
    with pytest.raises(Error, match="no such file"):
        datasets.open_source(datasets.get("cifar10"), str(tmp_path / "x"), res=32, seed=0)
    with pytest.raises(Error, match="takes no --source"):
        datasets.open_source(datasets.get("shapes"), "x", res=32, seed=0)
    with pytest.raises(Error, match="needs --source"):
        datasets.open_source(datasets.get("folder"), None, res=32, seed=0)
    with pytest.raises(Error, match="cannot read ftp:"):
        datasets.open_source(datasets.get("cifar10"), "ftp://x/y.tar.gz", res=32, seed=0)
    with pytest.raises(Error, match="needs --source hf:OWNER/NAME"):
        datasets.open_source(datasets.get("hub"), None, res=32, seed=0)


def test_table_has_every_name():
    assert all(name in catalogue() for name in datasets.SPECS)
