"""Eqs. 4 and 5, and DetCon's loss, against NumPy."""

import numpy as np
import torch

from train.r2o.loss import Everywhere, byol_loss, contrastive_loss_sum, sample_masks


def numpy_byol(q: np.ndarray, z: np.ndarray) -> np.ndarray:
    unit_q, unit_z = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, z))
    return ((unit_q - unit_z) ** 2).sum(1)  # BYOL's normalised mean squared error, which 2 - 2cos equals


def test_equation_4() -> None:
    q, z = torch.randn(20, 7), torch.randn(20, 7)
    np.testing.assert_allclose(byol_loss(q, z).numpy(), numpy_byol(q.numpy(), z.numpy()), atol=1e-5)


def test_limits() -> None:
    q = torch.randn(4, 3)
    assert torch.allclose(byol_loss(q, 5 * q), torch.zeros(4), atol=1e-6)
    assert torch.allclose(byol_loss(q, -q), torch.full((4,), 4.0), atol=1e-6)


def numpy_detcon(preds, targets, ids, temperature, *, first=0, everyone=None):
    """DetCon's loss sample by sample, with loops: the mean over images and samples, summed over directions."""
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
    preds, targets = [unit(p) for p in preds], [unit(t) for t in (everyone or targets)]
    images, samples = ids[0].shape
    losses = []
    for view in (0, 1):
        for b in range(images):
            for n in range(samples):
                me, positives, logits = ids[view][b, n], [], []
                for v in (1 - view, view):
                    for u in range(len(targets[v])):
                        for m in range(samples):
                            own = u == b + first
                            same = own and ids[v][b, m] == me
                            if v == view and same:
                                continue  # neither positive nor negative
                            logits.append(preds[view][b, n] @ targets[v][u, m] / temperature)
                            positives.append(v != view and same)
                logits, positives = np.array(logits), np.array(positives)
                if positives.any():
                    log_share = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
                    duplicates = (ids[view][b] == me).sum()
                    losses.append(-log_share[positives].mean() / duplicates)
    return sum(losses)


def detcon_case(seed: int = 0, images: int = 4, samples: int = 5):
    rng = np.random.default_rng(seed)
    preds, targets = ([rng.normal(size=(images, samples, 7)) for _ in range(2)] for _ in range(2))
    ids = [rng.integers(0, 4, (images, samples)) for _ in range(2)]
    ids[1][0] = 9  # an image without a mask in both views
    return preds, targets, ids


def test_detcon_s_loss() -> None:
    preds, targets, ids = detcon_case()
    ours = contrastive_loss_sum(*(tuple(map(torch.from_numpy, x)) for x in (preds, targets, ids)), temperature=0.1)
    np.testing.assert_allclose(ours.item(), numpy_detcon(preds, targets, ids, 0.1), rtol=1e-8)


def test_negatives_of_other_ranks_count() -> None:
    """Half of the images here, all targets gathered: the halves sum to the loss of one world."""
    preds, targets, ids = detcon_case()
    total = 0.0
    for first in (0, 2):
        mine = [[v[first : first + 2] for v in x] for x in (preds, targets, ids)]
        gathered = iter(Everywhere(torch.nn.functional.normalize(torch.from_numpy(t), dim=2), first) for t in targets)
        total += contrastive_loss_sum(
            *(tuple(map(torch.from_numpy, x)) for x in mine), temperature=0.1, gather=lambda _, g=gathered: next(g)
        ).item()
    np.testing.assert_allclose(total, numpy_detcon(preds, targets, ids, 0.1), rtol=1e-8)


def test_masks_are_sampled_evenly_among_those_present() -> None:
    present = torch.tensor([[False, True, False, True, True], [True] * 5, [False] * 5])
    drawn = sample_masks(present, torch.rand(3, 3000, generator=torch.Generator().manual_seed(0)))
    shares = [(drawn[0] == m).float().mean().item() for m in range(5)]
    np.testing.assert_allclose(shares, [0, 1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)
    assert set(drawn[1].tolist()) == set(range(5))
    assert set(drawn[2].tolist()) < set(range(5)), "an image without masks still has ids that can be gathered"
