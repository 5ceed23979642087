"""The loop: order, rates, that it learns, that it repeats."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline.foundation.errors import InputError
from train.config.evals import EvalVocSettings
from train.evals.segmentation import fine_tune as fine_tune_module
from train.evals.segmentation.augment import LabelledImage
from train.evals.segmentation.fcn import FCN
from train.evals.segmentation.fine_tune import (
    LossPoint,
    Normalisation,
    Scored,
    TrainingExamples,
    evaluate,
    fine_tune,
    learning_rate,
    sample_at,
)
from train.evals.segmentation.metrics import class_iou, mean_iou
from train.models.backbone import build_backbone

NORMALISATION = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
COLOURS = np.array([[110, 110, 110], [220, 40, 40], [40, 60, 220]], dtype=np.uint8)
OPTIONS = """
    {iterations: 40, batch_size: 8, lr: 0.05, lr_drops: [0.9], crop_size: 80, scale_range: [0.8, 1.25],
    head_channels: 64, head_dilation: 1, auxiliary_channels: 64, dropout: 0, max_class_share: 1,
    photometric_distortion: false, num_workers: 0, log_every_iterations: 10}
"""
TINY = EvalVocSettings.model_validate(yaml.safe_load(OPTIONS))


class Squares:
    """Red and blue squares on grey, of uneven image sizes."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.samples = [self._sample(np.random.default_rng((seed, i))) for i in range(count)]

    def _sample(self, rng: np.random.Generator) -> LabelledImage:
        height, width = rng.integers(96, 112, 2)
        labels = np.zeros((height, width), dtype=np.uint8)
        for label in (1, 2):
            top, left, size = rng.integers(0, 48), rng.integers(0, 48), rng.integers(40, 56)
            labels[top : top + size, left : left + size] = label
        noise = rng.integers(0, 20, (height, width, 1), dtype=np.uint8)
        return LabelledImage(COLOURS[labels] + noise, labels)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.samples[index]


def tuned(settings: EvalVocSettings, *, seed: int = 0) -> tuple[FCN, list[LossPoint]]:
    model = FCN(build_backbone("resnet18", seed=seed, dilate_c5=True), num_classes=3, settings=settings, seed=seed)
    examples = TrainingExamples(data=Squares(12, seed=0), settings=settings, normalisation=NORMALISATION, seed=seed)
    return model, fine_tune(model, examples, device=torch.device("cpu"))


def scored(model: FCN, settings: EvalVocSettings, data: Squares, keep: tuple[int, ...] = ()) -> Scored:
    return evaluate(
        model,
        data,
        settings=settings,
        normalisation=NORMALISATION,
        num_classes=3,
        device=torch.device("cpu"),
        keep=keep,
    )


def test_rate_drops_at_seven_and_nine_tenths() -> None:
    settings = EvalVocSettings()
    table = {0: 1e-2, 20_999: 1e-2, 21_000: 1e-3, 26_999: 1e-3, 27_000: 1e-4, 29_999: 1e-4}
    for iteration, rate in table.items():
        assert learning_rate(iteration, settings=settings) == pytest.approx(rate)


def test_every_epoch_is_a_permutation_and_seeds_differ() -> None:
    order = [sample_at(p, num_samples=7, seed=3) for p in range(28)]
    epochs = [order[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order != [sample_at(p, num_samples=7, seed=4) for p in range(28)]


@pytest.mark.long
def test_it_learns_and_short_side_is_scored_at_the_original_size() -> None:
    model, curve = tuned(TINY)
    assert [point.iteration for point in curve] == [10, 20, 30, 40]
    assert curve[-1].loss < 0.5 * curve[0].loss
    held_out = Squares(6, seed=1)
    found = scored(model, TINY, held_out, keep=(2,))
    assert found.confusion.sum() == sum(sample.labels.size for sample in held_out.samples)
    assert found.predictions[2].shape == held_out[2].labels.shape
    assert mean_iou(class_iou(found.confusion)) > 0.5  # all background: at most a third
    resized = scored(model, TINY.model_copy(update={"short_side": 90}), held_out)
    assert resized.confusion.sum() == found.confusion.sum()
    assert mean_iou(class_iou(resized.confusion)) > 0.5


@pytest.mark.processes
def test_equal_runs_are_equal_bit_for_bit_with_any_number_of_workers() -> None:
    settings = TINY.model_copy(update={"iterations": 3, "dropout": 0.1, "photometric_distortion": True})
    state = torch.random.get_rng_state()
    one, curve = tuned(settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    same, same_curve = tuned(settings.model_copy(update={"num_workers": 2}))
    assert curve == same_curve
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    _, other_curve = tuned(settings, seed=1)
    assert curve != other_curve


def test_without_a_gradient_weights_decay_as_sgd_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """v ← μv + λw; w ← w - lr·v, for every parameter, at the rate of each iteration."""
    monkeypatch.setattr(fine_tune_module, "segmentation_loss", lambda out, *_, **__: 0 * sum(o.sum() for o in out))
    options = {"iterations": 3, "batch_size": 2, "lr": 0.5, "momentum": 0.5, "weight_decay": 0.1, "lr_drops": (0.6,)}
    settings = TINY.model_copy(update=options)
    before = FCN(build_backbone("resnet18", seed=0, dilate_c5=True), num_classes=3, settings=settings, seed=0)
    after, _ = tuned(settings)
    factor, speed = 1.0, 0.0
    for lr in (0.5, 0.5, 0.05):
        speed = 0.5 * speed + 0.1 * factor
        factor -= lr * speed
    tuned_weights = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        torch.testing.assert_close(tuned_weights[name], factor * weight, msg=name)


def test_void_is_never_counted() -> None:
    data = Squares(2, seed=0)
    for sample in data.samples:
        sample.labels[:10] = 255
    model = FCN(build_backbone("resnet18", seed=0, dilate_c5=True), num_classes=3, settings=TINY, seed=0)
    found = scored(model, TINY, data)
    assert found.confusion.sum() == sum((sample.labels != 255).sum() for sample in data.samples)


def test_a_loss_that_is_not_finite_is_named_by_its_iteration_where_it_is_logged() -> None:
    settings = TINY.model_copy(update={"lr": 1e30})
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at iteration [2-9]; lower"):
        tuned(settings)
    losses = [torch.tensor(value) for value in (1.0, torch.inf, torch.nan)]
    with pytest.raises(InputError, match=r"x: the loss is inf at iteration 19; lower"):
        fine_tune_module._finite(losses, 20, "x")


def test_losses_are_read_after_the_step_and_only_where_they_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    step, finite = fine_tune_module._step, fine_tune_module._finite

    def noted(losses: list[torch.Tensor], *rest: object) -> list[float]:
        done.append(len(losses))
        return finite(losses, *rest)

    monkeypatch.setattr(fine_tune_module, "_finite", noted)
    monkeypatch.setattr(fine_tune_module, "_step", lambda *given, **named: (step(*given, **named), done.append("step")))
    settings = TINY.model_copy(update={"iterations": 5, "log_every_iterations": 2, "batch_size": 2})
    _, curve = tuned(settings)
    assert done == ["step", "step", 2, "step", "step", 2, "step", 1]
    assert [point.iteration for point in curve] == [2, 4, 5]


def test_a_sample_comes_from_its_position_alone() -> None:
    data = Squares(5, seed=0)
    examples = TrainingExamples(data=data, settings=TINY, normalisation=NORMALISATION, seed=2)
    later = [examples[p] for p in (9, 4, 9)]
    assert torch.equal(later[0].image, later[2].image)
    assert not torch.equal(later[0].image, later[1].image)
    assert len(examples) == 40 * 8
    assert Image.fromarray(data[0].image).size == data[0].labels.shape[::-1]
