"""The representation loss (Eqs. 4 and 5)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def byol_loss(prediction: Float[Tensor, "m d"], projection: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """Per mask, 2 - 2·cos(q_θ(z_θ), z_ξ), in [0, 4] (Eq. 4)."""
    return 2 - 2 * F.cosine_similarity(prediction.float(), projection.float(), dim=1)


def symmetric_loss_sum(
    predictions: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]],
    projections: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]],
) -> Float[Tensor, ""]:
    """Both directions of Eq. 5, summed over masks: view 1 predicts the target's view 2, and the reverse.

    Dividing by the number of masks of the global batch gives L_repr.
    """
    return byol_loss(predictions[0], projections[1]).sum() + byol_loss(predictions[1], projections[0]).sum()
