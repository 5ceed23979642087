"""Verdicts on figures that are known, on both sides of every limit; what no CUDA device measured is never met."""

import re
from typing import Any

import pytest

from tests.gpu.aims import AIMS, verdicts
from tests.gpu.page import page_of
from tests.gpu.summary import Line

R2O_4, R2O_128, BARE, RATE, WAIT, KMEANS, AUGMENT, MEMORY = (aim.name for aim in AIMS)
FIGURES: dict[str, Any] = {
    "byol": 100.0, "k4": 110.0, "k128": 120.0, "bare": 95.0, "rate": 1400.0, "wait": 0.005, "cores": 16,
    "kmeans": 4.0, "augment": 5.0, "gib": 40.0, "card": "NVIDIA H100 80GB HBM3", "device": "cuda",
}  # fmt: skip


def day_of(**given: Any) -> list[Line]:
    """The lines of a day with these figures; steps at 128 and 256 images, of which 128's would reach nothing."""
    f = {**FIGURES, **given}
    on = {"device": f["device"], "ok": True}

    def step(batch: int, kind: str, ms: float) -> Line:
        figures = {
            "ms": ms,
            "images_s": round(1000 * batch / ms, 1),
            "tflops": 80.0,
            "gib": f["gib"],
            "estimated_gib": 40.0,
        }
        return {"part": "bench", "what": f"step of {batch}, {kind}", "kind": kind, "batch": batch, **figures, **on}

    def bare(batch: int, ms: float) -> Line:
        return {"part": "bench", "what": f"BYOL's bare passes of {batch}", "ms": ms, "batch": batch, **on}

    scores = {"imagenette linear": [0.5, 0.45, 0.55]}
    return [
        {"part": "env", "what": "code", "date": "2026-11-28", "commit": "abc1234-dirty"},
        {"part": "env", "what": "versions", "torch": "2.15.0", "torchvision": "0.29.2", "python": "3.11", "cores": 16},
        {"part": "env", "what": "gpu", "name": f["card"], "count": 2, "gib": 79.6, "driver": "580.1", "cuda": "13.0",
         "cudnn": 91900, "nccl": "2.28.9", "ok": True},
        {"part": "env", "what": "ceilings", "bf16_tflops": 800.0, "ok": True},
        {"part": "env", "exit": 0, "seconds": 9.0},
        {"part": "bench", "what": "K-means, ms", "g8_k128": f["kmeans"], **on},
        {"part": "bench", "what": "augmentation, ms", "pairs128": 90.0, "pairs256": f["augment"], **on},
        *(step(128, kind, ms) for kind, ms in (("byol", 50.0), ("r2o_k4", 90.0), ("r2o_k128", 99.0))),
        bare(128, 1.0),
        *(step(256, kind, f[key]) for kind, key in (("byol", "byol"), ("r2o_k4", "k4"), ("r2o_k128", "k128"))),
        bare(256, f["bare"]),
        {"part": "compile", "what": "compiled step of 256", "batch": 256, "images_s": f["rate"], "ms": 183.0, **on},
        {"part": "stream", "what": "host", "data_wait_mean": f["wait"], "cores": f["cores"], "steps": 90, **on},
        {"part": "nccl", "skipped": "1 GPU, 2 needed"},
        {"part": "ops", "what": "a check", "ok": False},
        {"part": "learn", "what": "epochs of equal seconds", "images_s": {"r2o": 3000.0}},
        {"part": "learn", "what": "learning, r2o", "method": "r2o", "epochs": 9, "steps": 558, "images": 71424,
         "training_s": 24.1, **on},
        {"part": "learn", "what": "frozen scores", "weights": "random-bn", "note": "on val", "scores": scores,
         "above_random_bn": {}},
        {"part": "learn", "what": "frozen scores", "weights": "r2o", "note": "on val",
         "scores": {"imagenette linear": [0.625, 0.58, 0.67]},
         "above_random_bn": {"imagenette linear": [0.125, 0.08, 0.171]}},
    ]  # fmt: skip


def verdict_of(name: str, lines: list[Line]) -> tuple[str, str]:
    return next((row.measured, row.verdict) for row in verdicts(lines) if row.name == name)


@pytest.mark.parametrize(
    ("name", "given", "shown", "verdict"),
    [
        (R2O_4, {"k4": 115.0}, "1.150 at batch 256", "met"),
        (R2O_4, {"k4": 115.2}, "1.152 at batch 256", "not met"),
        (R2O_128, {"k128": 125.0}, "1.250 at batch 256", "met"),
        (R2O_128, {"k128": 125.2}, "1.252 at batch 256", "not met"),
        (BARE, {"bare": 90.0}, "0.900 at batch 256", "met"),
        (BARE, {"bare": 89.9}, "0.899 at batch 256", "not met"),
        (RATE, {"rate": 1300.0}, "1,300", "met"),
        (RATE, {"rate": 1299.0}, "1,299", "not met"),
        (RATE, {"rate": 1400.0, "card": "NVIDIA B200"}, "1,400, on another card", "not measured"),
        (WAIT, {"wait": 0.0099}, "0.99% with 16 cores", "met"),
        (WAIT, {"wait": 0.01}, "1.00% with 16 cores", "not met"),
        (WAIT, {"wait": 0.01, "cores": 15}, "1.00% with 15 cores", "not measured"),
        (WAIT, {"wait": 0.001, "cores": 4}, "0.10% with 4 cores", "met"),
        (KMEANS, {"kmeans": 5.0}, "5.00 ms", "met"),
        (KMEANS, {"kmeans": 5.01}, "5.01 ms", "not met"),
        (KMEANS, {"kmeans": 1.0, "card": "NVIDIA A100"}, "1.00 ms, on another card", "not measured"),
        (AUGMENT, {"augment": 6.0}, "5.0% at batch 256", "met"),
        (AUGMENT, {"augment": 6.1}, "5.1% at batch 256", "not met"),
        (MEMORY, {"gib": 46.0}, "+15.0% at batch 256 (byol)", "met"),
        (MEMORY, {"gib": 46.1}, "+15.3% at batch 256 (byol)", "not met"),
        (MEMORY, {"gib": 34.0}, "-15.0% at batch 256 (byol)", "met"),
        (MEMORY, {"gib": 33.9}, "-15.3% at batch 256 (byol)", "not met"),
    ],
)
def test_each_aim_on_both_sides_of_its_limit(name: str, given: dict[str, Any], shown: str, verdict: str) -> None:
    assert verdict_of(name, day_of(**given)) == (shown, verdict)


def test_a_step_out_of_three_that_takes_too_much_memory_is_the_one_that_counts() -> None:
    lines = day_of()
    next(line for line in lines if line.get("what") == "step of 256, r2o_k4")["gib"] = 50.0
    assert verdict_of(MEMORY, lines) == ("+25.0% at batch 256 (r2o_k4)", "not met")


def test_where_the_largest_batch_was_not_measured_the_next_one_counts() -> None:
    lines = [line for line in day_of() if line.get("batch") != 256]
    assert verdict_of(R2O_4, lines) == ("1.800 at batch 128", "not met")
    assert verdict_of(RATE, lines) == ("", "not measured")


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"device": None}, {"ok": False}])
def test_what_no_cuda_device_measured_or_what_failed_is_not_met(change: dict[str, Any]) -> None:
    lines = [{**line, **change} if "device" in line else line for line in day_of()]
    assert {row.verdict for row in verdicts(lines)} == {"not measured"}
    assert {row.verdict for row in verdicts([])} == {"not measured"}
    assert not re.search(r"\| met \|", page_of(lines))


def test_the_page_of_a_day() -> None:
    page = page_of(day_of())
    assert page.startswith("## `make gpu-day` on 2 × NVIDIA H100 80GB HBM3, 2026-11-28\n")
    assert "| abc1234-dirty | 580.1 | 13.0 | 91900 | 2.28.9 | 2.15.0 | 0.29.2 | 3.11 | 16 | 79.6 GiB |" in page
    assert page.count("| met |") == len(AIMS)
    assert f"| {R2O_4} | at most 1.15 | 1.100 at batch 256 | met |" in page
    assert "| 256 | r2o_k128 | 120.0 | 2133.3 | 1.200 | 10.0% | 8.1% | 40.0 | 40.0 |" in page
    assert "| r2o | 3000.0 | 9 | 558 | 71424 | 24.1 | 62.5 [58.0, 67.0] | +12.5 [+8.0, +17.1] |" in page
    early = [{**line, "exit": 75} if "method" in line else line for line in day_of()]
    assert "| r2o (ended early) | 3000.0 |" in page_of(early)
    assert "| random-bn | – | – | – | – | – | 50.0 [45.0, 55.0] | – |" in page
    assert "- failed: ops: a check\n- left out: nccl (1 GPU, 2 needed)\n" in page
    assert "was measured on a GPU" not in page
    assert "### Two GPUs through NCCL\n\nNot run.\n" in page
    ranks = {"part": "nccl", "what": "two ranks against one process, fp32", "ok": True, "worst": 0.0004}
    assert "two ranks against one process, fp32: losses differ by at most 0.04%" in page_of([*day_of(), ranks])
    assert "| 1.200 | 10.0% | – | 40.0 |" in page_of(day_of(card="NVIDIA A100"))  # another card has another peak


@pytest.mark.parametrize("left", range(3))
def test_a_page_of_a_day_that_told_little_is_still_one(left: int) -> None:
    page = page_of(day_of()[:left])
    assert "No figure of this page was measured on a GPU." in page
    assert "| met |" not in page
    assert page.endswith("Nothing.\n")
    for rows in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        assert len({row.count("|") for row in rows.splitlines()}) == 1
