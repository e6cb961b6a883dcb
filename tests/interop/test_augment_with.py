"""Given our draws, every operation equals torchvision's per-image function within one grey level: augment_with.py."""

import json

import pytest
from environment import need, run_script

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def found():
    need("torchvision")
    return json.loads(run_script("augment_with.py", with_mlpdata=True))


def test_each_operation_equals_torchvisions_within_a_grey_level(found):
    assert len(found["levels"]) == 14
    assert all(level <= 1 for level in found["levels"].values()), found["levels"]
    exact = ("pad", "normalize", "erase", "mixup", "cutmix", "brightness")
    assert all(found["levels"][name] < 0.01 for name in exact), found["levels"]


def test_boxes_have_torchvisions_distribution(found):
    """Quantiles within two pixels of a side of 48: 8,000 draws leave a standard error of about half a pixel."""
    for name, distances in found["distributions"].items():
        assert max(distances) <= 2 / 48 + 1e-9, (name, distances)
