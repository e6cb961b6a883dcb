"""torchvision's transforms, v1 and v2, and timm's do what they say to a loader's data set: dataset_with.py."""

import json

import pytest
from environment import need, run_script

pytestmark = pytest.mark.interop


def test_transforms_of_torchvision_and_timm_are_right():
    need("timm")
    right = json.loads(run_script("dataset_with.py", with_mlpdata=True))
    assert len(right) == 14 and all(right.values()), right
