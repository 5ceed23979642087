"""Pickles read without running anything: dicts, lists, text, numbers, arrays and tensors; all else is inert.

A pickle names classes and functions, and asks for them to be called. Here no name is ever looked up: each becomes a
class of our own that keeps what it was called with. Arrays and tensors are put together by us, of plain numbers alone;
NumPy's own way is not used, since a pickled dtype may say that its bytes are pointers.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

NPY_BEGINS = b"\x93NUMPY"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of what torch.save wrote before torch 1.6
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Inert:
    """An object of somebody's class, which is not made: what it was called with, and its state.

    Attributes:
        named: the class or function that the pickle asks for.
        given: arguments, the state, and what was put into it by index or key.
    """

    named = ""
    given: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Keep the arguments."""
        self = super().__new__(cls)
        self.given = list(args)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Keep the arguments of a call, too."""
        self.given += args
        return self

    def __setstate__(self, state: Any) -> None:
        self.given.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.given.append({key: value})

    def append(self, item: Any) -> None:
        """Keep an item of a list."""
        self.given.append(item)

    def extend(self, items: list[Any]) -> None:
        """Keep items of a list."""
        self.given += items


class _Dtype:
    """A NumPy dtype of plain numbers, from its name and byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code: Any = code
        self.order: Any = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def plain(self) -> np.dtype[Any]:
        code = self.code.decode("ascii") if isinstance(self.code, bytes) else self.code
        order = self.order.decode("ascii") if isinstance(self.order, bytes) else self.order
        if not isinstance(code, str) or code not in _PLAIN or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array of {code!r}, which is no plain number")
        return np.dtype(f"{order}{code}")


_PLAIN = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8) if (kind, size) != ("f", 1)} | {"b1"}


class _Array:
    """A NumPy array: its shape, dtype and bytes come as state. One of objects becomes a list of them."""

    __slots__ = ("values",)

    def __init__(self, *_: Any) -> None:
        self.values: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array without a dtype")
        if isinstance(data, list):
            self.values = data
            return
        flat = np.frombuffer(_as_bytes(data), dtype.plain())
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """`numpy._core.numeric._frombuffer`, of protocol 5."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return array


def _scalar(dtype: Any, data: Any = b"") -> float | int:
    array = _Array()
    array.__setstate__((1, (1,), dtype, False, data))
    number: float | int = array.values[0].item()
    return number


def _as_bytes(data: Any) -> bytes:
    """Bytes, which protocol 2 of Python 3 writes as latin-1 text."""
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _encode(text: Any, encoding: Any = "latin-1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return _as_bytes(text)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # torch refuses what lies beyond the storage


class _Function:
    """One of our functions, without attributes, so that a pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _known() -> dict[str, Any]:
    """The few names that give something, each freshly made for one file."""
    made: dict[str, Any] = {
        "_codecs.encode": _Function(_encode),
        "collections.OrderedDict": _Function(lambda *items: OrderedDict(*items)),
        "collections.defaultdict": _Function(lambda *_: OrderedDict()),
        "torch._utils._rebuild_tensor_v2": _Function(_tensor),
        "torch._utils._rebuild_tensor": _Function(_tensor),
        "torch._utils._rebuild_parameter": _Function(lambda tensor, *_: tensor),
        "torch._utils._rebuild_parameter_with_state": _Function(lambda tensor, *_: tensor),
        "torch.Size": _Function(lambda items=(): tuple(items)),
        "numpy.dtype": _Function(_Dtype),
        "numpy.ndarray": "numpy.ndarray",
    }
    for core in ("numpy.core", "numpy._core"):
        made[f"{core}.multiarray._reconstruct"] = _Function(_Array)
        made[f"{core}.multiarray.scalar"] = _Function(_scalar)
        made[f"{core}.numeric._frombuffer"] = _Function(_from_buffer)
    return made


class InertUnpickler(pickle.Unpickler):
    """Reads one pickle.

    Args:
        storage: gives the numbers of a tensor's storage by dtype, key and count.
    """

    def __init__(self, file: IO[bytes], *, storage: Callable[[torch.dtype, str, int], Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin-1")
        self._storage, self._known = storage, _known()

    def find_class(self, module: str, name: str) -> Any:
        """A name of the pickle's: never looked up."""
        full = f"{module}.{name}"
        if module == "torch" and name in STORAGES:
            return name
        if full not in self._known:
            self._known[full] = type("Inert", (Inert,), {"named": full})
        return self._known[full]

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage of a tensor; nothing else lies outside of a pickle."""
        kind, dtype, key, _, count = pid[:5]
        if self._storage is None or kind not in ("storage", b"storage") or dtype not in STORAGES:
            raise pickle.UnpicklingError("it points to something outside of it that is no tensor's storage")
        return self._storage(STORAGES[dtype], str(key), int(count))


def read_pickle(file: IO[bytes]) -> Any:
    """What one pickle holds, plain."""
    return _plain(InertUnpickler(file).load())


def read_npy_object(file: IO[bytes]) -> Any:
    """What an .npy of one object holds, as `np.save` writes a dict."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if not dtype.hasobject or shape != ():
        raise pickle.UnpicklingError(f"it is one array of shape {shape} without names, not a dict of arrays")
    objects = read_pickle(file)
    return objects[0] if isinstance(objects, list) and len(objects) == 1 else objects


def read_torch_zip(file: IO[bytes]) -> Any:
    """What torch.save wrote since torch 1.6, with objects of other classes left inert."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")

        def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            return torch.frombuffer(bytearray(archive.read(f"{root}data/{key}")), dtype=dtype)[:count]

        with archive.open(pickled) as stream:
            return _plain(InertUnpickler(stream, storage=storage).load())


def read_torch_legacy(file: IO[bytes]) -> Any:
    """What torch.save wrote before torch 1.6: magic, protocol, system, content, keys; then each storage's numbers."""
    for _ in range(3):
        InertUnpickler(file).load()
    storages: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        return storages.setdefault(key, torch.empty(count, dtype=dtype))

    content = InertUnpickler(file, storage=storage).load()
    for key in InertUnpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        values = storages[str(key)]
        data = file.read(count * values.element_size())
        if count != len(values) or len(data) != count * values.element_size():
            raise pickle.UnpicklingError(f"storage {key} is cut short")
        values.copy_(torch.frombuffer(bytearray(data), dtype=values.dtype))
    return _plain(content)


def _plain(value: Any) -> Any:
    """The same with arrays for what stands for them. What refers to itself is followed once."""
    seen: dict[int, Any] = {}

    def follow(one: Any) -> Any:
        if isinstance(one, _Array):
            return follow(one.values)
        if not isinstance(one, (dict, list, tuple, Inert)):
            return one
        if id(one) in seen:
            return seen[id(one)]
        seen[id(one)] = None
        if isinstance(one, dict):
            new: Any = {key: follow(inner) for key, inner in one.items()}
        elif isinstance(one, Inert):
            one.given = [follow(inner) for inner in one.given]
            new = one
        else:
            new = [follow(inner) for inner in one]
        seen[id(one)] = new
        return new

    return follow(value)


def inert_names(content: Any) -> list[str]:
    """The names of the inert objects among the members of what was read, and of their members; each once."""
    names, level = set(), [content]
    for _ in range(3):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        names |= {one.named for one in level if isinstance(one, Inert)}
        level = [one for members in inner for one in members]
    return sorted(names)
