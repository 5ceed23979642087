"""Which of the paper's figures stand beside a column, and in what they differ from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.report.columns import Column
from pipeline.report.paper_rows import PAPER_ROWS, PAPER_TABLES, PaperRow

WhichQuoted = Literal["main", "all", "none"]
OTHER_PROTOCOL, OTHER_DATA = "other protocol", "other data"

FROZEN_CUB_ROWS = frozenset({"MoCo v2", "BYOL†", "R2O"})  # of Table 3; the others are no K-means of features
# By protocol: the settings of ours that the paper tells. What it does not tell is no difference.
PAPER_SETTINGS: dict[str, dict[str, Any]] = {
    "voc": {
        "iterations": 30_000,
        "batch_size": 16,
        "weight_decay": 1e-4,
        "crop_size": 513,
        "scale_range": [0.5, 2.0],
        "lr_drops": [0.7, 0.9],
        "head_channels": 256,
        "head_convs": 2,
        "head_dilation": 6,
    },
    "cub": {"clusters": 5},
    "abo": {"group_size": 32},
}
# By data of the paper: the layout of ours, and how many images it scores where that is known.
PAPER_DATA: dict[str, tuple[str, int | None]] = {
    "PASCAL VOC": ("voc", 1449),
    "CUB-200-2011": ("cub", 1000),  # class 2 of ReDO's split
    "ImageNet": ("imagenet_s", None),
    "COCO": ("coco", None),
    "VOC2012 trainval": ("voc", 11_540),
}


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """A figure of the paper beside a column (counted from 0), and what differs; nothing: as far as the paper tells."""

    row: PaperRow
    column: int
    differs: tuple[str, ...]

    @property
    def mark(self) -> str:
        """What stands beside the number, wherever it is shown."""
        return "other protocol/data" if len(self.differs) == 2 else "".join(self.differs) or "the same as far as told"


def quoted_beside(columns: Sequence[Column], which: WhichQuoted = "main") -> list[Quoted]:
    """The figures for each column that shows its protocol's headline.

    Args:
        which: main: Tables 3 and A1, A.8, LOST's; all: the ablations and Table 2 too.
    """
    found = []
    for place, column in enumerate(columns):
        for row in PAPER_ROWS if column.is_headline and which != "none" else ():
            table = PAPER_TABLES[row.table]
            if table.beside == column.first.name and row.data in PAPER_DATA and (table.main or which == "all"):
                found.append(Quoted(row=row, column=place, differs=_differences(row, column)))
    return found


def _differences(row: PaperRow, column: Column) -> tuple[str, ...]:
    first = column.first
    layout, images = PAPER_DATA[row.data]
    same_data = first.data.layout == layout and images in (None, first.data.images.get("val"))
    told = PAPER_SETTINGS.get(first.name)
    same_protocol = told is not None and all(
        setting_of(first.settings, first.name, key) == value for key, value in told.items()
    )
    if row.table == "Table 3":
        same_protocol = same_protocol and row.method in FROZEN_CUB_ROWS
    return (*(() if same_protocol else (OTHER_PROTOCOL,)), *(() if same_data else (OTHER_DATA,)))


def setting_of(settings: Mapping[str, Any], protocol: str, key: str) -> Any:
    """A setting, whether it lies at the top or in the protocol's own section; None where there is none."""
    own = settings.get(protocol)
    return settings.get(key, own.get(key) if isinstance(own, Mapping) else None)
