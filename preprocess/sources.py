"""Which images there are, by name alone: folders, list files, tars, WebDataset, Parquet, COCO; a path or a URL."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.storage import Folder, LocalFolder, RemoteFolder, folder_at, is_url, local_path
from preprocess import archives, parquet
from preprocess.config import SourceSettings
from preprocess.listing import Listing, Source
from preprocess.selection import Selection

IMAGE_SUFFIXES = frozenset({b".jpg", b".jpeg", b".png", b".webp", b".gif", b".bmp", b".tif", b".tiff"})
LIST_SUFFIXES = (".txt", ".lst", ".list")
KAGGLE = ("ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "CLS-LOC/train")


def list_images(place: str | os.PathLike[str], settings: SourceSettings | None = None) -> Listing:
    """Every image at a path or URL, in an order that depends on nothing but their names and archives.

    Raises:
        InputError: the place is missing, cannot be read, is damaged or of no known format, or holds no image; a filter
            names what is not there.
    """
    settings = settings or SourceSettings()
    place = os.fspath(place)
    root = place.rstrip("/") if is_url(place) else str(local_path(place))
    try:
        listing = _listed(root, settings)
    except FileNotFoundError:
        raise InputError(f"{root}: no such file or folder; give one that holds images") from None
    except OSError as error:
        where = os.fsdecode(error.filename or root)
        why = error.strerror or error
        raise InputError(f"{where}: cannot be listed ({why}); make it readable or move it away") from None
    if not len(listing):
        listing.close()
        raise InputError(_nothing_found(root, listing))
    return listing


def is_image(name: bytes) -> bool:
    """Whether a name ends as an image's does, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _listed(root: str, settings: SourceSettings) -> Listing:
    parent, _, name = root.rpartition("/")
    beside = folder_at(parent or "/")
    kind: str = settings.format
    if kind == "auto":
        kind = _kind_of_file(beside, name, root) or _kind_of_folder(folder_at(root), root, settings)
    if kind in ("list", "tar") or (kind in ("webdataset", "parquet") and _is_file(beside, name)):
        folder, names = beside, [name]
    else:
        folder, names = folder_at(root), []
    selection = Selection(settings)
    listing = _FORMATS[kind](folder, names, selection, settings)
    selection.check()
    return listing


def _kind_of_file(folder: Folder, name: str, root: str) -> str | None:
    """What a single file is; None for a folder."""
    lower = name.lower()
    if not _is_file(folder, name):
        return None
    if lower.endswith(archives.COMPRESSED):
        raise InputError(f"{root}: compressed, so nothing can be read in place; decompress it first")
    if lower.endswith(LIST_SUFFIXES):
        return "list"
    if lower.endswith(".parquet"):
        return "parquet"
    if lower.endswith(".tar"):
        return "webdataset" if archives.looks_like_samples(folder, name) else "tar"
    known = ", ".join((".tar", ".parquet", *LIST_SUFFIXES))
    raise InputError(f"{root}: a file that is no source of images; give a folder or one of {known}")


def _is_file(folder: Folder, name: str) -> bool:
    if isinstance(folder, LocalFolder):
        return (folder.path / name).is_file()
    return name in folder.sizes()


def _kind_of_folder(folder: Folder, root: str, settings: SourceSettings) -> str:
    names = folder.names()
    if settings.split in names and "annotations" in names:
        return "coco"
    for inside in KAGGLE:
        first = inside.partition("/")[0]
        if first in names and folder.below(inside).names():
            raise InputError(f"{root}: train, validation and test images in one; give {root}/{inside}")
    if not any(is_image(os.fsencode(name)) for name in names):
        if any(name.endswith(".tar") for name in names):
            return "webdataset"
        if any(name.endswith(".parquet") for name in names):
            return "parquet"
    return "folder"


def _list_folder(folder: Folder, names: list[str], chosen: Selection, settings: SourceSettings) -> Listing:
    listing = Listing(root=folder.root, kind="files", described="folders")
    chosen.add(listing, _walk(folder))
    listing.described = "class folders" if listing.has_classes else "a folder"
    return listing


def _list_coco(folder: Folder, names: list[str], chosen: Selection, settings: SourceSettings) -> Listing:
    split = settings.split
    listing = Listing(root=folder.root, kind="files", described=f"COCO's {split}", class_folders=False)
    prefix = os.fsencode(split) + b"/"
    chosen.add(listing, (s and s._replace(name=prefix + s.name) for s in _walk(folder.below(split))))
    return listing


def _list_file(folder: Folder, names: list[str], chosen: Selection, settings: SourceSettings) -> Listing:
    data, where = folder.read(names[0]), f"{folder.root}/{names[0]}"
    listing = Listing(root=folder.root, kind="files", described=f"the list {names[0]}")
    seen: set[bytes] = set()

    def lines() -> Iterator[Source]:
        for line in data.split(b"\0" if b"\0" in data else b"\n"):
            path = line.removesuffix(b"\r").removeprefix(os.fsencode(folder.root) + b"/").removeprefix(b"./")
            if not path:
                continue
            shown = os.fsdecode(path)
            if path.startswith(b"/") or b"://" in path or b".." in path.split(b"/"):
                raise InputError(f"{where}: {shown} is not below {folder.root}; keep the list above its images")
            if path in seen:
                raise InputError(f"{where}: {shown} is named twice; name every image once")
            seen.add(path)
            yield Source(path, _size_if_there(folder, path))

    chosen.add(listing, lines())
    return listing


def _size_if_there(folder: Folder, path: bytes) -> int:
    """Bytes of a file of this machine; 0 where it is not there or asking would be a request for each."""
    if not isinstance(folder, LocalFolder):
        return 0
    try:
        return os.stat(os.path.join(os.fsencode(folder.path), path)).st_size
    except OSError:
        return 0


def _list_tar(folder: Folder, names: list[str], chosen: Selection, settings: SourceSettings) -> Listing:
    listing = Listing(root=folder.root, kind="ranges", described=f"the archive {names[0]}")
    chosen.add(listing, archives.images_in_tar(folder, names[0], is_image))
    return listing


def _list_webdataset(folder: Folder, names: list[str], chosen: Selection, settings: SourceSettings) -> Listing:
    tars = names or [name for name in folder.names() if name.endswith(".tar")]
    described = f"{len(tars)} WebDataset shards"
    listing = Listing(root=folder.root, kind="ranges", described=described, class_folders=False)
    for name in tars:
        for source, members in archives.samples_of(folder, name, settings.image):
            chosen.add(listing, [source] if source else [None] * members)
    return listing


def _list_parquet(folder: Folder, names: list[str], chosen: Selection, settings: SourceSettings) -> Listing:
    files = names or [name for name in folder.names() if name.endswith(".parquet")]
    if not files:
        raise InputError(f"{folder.root}: no file ends in .parquet")
    column = parquet.image_column(folder, files[0], settings.image)
    described = f"column {column} of {len(files)} Parquet files"
    listing = Listing(root=folder.root, kind="rows", described=described, class_folders=False, column=column)
    for name in files:
        parquet.image_column(folder, name, column)
        chosen.add(listing, parquet.rows_of(folder, name))
    return listing


_FORMATS: dict[str, Callable[[Folder, list[str], Selection, SourceSettings], Listing]] = {
    "folder": _list_folder,
    "list": _list_file,
    "tar": _list_tar,
    "webdataset": _list_webdataset,
    "parquet": _list_parquet,
    "coco": _list_coco,
}


def _walk(folder: Folder) -> Iterator[Source | None]:
    """Every image below a folder in the order of the path bytes, None for each entry that is none.

    Images are regular files with an image's suffix, in any case, and links to such files; a dangling link too, so
    that it ends in quarantine and not in silence. Links to folders are followed unless they lead into themselves.
    Everything else (other suffixes, hidden entries, looping links, devices) is none. In memory is a folder at a time.
    """
    if isinstance(folder, LocalFolder):
        return _walk_local(os.fsencode(folder.path), b"", ancestors=())
    assert isinstance(folder, RemoteFolder)
    return _walk_remote(folder, b"")


def _walk_local(path: bytes, relative: bytes, *, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Source | None]:
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        yield None
        return
    with os.scandir(path) as entries:
        found = sorted((entry.name + b"/" * _is_folder(entry), entry) for entry in entries)
    for name, entry in found:
        if name.startswith(b"."):
            yield None
        elif name.endswith(b"/"):
            yield from _walk_local(entry.path, relative + name, ancestors=(*ancestors, identity))
        else:
            size = _image_size(entry)
            yield None if size is None else Source(relative + name, size)


def _walk_remote(folder: RemoteFolder, relative: bytes) -> Iterator[Source | None]:
    for name, size in folder.entries():
        path = os.fsencode(name)
        if path.startswith(b"."):
            yield None
        elif size is None:
            yield from _walk_remote(folder.below(name.rstrip("/")), relative + path)
        else:
            yield Source(relative + path, size) if is_image(path) else None


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _image_size(entry: os.DirEntry[bytes]) -> int | None:
    """Size in bytes of what is an image by name, None of what is not."""
    if not is_image(entry.name):
        return None
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        if error.errno == errno.ENOENT and entry.is_symlink():
            return 0
        raise
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _nothing_found(root: str, listing: Listing) -> str:
    suffixes = ", ".join(sorted(suffix.decode() for suffix in IMAGE_SUFFIXES))
    if listing.described.startswith("a folder"):
        if not listing.ignored:
            return f"{root}: the folder is empty; give one that holds images ({suffixes})"
        return f"{root}: no image among its files ({listing.ignored} ignored); images end in {suffixes}"
    return f"{root}: no image in {listing.described} ({listing.ignored} other entries); images end in {suffixes}"
