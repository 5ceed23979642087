"""Which backbone lies where in a file, and by which row of the table of rules."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.models.weights.form import Form, form_of
from train.models.weights.names import CAFFE2, HAIKU, HAIKU_ANCHORS, NAMINGS, Naming, as_tensor, roots
from train.models.weights.pickles import Inert
from train.models.weights.rules import RULES, WRAPPERS, Rule

COUNTER = ".num_batches_tracked"
_STATE = ("online_params", "target_params", "online_state", "target_state", "opt_state")
_FIELDS = {"_ByolExperimentState": _STATE, "ExperimentState": _STATE}  # named tuples, pickled without their names
_DEEPEST, _MOST = 40, 1_000_000  # containers in containers, and members of all of them
_EPS = 1e-5  # of batch norm


@dataclass(frozen=True)
class Held:
    """What a file holds.

    Attributes:
        arrays: path of containers and name, as `state_dict/module.conv1.weight` → tensor or array.
        others: names of the outermost members that hold no arrays.
    """

    arrays: dict[str, Any]
    others: tuple[str, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All paths, and all outermost members."""
        return (*self.arrays, *self.others)


def held_in(content: Any) -> Held:
    """Every tensor and array in what was read, by its path.

    Raises:
        ValueError: there are too many members, as where a few bytes name each other.
    """
    arrays = dict(_flat(content, (), itertools.count()))
    if any(path.endswith(anchor) for path in arrays for anchor in HAIKU_ANCHORS):
        arrays = {_one_tree(path): values for path, values in arrays.items()}
    tops = {path.partition("/")[0] for path in arrays}
    members = content if isinstance(content, dict) else {}
    return Held(arrays, tuple(name for name in map(_printable, members) if name not in tops))


def _flat(value: Any, path: tuple[str, ...], members: Iterator[int]) -> Iterator[tuple[str, Any]]:
    if next(members) > _MOST:
        raise ValueError(f"more than {_MOST} members")
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub"):
        if path:
            yield "/".join(path), value
    elif len(path) < _DEEPEST:
        for name, inner in _children(value):
            yield from _flat(inner, (*path, name), members)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((_printable(key), inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(place), inner) for place, inner in enumerate(value))
    elif isinstance(value, Inert):
        fields = _FIELDS.get(value.named.rpartition(".")[2])
        if fields and len(value.given) == len(fields):
            yield from zip(fields, value.given, strict=True)
        elif len(value.given) == 1:  # a mapping of haiku's holds one dict
            yield from _children(value.given[0])
        else:
            yield from ((str(place), one) for place, one in enumerate(value.given))


def _printable(name: object) -> str:
    """A name of the file's, fit for one line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def _one_tree(path: str) -> str:
    """Haiku's parameters and state side by side: both below `online`, `target` or neither."""

    def below(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}/" if found[2] else found[1]

    return re.sub(r"(^|/)(?:(online|target)_)?(?:params|state)/", below, path, count=1)


@dataclass(frozen=True)
class Candidate:
    """A part of a file that may be a backbone.

    Attributes:
        root: what stands before its names.
        branch: what of the root is no wrapper, as "encoder_q".
        weights: by our keys, what fits by name. paths: our key → path in the file.
        form: None where names and shapes are of no backbone that r2o has. shapes: what it has.
        extra: names behind the root that are not of the form.
    """

    naming: Naming
    root: str
    branch: str
    weights: dict[str, Tensor]
    paths: dict[str, str]
    form: Form | None
    shapes: dict[str, Tensor]
    extra: tuple[str, ...]

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Our keys that it lacks; counters may be absent, all together."""
        return tuple(key for key in self.expected if key not in self.weights)

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """What the form needs of a file."""
        if any(key.endswith(COUNTER) for key in self.weights):
            return self.shapes
        return {key: value for key, value in self.shapes.items() if not key.endswith(COUNTER)}

    @cached_property
    def misfits(self) -> tuple[str, ...]:
        """Our keys whose shape is another."""
        here = self.expected.keys() & self.weights.keys()
        return tuple(key for key in self.expected if key in here and not _same_kind(self, key))

    @cached_property
    def share(self) -> float:
        """Of the form's numbers, those that the file has."""
        total = sum(value.numel() for value in self.expected.values())
        wrong = {*self.missing, *self.misfits}
        return sum(value.numel() for key, value in self.expected.items() if key not in wrong) / total if total else 0.0

    def extra_of(self, rule: Rule) -> tuple[str, ...]:
        """Names among the backbone's that are not of it, and that the rule does not leave out."""
        pattern = rule.left_out.get(self.naming.name)
        return tuple(name for name in self.extra if pattern is None or not re.fullmatch(pattern, name))

    def problem(self, rule: Rule) -> str | None:
        """The first thing that keeps a rule from loading all of it."""
        if self.form is None:
            return "its names and shapes are of no backbone that r2o has"
        if self.missing:
            return f"{len(self.missing)} weights are missing, the first is {self.missing[0]}"
        if extra := self.extra_of(rule):
            return f"{len(extra)} weights are not of it, the first is {extra[0]}"
        if self.misfits:
            key = self.misfits[0]
            given, wanted = self.weights[key], self.expected[key]
            return f"{self.paths[key]} is {_kind(given)}, but {self.form.name} has {_kind(wanted)}"
        return None


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _same_kind(candidate: Candidate, key: str) -> bool:
    given, wanted = candidate.weights[key], candidate.expected[key]
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def candidates_in(held: Held, *, asked: str | None = None, form: Form | None = None) -> list[Candidate]:
    """Every part of a file that has the anchors of a naming, in a fixed order.

    Args:
        asked: the backbone's name where one is expected.
        form: what each is compared with; None: what its own names and shapes say.
    """
    names = frozenset(held.arrays)
    found = [(naming, root) for naming in NAMINGS for root in sorted(roots(naming, names))]
    made = []
    for naming, root in found:
        inner = tuple(other for _, other in found if other != root and other.startswith(root))
        weights, paths = _weights_at(held, naming, root, inner)
        made.append(_candidate(naming, root, weights, paths, form or form_of(weights, asked=asked)))
    return made


def _weights_at(
    held: Held, naming: Naming, root: str, inner: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What lies behind a root, but not behind an inner one: our key → values, our key → path."""
    weights, paths = {}, {}
    for path, values in held.arrays.items():
        rest = path.removeprefix(root)
        outside = not path.startswith(root) or ("/" in rest and naming is not HAIKU)
        if outside or (inner and path.startswith(inner)):
            continue
        ours = naming.to_ours(rest)
        weights[ours], paths[ours] = naming.change(rest, as_tensor(values)), path
    return (_with_statistics(weights) if naming is CAFFE2 else weights), paths


def _candidate(
    naming: Naming, root: str, weights: dict[str, Tensor], paths: dict[str, str], form: Form | None
) -> Candidate:
    shapes = form.shapes() if form else {}
    extra = tuple(paths[key].removeprefix(root) for key in paths if key not in shapes and key in weights)
    branch = " ".join(token for token in re.split(r"[./]", root) if token and token not in WRAPPERS)
    return Candidate(naming, root, branch, weights, paths, form, shapes, extra)


def _with_statistics(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's batch norm is a scale and a bias alone: mean 0 and a variance that makes a division by 1.

    A bias of the first convolution, which ours has not, becomes minus the mean.
    """
    full = dict(weights)
    bias = full.pop("conv1.bias", None)
    for key, scale in weights.items():
        layer, _, kind = key.rpartition(".")
        if kind == "weight" and scale.ndim == 1 and f"{layer}.running_mean" not in weights:
            mean = torch.zeros_like(scale)
            full[f"{layer}.running_mean"] = -bias if bias is not None and layer == "bn1" else mean
            full[f"{layer}.running_var"] = torch.full_like(scale, 1 - _EPS)
    return full


def rules_for(held: Held, format: str) -> list[Rule]:
    """The rows that may be chosen, in the table's order: the named one, or all whose marks are in the file."""
    if format != "auto":
        return [rule for rule in RULES if rule.name == format]
    return [rule for rule in RULES if rule.auto and all(_has(held, mark) for mark in rule.marks)]


def _has(held: Held, mark: str) -> bool:
    return any(re.search(mark, name) for name in held.names)


def group_of(path: str) -> str:
    """What a path is counted under: its first part that is no wrapper."""
    tokens = [token for token in re.split(r"[./]", path) if token]
    return next((token for token in tokens if token not in WRAPPERS), tokens[0] if tokens else path)


def left_out(held: Held, taken: Candidate, found: Sequence[Candidate]) -> dict[str, int]:
    """What of a file is not used: another network by where it lies, all else by its group → how many."""
    used = {taken.paths[key] for key in taken.expected if key in taken.paths}
    others = {path: one.root.rstrip("./") for one in found if one.root != taken.root for path in one.paths.values()}
    return dict(
        sorted(
            Counter(
                others.get(name) or group_of(name.removeprefix(taken.root)) for name in held.names if name not in used
            ).items()
        )
    )
