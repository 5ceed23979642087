import pytest
import torch
from jaxtyping import TypeCheckError

from train.r2o.loss import symmetric_loss_sum


def test_shapes_of_the_method_are_checked_in_tests() -> None:
    """conftest's import hook works: rows of unequal length are refused by the annotation."""
    three, four = torch.ones(2, 3), torch.ones(2, 4)
    assert float(symmetric_loss_sum((three, three), (three, three))) == pytest.approx(0, abs=1e-6)
    with pytest.raises(TypeCheckError):
        symmetric_loss_sum((three, three), (three, four))
