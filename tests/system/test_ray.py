"""The Ray engine on a real cluster of two nodes on this machine; one of them is lost on the way."""

import importlib.util
import os
import subprocess
import sys

import pytest
from archives import encoded, make_folder, picture
from conftest import HANG_S, Gate, run_cli, sums, until

from mlpdata import Error
from mlpdata.convert.options import Options
from mlpdata.convert.plan import make_plan
from mlpdata.convert.worker import WorkerContext

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray: pip install 'mlpdata[ray]'", allow_module_level=True)

STORE_BYTES = 80 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of two CPUs each, in processes of their own; everything is stopped at the end.

    Their workers are held behind their first unit where a test shuts `gate`.
    """
    from ray.cluster_utils import Cluster

    gate = Gate(tmp_path_factory.mktemp("gate"), "mlpdata.convert.unit:convert_unit", calls=())
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = gate.env["PYTHONPATH"]  # as where mlpdata is installed
    options = dict(num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        cluster.lost, cluster.gate = cluster.add_node(**options), gate
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH") if old is None else os.environ.update(PYTHONPATH=old)


def test_a_node_is_lost_and_the_bytes_are_those_of_one_machine(tmp_path, cluster):
    data = [encoded(picture(200, 150, i)) for i in range(20)]
    for c in range(8):
        folder = tmp_path / "in" / f"class{c:02d}"
        folder.mkdir(parents=True)
        for i in range(500):
            (folder / f"{i}.jpg").write_bytes(data[(c + i) % 20])
    words = ["convert", "folder", "--source", "in", "--res", 32, "--shard-size", 500, "--quiet"]
    assert run_cli(*words, "--out", "alone", cwd=tmp_path).returncode == 0
    cluster.gate.shut()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlpdata.cli", *map(str, words), "--out", "out", "--engine", "ray"],
        cwd=tmp_path, env={**os.environ, "RAY_ADDRESS": cluster.address}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        until(lambda: len(cluster.gate.held()) == 4, process)  # two on each node
        cluster.remove_node(cluster.lost, allow_graceful=False)
        cluster.gate.open()
        out, _ = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert sums(tmp_path / "out") == sums(tmp_path / "alone")


def test_errors_of_a_task_come_back_as_one_line(tmp_path, cluster):
    make_folder(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*.jpg"):
        path.write_bytes(b"broken")
    done = run_cli("convert", "folder", "--source", "in", "--res", 8, "--engine", "ray", "--quiet", cwd=tmp_path,
                   env={**os.environ, "RAY_ADDRESS": cluster.address})  # fmt: skip
    assert done.returncode == 1 and "none of its images could be read" in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_without_a_cluster_it_says_what_to_do(tmp_path):
    make_folder(tmp_path / "in")
    done = run_cli("convert", "folder", "--source", "in", "--res", 8, "--engine", "ray", "--quiet", cwd=tmp_path,
                   env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})  # fmt: skip
    assert done.returncode == 1 and "Ray cluster" in done.stderr and "Traceback" not in done.stderr


def test_a_node_that_does_not_see_the_files_is_named(tmp_path):
    make_folder(tmp_path / "in")
    plan = make_plan(Options(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out", engine="ray"))
    context = WorkerContext(plan.source, plan.settings, plan.work, [], plan.digest)
    with pytest.raises(Error, match=r"node .* does not see .*\.convert: --engine ray needs it at the same path"):
        context.arrive()
    plan.work.parts.mkdir(parents=True)
    context.arrive()
    context._image_library = {"jpeg": "simplejpeg 0.1"}
    with pytest.raises(Error, match=r"node .* has .*, this machine simplejpeg 0.1"):
        context.arrive()
