"""The class lists are those that timm ships, in its order, and so are the maps between them."""

import json

import pytest
from environment import need, run

from mlpdata import labels

LISTS = {
    "fall11": "imagenet22k_synsets",
    "fall11-12k": "imagenet12k_synsets",
    "google-21843": "imagenet21k_goog_synsets",
    "microsoft-21842": "imagenet22k_ms_synsets",
    "ilsvrc2012": "imagenet_synsets",
}
MAPS = {  # what timm takes of a model's classes for those of another list
    ("fall11", "google-21843"): "imagenet21k_goog_to_22k_indices",
    ("fall11-12k", "google-21843"): "imagenet21k_goog_to_12k_indices",
    ("fall11", "microsoft-21842"): "imagenet22k_ms_to_22k_indices",
    ("fall11-12k", "microsoft-21842"): "imagenet22k_ms_to_12k_indices",
}
READ = """
import json, sys
from pathlib import Path
import timm.data
folder = Path(timm.data.__file__).parent / "_info"
print(json.dumps([(folder / f"{name}.txt").read_text().split() for name in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def timms():
    need("timm")
    names = [*LISTS.values(), *MAPS.values()]
    return dict(zip(names, json.loads(run(["-c", READ, *names])), strict=True))


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_timms(timms, name):
    assert list(labels.classes(name)) == timms[LISTS[name]]


@pytest.mark.parametrize(("source", "target"), MAPS)
def test_a_map_is_timms(timms, source, target):
    assert labels.mapping(source, target).tolist() == [int(n) for n in timms[MAPS[source, target]]]
