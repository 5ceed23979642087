"""A backbone of anybody's, from a file: safe, strict, and never silently random.

from train.models.weights.load import load_backbone

loaded = load_backbone("moco_v2_800ep_pretrain.pth.tar")
print(loaded.name, loaded.format, loaded.loaded, *loaded.notes, sep="\\n")
model = FrozenModel.of(loaded)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from train.models.weights.form import AnyBackbone, Form


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """Weights of a backbone and what they expect: RGB in [0, 1], from which `mean` is taken and which `std` divides.

    Attributes:
        name: resnet18 … resnet152, or vit_<s, b or l>_<side of a patch>.
        weights: by our keys, float32 (counters int64).
        format: the row of the table of rules that they were read by.
        sha256: of the file, in hex.
        loaded: the share of the backbone's weights that came from the file; 1.0, else the file is refused.
        left_out: what of the file was not used: group of keys → how many.
        notes: what is worth saying, one line each: which of several networks, what was changed.
        fingerprint: of the run of ours that they come from; None where they come from none.
        form: how the backbone is built.
    """

    name: str
    weights: dict[str, Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    format: str
    sha256: str
    loaded: float
    left_out: dict[str, int]
    notes: tuple[str, ...]
    fingerprint: str | None
    form: Form

    @property
    def own_layers(self) -> bool:
        """Whether it is a ViT with R2O's layers of C4 and C5."""
        return self.form.own_layers

    def build(self, *, dilate_c5: bool = False, image_size: int = 224) -> AnyBackbone:
        """A new module with these weights; a ViT's position embedding is interpolated to `image_size`."""
        raise NotImplementedError


def load_backbone(
    path: Path | str, *, format: str = "auto", backbone: str | None = None, part: str = "online"
) -> LoadedBackbone:
    """Read a backbone from a file of any project's, or from a run of ours. No code in the file is run.

    Args:
        path: a file, or the folder of a run.
        format: a row of `train.models.weights.rules`; "auto": the one whose rules load a whole backbone.
        backbone: its name where the caller expects one; another is refused.
        part: "online", or "target" for the network that follows it (momentum encoder, teacher).
    Raises:
        DamagedError: the file was changed or cut short.
        InputError: it holds no whole backbone; the line says what it holds, and which format came nearest.
    """
    raise NotImplementedError
