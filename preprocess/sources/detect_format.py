"""What a source is, where its settings do not say: told by names, and by the first members of a tar."""

from __future__ import annotations

import os
import re

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, LocalFolder
from preprocess.config import SourceSettings
from preprocess.sources import tars
from preprocess.sources.folders import is_image

LIST_SUFFIXES = (".txt", ".lst", ".list")
ARCHIVES = {"tar": ".tar", "webdataset": ".tar", "parquet": ".parquet"}  # suffix by format
KAGGLE = ("ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "CLS-LOC/train")
COCO_SPLIT = re.compile(r"(train|val|test|unlabeled)20\d\d")
AS_FOLDER = "set shards.source.format=folder"
DATA_SET_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # of a data set


def kind_of_file(folder: Folder, name: str, root: str, settings: SourceSettings) -> str:
    """The format of one file. Raises InputError where it is none that is known, or compressed."""
    lower = name.lower()
    if lower.endswith(tars.COMPRESSED):
        raise InputError(f"{root}: compressed, so nothing can be read in place; decompress it first")
    if lower.endswith(LIST_SUFFIXES):
        return "list"
    if lower.endswith(".tar"):
        return "webdataset" if tars.looks_like_samples(folder, name, settings.image) else "tar"
    if lower.endswith(".parquet"):
        return "parquet"
    known = ", ".join((".tar", ".parquet", *LIST_SUFFIXES))
    raise InputError(f"{root}: a file that is no source of images; give a folder or one of {known}")


def kind_of_files(files: list[str], root: str) -> str:
    """The format of the files that a pattern matched. Raises InputError where they are no tars and no Parquet files."""
    for kind in ("webdataset", "parquet"):
        if all(name.endswith(ARCHIVES[kind]) for name in files):
            return kind
    raise InputError(f"{root}: the pattern matches {files[0]}; let it match only .tar or only .parquet files")


def kind_of_folder(folder: Folder, root: str, settings: SourceSettings) -> str:
    """The format of what a folder holds.

    Raises:
        InputError: it holds several parts of a data set, or archives beside folders, so that the user must choose.
    """
    names = folder.names()
    if "annotations" in names and (splits := [name for name in names if COCO_SPLIT.fullmatch(name)]):
        if settings.split not in splits:
            raise InputError(f"{root}: COCO without {settings.split}; set shards.source.split to {' or '.join(splits)}")
        return "coco"
    for inside in KAGGLE:
        if inside.partition("/")[0] in names and folder.below(inside).names():
            raise InputError(
                f"{root}: train, val, test images in one; give {root}/{inside}, or {AS_FOLDER} to take all"
            )
    parts = {DATA_SET_PARTS[name.lower()]: name for name in names if name.lower() in DATA_SET_PARTS}
    if len(parts) > 1:
        which, one = ", ".join(sorted(parts)), parts.get("train", min(parts.values()))
        raise InputError(f"{root}: {which} images in one; give {root}/{one}, or {AS_FOLDER} to take all")
    return _kind_by_suffix(folder, root, names)


def _kind_by_suffix(folder: Folder, root: str, names: list[str]) -> str:
    if any(is_image(os.fsencode(name)) for name in names):
        return "folder"
    kinds = [kind for kind in ("webdataset", "parquet") if any(name.endswith(ARCHIVES[kind]) for name in names)]
    if kinds and any(not name.startswith((".", "_")) and _is_folder(folder, name) for name in names):
        raise InputError(f"{root}: both {ARCHIVES[kinds[0]]} files and folders; {AS_FOLDER} or {kinds[0]}")
    return kinds[0] if kinds else "folder"


def _is_folder(folder: Folder, name: str) -> bool:
    if isinstance(folder, LocalFolder):
        return (folder.path / name).is_dir()
    return "." not in name and bool(folder.below(name).names())
