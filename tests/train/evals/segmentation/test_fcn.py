"""The network of A.2: sizes, parameters, dilation, loss."""

import numpy as np
import pytest
import torch

from train.config.evals import EvalVocSettings
from train.evals.segmentation.fcn import FCN, FCNHead, SegmentationLogits, segmentation_loss
from train.models.backbone import build_backbone

SMALL = EvalVocSettings(head_channels=8, auxiliary_channels=8)


def fcn(settings: EvalVocSettings = SMALL, *, seed: int = 0) -> FCN:
    return FCN(build_backbone("resnet18", seed=0, dilate_c5=True), num_classes=5, settings=settings, seed=seed)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 47), (33, 100), (97, 16)])
def test_scores_have_the_size_of_the_input(height: int, width: int) -> None:
    model = fcn()
    scores = model(torch.randn(2, 3, height, width))
    assert scores.main.shape == scores.auxiliary.shape == (2, 5, height, width)
    assert model.eval()(torch.randn(1, 3, height, width)).auxiliary is None


def test_padding_to_whole_cells_changes_nothing_but_the_cut() -> None:
    model = fcn().eval()
    image = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 48, 64)
    padded[..., :40, :50] = image
    torch.testing.assert_close(model(image).main, model(padded).main[..., :40, :50], rtol=1e-4, atol=1e-5)


def test_c5_is_dilated_and_keeps_the_size_of_c4() -> None:
    plain, dilated = (
        build_backbone("resnet18", seed=0).eval(),
        build_backbone("resnet18", seed=0, dilate_c5=True).eval(),
    )
    image = torch.randn(1, 3, 96, 96)
    assert dilated(image).c5.shape[-2:] == dilated(image).c4.shape[-2:] == (6, 6)
    convs = [m for m in dilated.layer4.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert {(m.dilation, m.padding, m.stride) for m in convs} == {((2, 2), (2, 2), (1, 1))}
    # With the first of them undilated again (A.2 dilates all), every second cell is that of the strided stage.
    convs[0].dilation = convs[0].padding = (1, 1)
    torch.testing.assert_close(dilated(image).c5[..., ::2, ::2], plain(image).c5, rtol=1e-4, atol=1e-4)


def test_parameters_are_those_of_mmsegmentations_fcn_r50_at_dilation_6() -> None:
    """fcn_r50-d8 with channels 256: two convolutions, the concatenated one over 2048 + 256, 1×1; C4: one of 1024."""
    settings = EvalVocSettings()
    with torch.device("meta"):
        backbone = build_backbone("resnet50", seed=0, dilate_c5=True)
        model = FCN(backbone, num_classes=21, settings=settings, seed=0)
    head = [tuple(p.shape) for p in model.head.parameters() if p.ndim == 4]
    assert head == [(256, 2048, 3, 3), (256, 256, 3, 3), (256, 2304, 3, 3), (21, 256, 1, 1)]
    auxiliary = [tuple(p.shape) for p in model.auxiliary_head.parameters() if p.ndim == 4]
    assert auxiliary == [(256, 1024, 3, 3), (21, 256, 1, 1)]
    convs = [m for m in model.head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.dilation for c in convs] == [(6, 6), (6, 6), (1, 1), (1, 1)]
    assert [c.bias is None for c in convs] == [True, True, True, False]
    assert FCN(backbone, num_classes=2, settings=EvalVocSettings(auxiliary_weight=0), seed=0).auxiliary_head is None


def test_dilation_reaches_six_cells() -> None:
    head = FCNHead(1, channels=1, num_convs=1, dilation=6, concat_input=False, dropout=0.0, num_classes=1).eval()
    torch.nn.init.ones_(head.convs[0][0].weight)
    features = torch.zeros(1, 1, 15, 15)
    features[0, 0, 7, 7] = 1
    reached = {tuple(cell) for cell in (head.convs(features)[0, 0] > 0).nonzero().tolist()}
    assert reached == {(y, x) for y in (1, 7, 13) for x in (1, 7, 13)}


def test_head_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = fcn(seed=4), fcn(seed=4), fcn(seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.head.classifier.weight, same.head.classifier.weight)
    assert not torch.equal(one.head.classifier.weight, other.head.classifier.weight)


@pytest.mark.parametrize("loss_over", ["all_pixels", "labelled_pixels"])
def test_loss_against_numpy(loss_over: str) -> None:
    rng = np.random.default_rng(0)
    main, auxiliary = rng.normal(size=(2, 2, 3, 4, 4))
    labels = rng.choice([0, 1, 2, 255], (2, 4, 4))

    def entropy(scores: np.ndarray) -> float:
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        pixels = [-logs[b, labels[b, y, x], y, x] for b, y, x in zip(*np.nonzero(labels != 255), strict=True)]
        return sum(pixels) / (labels.size if loss_over == "all_pixels" else len(pixels))

    settings = EvalVocSettings(auxiliary_weight=0.4, loss_over=loss_over)
    logits = SegmentationLogits(torch.from_numpy(main), torch.from_numpy(auxiliary))
    loss = segmentation_loss(logits, torch.from_numpy(labels), settings=settings)
    assert float(loss) == pytest.approx(entropy(main) + 0.4 * entropy(auxiliary), rel=1e-9)


def test_a_batch_of_void_gives_zero_not_nan() -> None:
    logits = SegmentationLogits(torch.randn(1, 2, 3, 3), None)
    settings = EvalVocSettings(loss_over="labelled_pixels")
    assert float(segmentation_loss(logits, torch.full((1, 3, 3), 255), settings=settings)) == 0
