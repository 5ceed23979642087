"""A folder of annotated images, whatever its layout, read and checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.foundation.errors import InputError
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import DataSet
from train.evals.datasets.checked import CheckedImages
from train.evals.datasets.found import FoundData, FoundPart
from train.evals.datasets.layouts import cityscapes, class_folders, coco, cub, imagenet_s, label_pngs, voc
from train.evals.datasets.lists import require_different, require_disjoint

FITTED = frozenset[Annotation]({"labels", "class_id"})  # what protocols fit on
_LAST = "classes"  # folders with images in them, which other layouts have too
_LISTS = frozenset({"train_list", "val_list"})


@dataclass(frozen=True, kw_only=True)
class DataLayout:
    """One way to lay out a folder.

    Attributes:
        tree: what makes a folder one, for messages.
        takes: the settings that it has a use for.
        is_one: whether a folder is laid out so.
        find: which images it holds, and what of those `needs` it has. Raises InputError.
    """

    tree: str
    takes: frozenset[str]
    is_one: Callable[[Path], bool]
    find: Callable[[Path, FrozenDataSettings, frozenset[Annotation]], FoundData]


LAYOUTS = {
    "voc": DataLayout(
        tree="JPEGImages",
        takes=_LISTS | {"train_masks", "val_masks", "objects"},
        is_one=voc.is_voc,
        find=voc.find_voc,
    ),
    "coco": DataLayout(tree="annotations/instances_….json", takes=_LISTS, is_one=coco.is_coco, find=coco.find_coco),
    "cub": DataLayout(tree="images.txt", takes=frozenset({"split"}), is_one=cub.is_cub, find=cub.find_cub),
    "imagenet_s": DataLayout(
        tree="validation-segmentation",
        takes=_LISTS,
        is_one=imagenet_s.is_imagenet_s,
        find=imagenet_s.find_imagenet_s,
    ),
    "cityscapes": DataLayout(
        tree="leftImg8bit and gtFine", takes=_LISTS, is_one=cityscapes.is_cityscapes, find=cityscapes.find_cityscapes
    ),
    "labels": DataLayout(
        tree="images, annotations and classes.txt",
        takes=_LISTS | {"first_class_id"},
        is_one=label_pngs.is_label_pngs,
        find=label_pngs.find_label_pngs,
    ),
    "classes": DataLayout(
        tree="folders of images, or train and val of such",
        takes=_LISTS,
        is_one=class_folders.is_class_folders,
        find=class_folders.find_classes,
    ),
}


def open_dataset(path: Path, settings: FrozenDataSettings, *, needs: frozenset[Annotation]) -> DataSet:
    """Find out a folder's layout, and read and check every file that will be used.

    Args:
        needs: the annotations that the protocols to run need. Files that hold others are not read. Where the folder
            has not all of them, `has` and `lacks` of the result say so.

    Raises:
        InputError: there is no such layout, a setting does not fit it, or a file is missing or wrong.
    """
    name = _layout_of(path) if settings.layout == "auto" else settings.layout
    layout = LAYOUTS[name]
    _refuse_unused(settings, name, layout)
    found = layout.find(path, settings, needs)
    _check_lists(found, needs)
    notes = list(found.notes)
    val, train = _checked(found.val, found, settings, notes), None
    if found.train:
        train = _checked(found.train, found, settings, notes)
        notes += _in_both(train, val)
    return DataSet(
        layout=name,
        root=found.root,
        classes=found.classes,
        background=found.background,
        has=found.val.has,
        val=val,
        train=train,
        train_has=found.train.has if found.train else frozenset(),
        notes=tuple(notes),
        lacks=found.lacks,
        digests={
            need: _digests(layout.find(path, settings, frozenset({need})), val, train, settings)
            for need in sorted(found.val.has)
        },
    )


def _digests(
    found: FoundData, val: CheckedImages, train: CheckedImages | None, settings: FrozenDataSettings
) -> dict[DataPart, str]:
    """By part, the digest of what is found for one annotation alone."""
    digests: dict[DataPart, str] = {"val": val.digest_of(_chosen(found.val, settings).entries)}
    if train and found.train:
        digests["train"] = train.digest_of(_chosen(found.train, settings).entries)
    return digests


def _layout_of(path: Path) -> str:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; data must be a folder of annotated images")
    fitting = [name for name, layout in LAYOUTS.items() if name != _LAST and layout.is_one(path)]
    if not fitting and LAYOUTS[_LAST].is_one(path):
        return _LAST
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"{path} could be {' or '.join(fitting)}; say which by eval_frozen.data.layout")
    known = "; ".join(f"{name}: {layout.tree}" for name, layout in LAYOUTS.items())
    raise InputError(f"{path} has no layout that is known ({known})")


def _refuse_unused(settings: FrozenDataSettings, name: str, layout: DataLayout) -> None:
    always = {"layout", "max_images"}
    for key in FrozenDataSettings.model_fields.keys() - layout.takes - always:
        if getattr(settings, key) != FrozenDataSettings.model_fields[key].default:
            raise InputError(f"eval_frozen.data.{key}: layout {name} has no use for it; leave it out")


def _check_lists(found: FoundData, needs: frozenset[Annotation]) -> None:
    for part in (found.val, found.train):
        if part and not part.entries:
            raise InputError(f"{part.where}: no image in it; {part.title} must have some")
        if part:
            require_different([entry.name for entry in part.entries], path=part.where)
    if found.train and needs & FITTED:
        train, val = ([entry.name for entry in part.entries] for part in (found.train, found.val))
        require_disjoint(train, val, where=f"{found.train.where} and {found.val.where}")


def _checked(part: FoundPart, found: FoundData, settings: FrozenDataSettings, notes: list[str]) -> CheckedImages:
    total, part = len(part.entries), _chosen(part, settings)
    if len(part.entries) < total:
        notes.append(f"{len(part.entries)} of {total} images of {part.title}, evenly spaced")
    checked = CheckedImages(part, background=found.background)
    notes += checked.notes
    return checked


def _chosen(part: FoundPart, settings: FrozenDataSettings) -> FoundPart:
    """At most as many images as are wanted, evenly spaced."""
    total, most = len(part.entries), settings.max_images
    if most is None or most >= total:
        return part
    return replace(part, entries=tuple(part.entries[i * total // most] for i in range(most)))


def _in_both(train: CheckedImages, val: CheckedImages) -> list[str]:
    """A note on images of val whose very bytes are in train, under whatever name."""
    fitted, scored = train.contents(), val.contents()
    both = sorted(scored[content] for content in fitted.keys() & scored.keys())
    shown = ", ".join(both[:3]) + (" …" if len(both) > 3 else "")
    return [f"{len(both)} images of val are in train too, byte by byte: {shown}"] if both else []
