"""The paper's figures: as many as it prints, and those that it computes from one another agree."""

from collections import Counter

import pytest

from pipeline.report.paper_rows import PAPER_ROWS, PAPER_TABLES, PaperRow

COCO_1, COCO_2 = "COCO 1×", "COCO 2×"
VOC, CITY = "PASCAL VOC", "Cityscapes"


def of(table: str, data: str | None = None, metric: str | None = None) -> dict[str, PaperRow]:
    return {
        row.method: row
        for row in PAPER_ROWS
        if row.table == table and data in (None, row.data) and metric in (None, row.metric)
    }


def gain(rows: dict[str, PaperRow], *, over: str | None = None) -> float:
    """R2O's value over the best other, or over one."""
    others = [row.value for method, row in rows.items() if (method == over if over else method != "R2O")]
    return rows["R2O"].value - max(others)


def test_every_table_has_as_many_numbers_as_the_paper_prints() -> None:
    printed = {
        "Table 1": 4 * 10 - 3, "Table 2": 2 * 10, "Table 3": 8, "Table 4": 8, "Table 5": 7, "Table A1": 2 * 10,
        "Table A2": 2 * 3, "Table A3": 2 * 2, "Table A4": 2 * 2, "Table A5": 8, "Figure 3": 1, "A.8": 2, "LOST": 1,
    }  # fmt: skip
    assert Counter(row.table for row in PAPER_ROWS) == printed
    assert set(PAPER_TABLES) == set(printed)


def test_rows_are_unique_and_well_formed() -> None:
    assert len({row[:4] for row in PAPER_ROWS}) == len(PAPER_ROWS)
    for row in PAPER_ROWS:
        assert row.method == row.method.strip() != ""
        assert 0 < row.fraction < 1
        assert (row.value < 1) == (row.metric == "ABO")
        assert row.std is None or 0 < row.std < 0.5
        assert row.fraction == pytest.approx(row.value if row.metric == "ABO" else row.value / 100)
    assert {row.metric for row in PAPER_ROWS} == {"mIoU", "AP^bb", "AP^mk", "ABO", "CorLoc"}


@pytest.mark.parametrize(
    ("table", "data", "metric", "over", "said"),
    [
        ("Table 1", COCO_1, "AP^bb", None, 0.2), ("Table 1", COCO_1, "AP^mk", None, 0.3),
        ("Table 1", COCO_2, "AP^bb", None, 0.1), ("Table 1", COCO_2, "AP^mk", None, 0.1),
        ("Table 2", VOC, "mIoU", None, 0.7), ("Table 2", CITY, "mIoU", None, 0.4),
        ("Table 3", None, "mIoU", None, 2.9), ("Table 3", None, "mIoU", "Melas-Kyriazi et al.", 4.8),
        ("Table A4", None, "AP^bb", "MAE", 5.7), ("Table A4", None, "AP^mk", "MAE", 4.9),
    ],
)  # fmt: skip
def test_gains_that_the_text_names(table: str, data: str | None, metric: str, over: str | None, said: float) -> None:
    assert gain(of(table, data, metric), over=over) == pytest.approx(said)


def test_ablations_agree_with_their_captions() -> None:
    schedules = {method: row.value for method, row in of("Table 4").items()}
    assert max(schedules.values()) == schedules["K 128 → 4"] == 62.3
    assert schedules["K 128 → 4"] - max(v for k, v in schedules.items() if k.startswith("K 4 →")) == pytest.approx(1.2)
    parts = sorted(row.value for row in of("Table 5").values())
    assert parts[-1] - parts[-2] == pytest.approx(0.6)  # removing any component costs at least 0.6
    assert parts[0] == of("Table 5")["no refinement, no SLIC, no schedule"].value
    losses = [of("Table A3", data) for data in (VOC, CITY)]
    gains = [rows["R2O, loss of BYOL"].value - rows["R2O, NT-Xent of SimCLR"].value for rows in losses]
    assert gains == pytest.approx([4.51, 1.44])
    kinds = {method: row.value for method, row in of("Table A5").items()}
    cosine = kinds["SLIC, cosine, K 128 → 4"]
    assert kinds["SLIC, linear, K 128 → 4"] - cosine == pytest.approx(0.5)
    assert kinds["SLIC, piecewise, K 128 → 4"] - cosine == pytest.approx(0.3)
    assert kinds["SLIC, linear, K 128 → 4"] - kinds["spatial 10 × 10, linear, K 128 → 4"] == pytest.approx(0.8)
    assert kinds["SLIC, fixed, K 128"] == of("Table 5")["refinement, SLIC, no schedule"].value


def test_tables_of_the_appendix_repeat_those_of_the_text() -> None:
    for data in (VOC, CITY):
        text, appendix = of("Table 2", data), of("Table A1", data)
        assert {method: row.value for method, row in text.items()} == {m: row.value for m, row in appendix.items()}
        assert [method for method, row in appendix.items() if row.std is None] == ["Supervised"]
    for metric in ("AP^bb", "AP^mk"):
        own, again = of("Table A2", metric=metric), of("Table 1", COCO_1, metric)
        pairs = {"R2O": "R2O", "DetCon_B (reproduced)": "DetCon_B†"}
        assert {m: own[m].value for m in pairs} == {m: again[n].value for m, n in pairs.items()}


def test_the_single_figures() -> None:
    assert {m: r.value for m, r in of("Table 3").items()} == {
        "MoCo v2": 63.5, "BYOL†": 65.1, "PerturbGAN": 38.0, "ReDO": 42.6, "OneGAN": 55.5, "Voynov et al.": 68.3,
        "Melas-Kyriazi et al.": 66.4, "R2O": 71.2,
    }  # fmt: skip
    assert [row.value for row in of("A.8").values()] == [0.49, 0.46]
    assert [row.value for row in of("Figure 3").values()] == [0.25]
    assert [row.value for row in of("LOST").values()] == [42.7]
