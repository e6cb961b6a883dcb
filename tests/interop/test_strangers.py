"""Code for a dozen more libraries runs as `mlpdata snippet` prints it, and reads our pixels and labels.

They are in `.venv-strangers`, made by `make strangers`; mlpdata is not, and only snippets that say `import mlpdata` get
it. With MLPDATA_RECORD_STRANGERS=1 (`make test-strangers`) the table of what was read is written to strangers.json.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, make_folder, picture
from conftest import convert_quietly, run_cli
from environment import STRANGERS, completed, need

import mlpdata
from mlpdata import Error
from mlpdata.choices import LIBRARIES
from mlpdata.inspect import snippets

pytestmark = [pytest.mark.interop, pytest.mark.strangers]

TABLE = Path(__file__).with_name("strangers.json")
# The module of each library, and code behind its snippet that yields batches of uint8 (N, H, W, 3) images and labels.
FROM_LOADER = "((i.cpu().numpy(), l.cpu().numpy()) for i, l in loader)"
FROM_DATASET = "((i.numpy().transpose(1, 2, 0)[None], [l]) for i, l in dataset)"
READ = {
    "dali": ("nvidia.dali", "loader.reset(); found = "
             "((b['images'].numpy(), [int(bytes(t)) for t in b['labels'].numpy()]) for (b,) in loader)"),
    "lightning": ("lightning", "loader = trainer.train_dataloader; found = " + FROM_LOADER),
    "accelerate": ("accelerate", "found = " + FROM_LOADER),
    "torchdata": ("torchdata", "found = " + FROM_DATASET),
    "jax": ("jax", "found = " + FROM_LOADER),
    "tensorflow": ("tensorflow", "found = ((i.numpy(), l.numpy()) for i, l in dataset)"),
    "keras": ("keras", "import itertools; found = itertools.islice(" + FROM_LOADER + ", len(loader))"),
    "litdata": ("litdata", "found = ((b['image'].numpy().transpose(0, 2, 3, 1), b['label'].numpy()) for b in loader)"),
    "streaming": ("streaming", "found = ((i.numpy()[None], [l]) for i, l in dataset)"),
}  # fmt: skip
# Said of the machine, or by a library of what it calls itself: not of what it reads.
OF_THEIR_OWN = ["LeafSpec", "set_vital", "absl::InitializeLog", "oneDNN", "GPU"]
NAMES = ["jpg", "png", "raw", "longest", "[D] q?{x,y} '\"%20#\\é\u2028\n"]

COLLECT = """
import numpy as _np
_images, _labels = zip(*found)
_np.savez({out!r}, images=_np.concatenate(_images), labels=_np.concatenate(_labels))
"""


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A few photographs in every codec, of several sizes, and below a name that no pattern and no quote survives."""
    base = tmp_path_factory.mktemp("strangers")
    make_folder(base / "in", splits=("train", "val"), per_class=100)
    long = base / "in" / "train" / "cat" / f"{'long' * 22}.jpg"
    long.write_bytes(encoded(picture(64, 64, 5)))  # beyond 100 bytes with its class: an extended header in the tar
    for codec in ("jpg", "png", "raw"):
        convert_quietly(
            dataset="folder", source=str(base / "in"), res=32, codec=codec, out=base / codec, shard_size=120
        )
    convert_quietly(dataset="folder", source=str(base / "in"), res=32, resize="longest", out=base / "longest")
    shutil.copytree(base / "png", base / NAMES[-1])
    return base


@pytest.fixture(scope="module")
def rows():
    """Rows of the table, which is written when all libraries are through."""
    rows = {}
    yield rows
    if os.environ.get("MLPDATA_RECORD_STRANGERS") == "1":
        TABLE.write_text(json.dumps([rows[name] for name in READ if name in rows], indent=1) + "\n")


def test_every_library_that_has_a_snippet_is_read():
    assert {*READ} | {"ffcv", "webdataset", "datasets", "timm", "torch", "numpy"} == {*LIBRARIES}


@pytest.mark.parametrize("library", READ)
def test_snippets_run_as_they_are_printed_and_read_what_is_stored(roots, library, rows, tmp_path):
    module, collect = READ[library]
    need(module, STRANGERS)
    names = list(NAMES)
    if library in ("litdata", "streaming"):
        with pytest.raises(Error, match="has images of several sizes, of which"):
            snippets.snippet(roots / "longest", library)
        names.remove("longest")
    program, to = ["if __name__ == '__main__':"], {"litdata": "litdata", "streaming": "mds"}.get(library)
    for i, name in enumerate(names):
        if to is not None:
            done = run_cli("export", roots / name, "--to", to, "-o", snippets.exported(roots / name, to))
            assert done.returncode == 0, done.stderr
        code = snippets.snippet(roots / name, library)
        run_code = f"{code}\n{collect}\n{COLLECT.format(out=str(tmp_path / f'{i}.npz'))}"
        # In a namespace of its own; its functions look there for what they use.
        program += [f"    exec({run_code!r}, {{'__name__': '__main__'}})", "    print('=====')"]
    program += [f"    import {module}", f"    print({module}.__version__)"]
    ours = "import mlpdata" in code
    done = completed(["-c", "\n".join(program)], python=STRANGERS, with_mlpdata=ours, home=tmp_path, cwd=tmp_path)
    *printed, version = done.stdout.split("=====\n")
    assert all(re.search(r"\b256, 32, 32, 3|\b256, 3, 32, 32", text) for text in printed), printed
    count = 0
    for i, name in enumerate(names):
        res = 32 if name == "longest" else None
        loader = mlpdata.load(roots / name, batch_size=64, shuffle=False, res=res)
        images, labels = loader.arrays()
        seen = np.load(tmp_path / f"{i}.npz")
        place = nearest(seen["images"], images)
        assert np.array_equal(np.sort(place), np.arange(len(images))), name  # every sample once
        assert np.array_equal(seen["labels"], labels[place]), name
        difference = np.abs(seen["images"].astype(int) - images[place]).mean()
        # Their own JPEG decoders and resizes differ from ours.
        assert difference <= (0 if ours else {"jpg": 3, "longest": 20}.get(name, 0)), (name, difference)
        count += len(images)
    warned = [line for line in done.stderr.splitlines() if re.search("warn|not provided|deprecat", line, re.IGNORECASE)]
    unexpected = [line for line in warned if not any(mark in line for mark in OF_THEIR_OWN)]
    rows[library] = {
        "library": library,
        "version": version.strip(),
        "reads": "mlpdata.load" if ours else "an export" if to else "the tars",
        "images": count,
        "directories": len(names),
        "warnings": [re.sub(r"^.*?/site-packages/", "", line)[:200] for line in warned],
    }
    assert not unexpected


def nearest(images, candidates):
    """(N,) for each image the position of the candidate closest to it."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (images, candidates))
    return ((b * b).sum(1) - 2 * a @ b.T).argmin(1)
