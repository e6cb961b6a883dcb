import ast
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from archives import encoded, make_cifar, make_folder, picture
from conftest import run_cli
from PIL import Image

import mlpdata
from mlpdata import choices, datasets
from mlpdata.cli import main
from mlpdata.cli.group import stop
from mlpdata.inspect import doctor, snippets
from mlpdata.system.threads import cores

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command):
    done = run_cli(command, "--help")
    assert done.returncode == 0
    assert len(main.commands[command].help) > 20
    if main.commands[command].params:
        assert f"mlpdata {command} " in done.stdout


def test_help_needs_no_torch_and_no_numpy():
    heavy = ("torch", "numpy", "datasets", "matplotlib", "pyarrow", "msgspec", "requests", "tqdm", "yaml")
    code = f"import sys, mlpdata.cli; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    best = min(timed_help() for _ in range(3))
    print(f"mlpdata --help: {best:.2f} s")


def timed_help():
    started = time.perf_counter()
    assert run_cli("--help").returncode == 0
    return time.perf_counter() - started


def test_list_and_doctor():
    listed = run_cli("list")
    assert listed.returncode == 0 and "tinyimagenet" in listed.stdout
    done = run_cli("doctor")
    assert "simplejpeg" in done.stdout and "torch" in done.stdout
    assert done.returncode == (1 if "problem" in done.stdout else 0)
    assert {spec["name"] for spec in json.loads(run_cli("list", "--json").stdout)} == set(datasets.SPECS)
    assert set(json.loads(run_cli("doctor", "--json").stdout)["optional"]) >= {"ffcv", "ray"}


def test_doctor_tells_what_is_required_from_what_is_optional(monkeypatch):
    asked = [
        "click>=8",
        "nothing-of-the-kind>=2",
        "torch>=999",
        "also-nothing; extra == 'dev'",
        "odd; python_version < '3'",
    ]
    monkeypatch.setattr(doctor, "requires", lambda package: asked)
    report, well = doctor.doctor()
    assert not well
    problems = [line for line in report.splitlines() if line.startswith("problem")]
    assert len(problems) == 2
    assert "pip install 'nothing-of-the-kind>=2'" in problems[0] and "pip install 'torch>=999'" in problems[1]
    assert "also-nothing" not in report and "odd" not in report


def test_list_where_the_cache_may_not_be_looked_into(monkeypatch):
    from mlpdata.inspect.catalogue import catalogue

    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refuse)
    assert "cifar10" in catalogue() and "here:" not in catalogue()


def test_verify_as_json(photos_dir, tmp_path):
    facts = json.loads(run_cli("verify", photos_dir, "--json").stdout)
    assert facts["whole"] and facts["problems"] == []
    shutil.copytree(photos_dir, tmp_path / "copy")
    with open(tmp_path / "copy" / "val.beton", "ab") as f:
        f.write(b"x")
    done = run_cli("verify", tmp_path / "copy", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 1 and not facts["whole"] and facts["num_problems"] == len(facts["problems"]) > 0


def test_info(photos_dir):
    done = run_cli("info", photos_dir)
    assert done.returncode == 0
    for part in ("folder", "3: cat, dog, émeu x", "32 px", "train", "60 samples"):
        assert part in done.stdout
    values = json.loads(run_cli("info", photos_dir, "--json").stdout)
    assert values["splits"]["val"]["num_samples"] == 60


def test_info_notices_files_that_changed(photos_dir, tmp_path):
    shutil.copytree(photos_dir, tmp_path / "copy")
    with open(tmp_path / "copy" / "val.beton", "ab") as f:
        f.write(b"x")
    done = run_cli("info", tmp_path / "copy")
    assert done.returncode == 1 and "val.beton has" in done.stderr
    (tmp_path / "copy" / "val.beton").unlink()
    done = run_cli("info", tmp_path / "copy")
    assert done.returncode == 1 and "val.beton is missing" in done.stderr


def test_preview(photos_dir, tmp_path):
    out = tmp_path / "sheet.png"
    done = run_cli("preview", photos_dir, "-o", out, "--augment", ROOT / "recipes" / "shapes.yaml")
    assert done.returncode == 0, done.stderr
    augmented = Image.open(out).size
    assert run_cli("preview", photos_dir, "-o", out).returncode == 0
    assert augmented[0] > Image.open(out).size[0]


BAD = [
    (["convert", "cifar1O"], 1, "did you mean 'cifar10'"),
    (["convert", "cifar10", "--source", "none.tar.gz"], 1, "no such file or directory: none.tar.gz"),
    (["convert", "cifar10", "--source", "cut.tar.gz"], 1, "cut.tar.gz"),
    (["convert", "tinyimagenet", "--source", "c.tar.gz"], 1, "c.tar.gz is not a zip archive"),
    (["convert", "tinyimagenet", "--source", "r.yaml"], 1, "r.yaml is not a zip archive"),
    (["convert", "cifar10", "--source", "r.yaml"], 1, "r.yaml is not a gzip archive"),
    (["convert", "stl10", "--source", "r.yaml"], 1, "r.yaml is not a tar archive, plain or gzip"),
    (["download", "mnist"], 1, "no data set 'mnist' (there are"),
    (["convert", "hub"], 2, "hub needs --source hf:OWNER/NAME"),
    (["convert", "cifar100", "--source", "c.tar.gz"], 1, "is not cifar-100-python: it holds cifar-10-batches-py"),
    (["convert", "folder", "--source", "in", "--out", "full"], 1, "not empty and not a conversion of mlpdata"),
    (["convert", "shapes", "--res", "0"], 2, "--res"),
    (["convert", "shapes", "--res", "4", "--out", "x"], 1, "at least 8 pixels"),
    (["convert", "shapes", "--codec", "gif"], 2, "--codec"),
    (["convert"], 2, "Missing argument"),
    (["convert", "folder"], 2, "needs --source"),
    (["convert", "hub", "--source", "me/cats"], 1, "say --source hf:me/cats"),
    (["preview", "full", "-o", "x.jpg"], 1, "call it x.png"),
    (["convert", "folder", "--source", "empty"], 1, "no class folders"),
    (["info", "r.yaml"], 1, "r.yaml is a file; a shard directory is a folder"),
    (["convert", "shapes", "--res", "8", "--out", "r.yaml/x/y"], 1, "r.yaml is a file; choose another --out"),
    (["predict", "full", "r.yaml"], 1, "full has no best.safetensors: give a checkpoint, or a run directory"),
    (["predict", "r.yaml", "r.yaml"], 1, "r.yaml is not a checkpoint: neither safetensors nor a file of torch.save"),
    (["predict", "none", "r.yaml"], 1, "no checkpoint at none"),
    (["report", "full", "-o", "r.yaml/x.html"], 1, "cannot write r.yaml/x.html: r.yaml is a file, not a folder"),
    (["preview", "full", "-o", "r.yaml/x/y.png"], 1, "cannot write r.yaml/x/y.png: r.yaml is a file, not a folder"),
    (["export", "full", "--to", "npz", "-o", "x", "--file-mb", "nan"], 2, "nan is not a finite number"),
    (["export", "full", "--to", "npz", "-o", "x", "--file-mb", "inf"], 2, "inf is not a finite number"),
    (["bench", "full", "--seconds", "nan"], 2, "nan is not a finite number"),
    (["convert", "shapes", "--max-skipped", "nan"], 2, "nan is not a finite number"),
    (["scaling", "none"], 1, "there is no run directory none"),
    (["info", "full"], 1, "full has no manifest.json; it is not a shard directory"),
    (["train", "none.yaml"], 1, "cannot read recipe none.yaml"),
    (["train", "r.yaml"], 1, "r.yaml:4: unknown key 'optim.lrr'; did you mean 'lr'?"),
    (["train", "r.yaml", "--set", "optim.lrr"], 1, "expected section.key=value"),
    (["preview", "full", "-o", "x.png"], 1, "not a shard directory"),
    (["nonsense"], 2, "No such command"),
]


@pytest.mark.parametrize(("words", "status", "message"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_a_users_mistake_is_one_line_and_a_status(words, status, message, tmp_path):
    make_cifar(tmp_path / "c.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "c.tar.gz").read_bytes()[:100_000])
    make_folder(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("x")
    (tmp_path / "r.yaml").write_text("data:\n  shards: x\noptim:\n  lrr: 1\n")
    done = run_cli(*words, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if status == 1:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("mlpdata: error: ")
    assert not list(tmp_path.rglob("manifest.json"))


def test_broken_images_are_counted_and_named(tmp_path):
    make_folder(tmp_path / "in", splits=("train",), per_class=40)
    (tmp_path / "in" / "train" / "cat" / "bad.jpg").write_bytes(encoded(picture(50, 50, 1))[:400])
    done = run_cli("convert", "folder", "--source", "in", "--res", 16, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0 and "1 skipped" in done.stdout
    done = run_cli("convert", "folder", "--source", "in", "--res", 17, "--out", "x", "--max-skipped", 0, cwd=tmp_path)
    assert done.returncode == 1 and "1 of 121 images" in done.stderr and "skipped.jsonl" in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["convert", "shapes", "--limit", "20", "--res", "8", "--workers", "1", "--out", "out"], 0),
        (["list"], 1),
    ],
)
def test_work_goes_on_when_the_reader_of_its_lines_went_away(words, status, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mlpdata.cli", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(writer)
    assert done.returncode == status and "error" not in done.stderr.lower()
    assert (tmp_path / "out" / "manifest.json").exists() == (words[0] == "convert")


# ----------------------------------------------------------------------------------------------------------- rules


def test_every_library_that_the_command_line_offers_has_a_snippet():
    assert {*snippets.SNIPPETS} == {*choices.LIBRARIES}


def test_the_version_of_pyproject_is_that_of_the_package_and_the_citation():
    with open(ROOT / "pyproject.toml", "rb") as f:
        version = tomllib.load(f)["project"]["version"]
    assert mlpdata.__version__ == version and run_cli("--version").stdout.split()[-1] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert {"load", "Loader", "Augment", "Batch", "Error"} <= set(dir(mlpdata))


def test_names_of_data_sets_stand_in_one_module():
    for path in [*(ROOT / "mlpdata").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]:
        if path.name == "datasets.py" or path.parent.name == "cli":
            continue  # the command line has them in its examples
        others = {"folder"} if path.name == "choices.py" or path.parent.name == "export" else set()  # a format there
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = {"cifar10", "cifar100", "tinyimagenet", "shapes", "folder", "stl10", "hub"} - others
                assert node.value not in names, path


@pytest.mark.parametrize("closed", [(2,), (1,), (0, 1, 2)])
def test_a_conversion_with_closed_streams_works(tmp_path, closed):
    """`2>&-` as in cron jobs: nothing is written into a file that happens to have the number."""
    words = [sys.executable, "-m", "mlpdata.cli", "convert", "shapes", "--res", "8", "--limit", "600", "--workers", "1"]

    def close():
        for number in closed:
            os.close(number)

    done = subprocess.run([*words, "--out", str(tmp_path / "out")], preexec_fn=close, timeout=900, check=False,
                          **({} if 2 in closed else {"stderr": subprocess.PIPE}))  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()
    assert run_cli("verify", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_folder_whose_name_is_no_utf8_is_as_good_as_any(tmp_path, encoding):
    out, environ = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"), {**os.environ, "PYTHONIOENCODING": encoding}
    try:
        os.mkdir(out)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    for words in ("convert shapes --res 8 --limit 60 --workers 1 --out", "verify"):
        done = run_cli(*words.split(), out, env=environ)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert r"caf\udce9" in done.stdout or "caf?" in done.stdout


def test_cores_where_the_system_does_not_say(monkeypatch):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", ["list", "doctor", "recipes", "convert shapes --res 8 --limit 9"])
def test_output_on_a_full_disk_is_one_line(words, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "mlpdata.cli", *words.split()], cwd=tmp_path, stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "mlpdata: error: cannot write to standard output: No space left on device\n"


def test_out_of_memory_anywhere_is_one_line(monkeypatch):
    from click.testing import CliRunner

    def fail(as_json):
        raise MemoryError

    monkeypatch.setattr("mlpdata.inspect.catalogue.catalogue", fail)
    done = CliRunner().invoke(main, ["list"])
    assert done.exit_code == 1 and done.output == "mlpdata: error: out of memory\n"


def test_a_signal_while_a_module_is_imported_ends_the_process_there(tmp_path, monkeypatch, capfd):
    """An interrupted import of numpy's ends in "Fatal Python error"."""

    def ended(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom mlpdata.cli.group import stop\nstop(2, sys._getframe())\n"
    )
    with pytest.raises(SystemExit, match="1"):
        importlib.import_module("interrupted")
    assert capfd.readouterr().err == "mlpdata: stopped\n"
    with pytest.raises(KeyboardInterrupt):
        stop(2, sys._getframe())
