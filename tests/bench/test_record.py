"""`record.py --gpu` appends the rows of a report of gpu.py, and measures nothing."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import record

STEP = {"date": "2026-01-02", "flop_share": 0.375, "batch_size": 16_384, "shards": 2_000_000.4, "saturation": 1.01}
AUGMENT = {
    "date": "2026-01-02", "images_per_s": {"ours": {"median": 44_000_000}}, "copy_share": {"ours": 0.5},
    "ratio": {"ours / kornia": 26.2, "ours / torchvision_batch": 52.6},
}  # fmt: skip
REPORT = {
    "parts": {
        "machine": {"gpu": {"name": "NVIDIA Made 1"}, "cores": 16, "seconds": 1.0},
        "steps": {"B_6-Wi_512": STEP, "B_1-Wi_8": {**STEP, "flop_share": None}, "error": "exit 1: no", "seconds": 2.0},
        "tiers": {"resident": {"overlapped_images_per_s": 14.7e6, "bottleneck": "none"}, "seconds": 3.0},
        "augment": {"crop+flip": AUGMENT, "seconds": 4.0},
    }
}


@pytest.fixture
def appended(tmp_path, monkeypatch):
    """Run the script on a report; gives the rows of results.jsonl."""
    old = {"name": "older"}
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(old)}\n")
    monkeypatch.setattr(record, "HERE", tmp_path)
    monkeypatch.setattr(record, "run", lambda *words: pytest.fail("it measures"))

    def run(report, *words):
        (tmp_path / "report.json").write_text(json.dumps(report))
        monkeypatch.setattr(sys, "argv", ["record.py", "--gpu", str(tmp_path / "report.json"), *words])
        record.main()
        first, *rows = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
        assert first == old
        return {row["name"]: row for row in rows}

    return run


def test_the_rows_are_those_of_the_parts_that_succeeded(appended):
    rows = appended(REPORT)
    assert list(rows) == [
        "gpu-step-B_6-Wi_512", "gpu-step-B_1-Wi_8", "gpu-load-resident", "gpu-augment-crop+flip",
        "gpu-augment-crop+flip-kornia", "gpu-augment-crop+flip-torchvision_batch",
    ]  # fmt: skip
    assert rows["gpu-step-B_6-Wi_512"] == {
        "name": "gpu-step-B_6-Wi_512",
        "what": "training B_6-Wi_512 at 64 px, 11,230 classes, batches of 16,384: 38% of the peak",
        "values": [2000000.4], "unit": "images/s", "ratios": [1.01], "peer": "the same steps on one stored batch",
        "machine": "NVIDIA Made 1, 16 cores", "date": "2026-01-02", "script": "step.py",
    }  # fmt: skip
    assert rows["gpu-step-B_1-Wi_8"]["what"].endswith(": share of the peak unknown")
    assert rows["gpu-load-resident"]["ratios"] == [] and rows["gpu-load-resident"]["values"] == [14.7e6]
    assert rows["gpu-augment-crop+flip"]["ratios"] == [0.5]
    assert rows["gpu-augment-crop+flip-kornia"]["ratios"] == [26.2]
    assert {row["date"] for row in rows.values()} == {"2026-01-02"}


def test_the_machine_can_be_named(appended):
    assert {row["machine"] for row in appended(REPORT, "--machine", "a card").values()} == {"a card"}


@pytest.mark.parametrize("part", ["machine", "steps"])
def test_a_report_that_lacks_what_a_row_says_is_refused(appended, part, capsys):
    parts = {name: value for name, value in REPORT["parts"].items() if name not in (part, "augment")}
    with pytest.raises(SystemExit) as ended:
        appended({"parts": parts})
    assert ended.value.code == 2 and "lacks the card" in capsys.readouterr().err
