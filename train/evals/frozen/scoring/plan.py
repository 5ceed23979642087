"""Which protocols are run on a set of annotated images, and why others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from train.config.frozen import (
    FINAL_NUM_CLUSTERS,
    FROZEN_PROTOCOLS,
    Annotation,
    EvalFrozenSettings,
    FrozenProtocol,
    ProtocolSettings,
    require_protocol,
)
from train.evals.datasets.annotated import DataSet
from train.evals.frozen.superpixels import ABO_SUPERPIXELS, ShardSuperpixels


@dataclass(frozen=True, kw_only=True)
class ProtocolPlan:
    """What one set of images is used for; `left_out`: protocol → why not."""

    chosen: tuple[FrozenProtocol, ...]
    left_out: Mapping[str, str]


def plan_protocols(data: DataSet, wanted: Sequence[str] | None) -> ProtocolPlan:
    """The protocols that the data allow, in the order of the table.

    Args:
        wanted: their names; None: all of them that are meant for data of this layout.
    Raises:
        InputError: none of them can be run.
    """
    chosen, left_out = [], {}
    for protocol in named_protocols(wanted):
        if why := _why_not(protocol, data, asked_for=wanted is not None):
            left_out[protocol.name] = why
        else:
            chosen.append(protocol)
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise InputError(f"{data.root}: no protocol can be run on it ({reasons})")
    return ProtocolPlan(chosen=tuple(chosen), left_out=left_out)


def named_protocols(wanted: Sequence[str] | None) -> list[FrozenProtocol]:
    """Protocols by name, in the order of the table. Raises InputError for a name that there is not."""
    try:
        for name in wanted or ():
            require_protocol(name)
    except ValueError as error:
        raise InputError(f"--protocols: {error}") from None
    return [protocol for name, protocol in FROZEN_PROTOCOLS.items() if wanted is None or name in wanted]


def needs_of(protocols: Iterable[FrozenProtocol]) -> frozenset[Annotation]:
    """The annotations that protocols need."""
    return frozenset(protocol.needs for protocol in protocols)


def settings_of(settings: EvalFrozenSettings, protocol: FrozenProtocol) -> ProtocolSettings:
    """A protocol's own settings."""
    found: ProtocolSettings = getattr(settings, protocol.name)
    return found


def deciding_settings(
    settings: EvalFrozenSettings, protocol: FrozenProtocol, *, num_clusters: int | None = None
) -> dict[str, Any]:
    """All settings that decide the numbers of a protocol with one seed, as plain JSON values.

    Args:
        num_clusters: K of the run that the weights are of, which ABO takes where the settings name none.
    """
    own = settings_of(settings, protocol).content()
    own.pop("seeds")
    if protocol.name == "abo":  # figures of another K are not comparable
        own["clusters"] = own["clusters"] or num_clusters or FINAL_NUM_CLUSTERS
    if place := own.get("superpixels"):
        own["superpixels"] = Manifest.read(place).content_sha256  # the shards, wherever they lie
    features = settings.features.content()
    features.pop("batch_norm_images")  # it is part of the weights that it makes
    return {**own, "features": features, "report_classes": list(settings.report_classes)}


def data_fingerprint(data: DataSet, protocol: FrozenProtocol) -> str:
    """The hash of the images and of what the protocol sees of their annotations."""
    digests = data.digests[protocol.needs]
    seen = dict(digests) if protocol.fits else {"val": digests["val"]}
    return fingerprint(layout=data.layout, classes=list(data.classes), background=data.background, lists=seen)


def check_report_names(names: Sequence[str], data: DataSet) -> None:
    """Raises InputError where a class is not one of the data set's."""
    for name in names:
        if name not in data.classes:
            raise InputError(
                f"eval_frozen.report_classes: no class {name!r}; {data.root} has {', '.join(data.classes[:30])}"
            )


def check_superpixels(plan: ProtocolPlan, data: DataSet, settings: EvalFrozenSettings) -> None:
    """Raises InputError where shards of superpixels are named, and are not those of the images of `val`."""
    place = settings.abo.superpixels
    if place is not None and any(protocol.name == "abo" for protocol in plan.chosen):
        ShardSuperpixels(place, data.val.names, key=ABO_SUPERPIXELS)


def _why_not(protocol: FrozenProtocol, data: DataSet, *, asked_for: bool) -> str | None:
    if protocol.needs not in data.has:
        return data.lacks.get(protocol.needs, f"no {protocol.needs}")
    if protocol.fits and (data.train is None or protocol.needs not in data.train_has):
        return f"it fits on a training part, and there is none with {protocol.needs}"
    if protocol.layouts and data.layout not in protocol.layouts and not asked_for:
        meant = " and ".join(protocol.layouts)
        return f"it is for layout {meant}; name it by --protocols or eval_frozen.protocols to run it on this one"
    return None
