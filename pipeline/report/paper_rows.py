"""The figures of the paper (Gokul, Kallidromitis, Li et al. 2022) as printed, and one of LOST's.

A dagger (†) is the paper's own mark: results from its authors' re-implementation of the method. Values are in percent
but those of ABO. Standard deviations are over three seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """What all rows of a table have in common.

    `beside`: the protocol of ours that its rows stand beside: its name in results.
    """

    name: str
    conditions: str
    beside: str | None = None
    main: bool = False


class PaperRow(NamedTuple):
    """One printed number."""

    table: str
    method: str
    data: str
    metric: str
    value: float
    std: float | None = None

    @property
    def fraction(self) -> float:
        """The value in the unit of results: in [0, 1]."""
        return self.value if "ABO" in self.metric else round(self.value / 100, 6)

    @property
    def std_fraction(self) -> float | None:
        """The standard deviation in the same unit."""
        return None if self.std is None else round(self.std / 100, 6)


_VOC, _CITY, _COCO, _CUB = "PASCAL VOC", "Cityscapes", "COCO", "CUB-200-2011"
_FCN = "fine-tuned FCN, best of several learning rates"
_IN1K = "ResNet-50, ImageNet-1K; 300 epochs for R2O, the authors' weights for most others"
_IN100 = "ResNet-50, ImageNet-100, 100 epochs"

PAPER_TABLES = {
    table.name: table
    for table in (
        PaperTable(name="Table 1", conditions=f"{_IN1K}; Mask R-CNN R50-FPN, train2017 to val2017"),
        PaperTable(
            name="Table 2",
            conditions=f"{_IN1K}; {_FCN}; train_aug2012 to val2012, train_fine to val_fine",
            beside="voc",
        ),
        PaperTable(
            name="Table 3",
            conditions="a test set of CUB (of ReDO); MoCo v2, BYOL and R2O: K-means of frozen features with K = 5, "
            "one segment matched; level, size and the kind of mean are not told",
            beside="cub",
            main=True,
        ),
        PaperTable(name="Table 4", conditions=f"{_IN100}, linear schedule; {_FCN}", beside="voc"),
        PaperTable(name="Table 5", conditions=f"{_IN100}; {_FCN}", beside="voc"),
        PaperTable(name="Table A1", conditions=f"{_IN1K}; {_FCN}, three seeds", beside="voc", main=True),
        PaperTable(name="Table A2", conditions="ResNet-50, ImageNet-1K; Mask R-CNN, 1× schedule, three seeds"),
        PaperTable(name="Table A3", conditions=f"ResNet-50, ImageNet-100, 300 epochs, K 128 → 4; {_FCN}", beside="voc"),
        PaperTable(name="Table A4", conditions="ViT-B, ImageNet-100, 300 epochs, batch 1024; COCO, 1× schedule"),
        PaperTable(name="Table A5", conditions=f"{_IN100}; {_FCN}", beside="voc"),
        PaperTable(
            name="Figure 3",
            conditions="refined masks against LUSS's annotations of ImageNet; the gain from first epoch to last",
        ),
        PaperTable(
            name="A.8",
            conditions="refined masks at the end of pretraining, K = 4, groups of 32 images; the kind of mean and "
            "COCO's annotations are not told",
            beside="abo",
            main=True,
        ),
        PaperTable(
            name="LOST",
            conditions="Siméoni et al. 2021, ResNet-50 of DINO; boxes of VOC2012 trainval, images at their own size",
            beside="discovery",
            main=True,
        ),
    )
}


def _rows(table: str, columns: tuple[tuple[str, str], ...], text: str) -> tuple[PaperRow, ...]:
    """Rows of a table as printed: a method, then a number, `mean ± std` or `-` for each (data, metric)."""
    found = []
    for line in text.strip().splitlines():
        method, *cells = (cell.strip() for cell in line.split("|"))
        assert len(cells) == len(columns), line
        for (data, metric), cell in zip(columns, cells, strict=True):
            value, _, std = cell.partition("±")
            if cell != "-":
                found.append(PaperRow(table, method, data, metric, float(value), float(std) if std else None))
    return tuple(found)


PAPER_ROWS = (
    *_rows(
        "Table 1",
        ((f"{_COCO} 1×", "AP^bb"), (f"{_COCO} 1×", "AP^mk"), (f"{_COCO} 2×", "AP^bb"), (f"{_COCO} 2×", "AP^mk")),
        """
        Supervised | 38.9 | 35.4 | 40.6 | 36.8
        MoCo v2    | 38.9 | 35.4 | 40.9 | 37.0
        BYOL†      | 40.6 | 37.5 | 42.0 | 38.7
        DenseCL    | 40.3 | 36.4 | 41.2 | 37.3
        ReSim      | 39.3 | 35.7 | 41.1 | 37.1
        PixPro     | 41.4 | -    | -    | -
        DetCon_B†  | 41.5 | 38.0 | 42.1 | 38.9
        DetCo      | 39.4 | 34.4 | 41.4 | 35.8
        LEWEL      | 41.3 | 37.4 | 42.2 | 38.2
        R2O        | 41.7 | 38.3 | 42.3 | 39.0
        """,
    ),
    *_rows(
        "Table 2",
        ((_VOC, "mIoU"), (_CITY, "mIoU")),
        """
        Supervised | 72.4 | 74.7
        MoCo v2    | 73.9 | 75.6
        BYOL†      | 75.0 | 75.8
        DenseCL    | 73.8 | 76.1
        DetCon_B†  | 76.0 | 76.2
        ReSim      | 74.3 | 75.5
        PixPro     | 74.2 | 75.9
        DetCo      | 74.3 | 74.9
        LEWEL      | 75.5 | 75.4
        R2O        | 76.7 | 76.6
        """,
    ),
    *_rows(
        "Table 3",
        ((_CUB, "mIoU"),),
        """
        MoCo v2        | 63.5
        BYOL†          | 65.1
        PerturbGAN     | 38.0
        ReDO           | 42.6
        OneGAN         | 55.5
        Voynov et al.  | 68.3
        Melas-Kyriazi et al. | 66.4
        R2O            | 71.2
        """,
    ),
    *_rows(
        "Table 4",
        ((_VOC, "mIoU"),),
        """
        K 16 → 4  | 61.1
        K 64 → 4  | 61.5
        K 128 → 4 | 62.3
        K 256 → 4 | 61.7
        K 4 → 16  | 60.2
        K 4 → 64  | 60.8
        K 4 → 128 | 61.0
        K 4 → 256 | 61.1
        """,
    ),
    *_rows(
        "Table 5",
        ((_VOC, "mIoU"),),
        """
        no refinement, no SLIC, no schedule | 61.2
        refinement, no SLIC, no schedule    | 61.5
        no refinement, no SLIC, schedule    | 61.4
        refinement, no SLIC, schedule       | 61.5
        no refinement, SLIC, schedule       | 61.7
        refinement, SLIC, no schedule       | 61.4
        refinement, SLIC, schedule          | 62.3
        """,
    ),
    *_rows(
        "Table A1",
        ((_VOC, "mIoU"), (_CITY, "mIoU")),
        """
        Supervised | 72.4        | 74.7
        MoCo v2    | 73.9 ± 0.12 | 75.6 ± 0.09
        BYOL†      | 75.0 ± 0.22 | 75.8 ± 0.31
        DenseCL    | 73.8 ± 0.2  | 76.1 ± 0.12
        DetCon_B†  | 76.0 ± 0.14 | 76.2 ± 0.09
        ReSim      | 74.3 ± 0.28 | 75.5 ± 0.15
        PixPro     | 74.2 ± 0.44 | 75.9 ± 0.37
        DetCo      | 74.3 ± 0.07 | 74.9 ± 0.46
        LEWEL      | 75.5 ± 0.23 | 75.4 ± 0.07
        R2O        | 76.7 ± 0.09 | 76.6 ± 0.05
        """,
    ),
    *_rows(
        "Table A2",
        ((f"{_COCO} 1×", "AP^bb"), (f"{_COCO} 1×", "AP^mk")),
        """
        BYOL (reproduced)     | 40.3 ± 0.10 | 37.5 ± 0.08
        DetCon_B (reproduced) | 41.5 ± 0.03 | 38.0 ± 0.09
        R2O                   | 41.7 ± 0.02 | 38.3 ± 0.07
        """,
    ),
    *_rows(
        "Table A3",
        ((_VOC, "mIoU"), (_CITY, "mIoU")),
        """
        R2O, NT-Xent of SimCLR | 62.99 ± 0.02 | 69.99 ± 0.17
        R2O, loss of BYOL      | 67.5 ± 0.1   | 71.43 ± 0.25
        """,
    ),
    *_rows(
        "Table A4",
        ((_COCO, "AP^bb"), (_COCO, "AP^mk")),
        """
        MAE | 34.8 | 31.7
        R2O | 40.5 | 36.6
        """,
    ),
    *_rows(
        "Table A5",
        ((_VOC, "mIoU"),),
        """
        SLIC, linear, K 128 → 4            | 62.3
        SLIC, cosine, K 128 → 4            | 61.8
        SLIC, piecewise, K 128 → 4         | 62.1
        SLIC, fixed, K 128                 | 61.4
        SLIC, fixed, K 64                  | 61.4
        SLIC, fixed, K 4                   | 60.7
        spatial 10 × 10, linear, K 128 → 4 | 61.5
        spatial 2 × 2, linear, K 128 → 4   | 60.1
        """,
    ),
    PaperRow("Figure 3", "R2O, gain over pretraining", "ImageNet (LUSS)", "ABO", 0.25),
    PaperRow("A.8", "R2O pretrained on ImageNet", "ImageNet", "ABO", 0.49),
    PaperRow("A.8", "R2O pretrained on COCO", _COCO, "ABO", 0.46),
    PaperRow("LOST", "LOST on DINO's ResNet-50", "VOC2012 trainval", "CorLoc", 42.7),
)
