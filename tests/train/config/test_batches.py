"""Local batch × ranks × accumulation: what comes out, and what is said or scaled where it is another batch."""

import math
from typing import Any

import pytest

from pipeline.foundation.errors import InputError
from train.config.batches import plan_batches, run_target_ema
from train.config.pretrain import PretrainSettings

N = 1_281_167


def settings_of(**run: Any) -> PretrainSettings:
    return PretrainSettings.model_validate({"run": run})


@pytest.mark.parametrize(("ranks", "accumulation", "local"), [(128, 1, 32), (64, 2, 32), (8, 4, 128), (8, 1, 512)])
def test_the_papers_batch_on_other_numbers_of_ranks(ranks: int, accumulation: int, local: int) -> None:
    for given in (None, local):
        settings = settings_of(accumulation=accumulation, local_batch_size=given).fitted_to(ranks)
        plan = plan_batches(settings, num_samples=N, num_ranks=ranks)
        assert (plan.local_batch_size, plan.global_batch_size, plan.total_steps) == (local, 4096, 93_600)


def test_another_batch_stops_and_says_how_to_make_it() -> None:
    settings = settings_of(local_batch_size=64).fitted_to(8)
    with pytest.raises(InputError) as caught:
        plan_batches(settings, num_samples=N, num_ranks=8)
    assert str(caught.value) == (
        "8 processes × 64 images × 1 passes make a global batch of 512, but the recipe's is 4096; set "
        "pretrain.run.accumulation=8, or pretrain.global_batch_size=512, or pretrain.run.on_other_batch=scale, which "
        "changes learning rate and target_ema with it by rule"
    )
    with pytest.raises(InputError, match=r"4096; set pretrain\.global_batch_size=672, or"):  # no accumulation fits
        plan_batches(settings_of(local_batch_size=96).fitted_to(7), num_samples=N, num_ranks=7)


def test_scaling_changes_rate_and_target_ema_by_rule() -> None:
    recipe = settings_of()
    settings = settings_of(local_batch_size=64, on_other_batch="scale").fitted_to(8)
    plan = plan_batches(settings, num_samples=N, num_ranks=8)
    assert (settings.global_batch_size, plan.local_batch_size, plan.steps_per_epoch) == (512, 64, N // 512)
    assert settings.peak_lr == pytest.approx(recipe.peak_lr / 8) == pytest.approx(0.6)
    assert run_target_ema(settings, 0, plan) == pytest.approx(0.99 ** (512 / 4096))
    # over as many images, the target forgets as much
    assert math.log(run_target_ema(settings, 0, plan)) * 4096 / 512 == pytest.approx(math.log(0.99))
    assert settings.content() != recipe.content()


def test_a_batch_that_comes_out_is_not_scaled_and_a_recipes_own_reference_stays() -> None:
    settings = settings_of(local_batch_size=512, on_other_batch="scale")
    assert settings.fitted_to(8) is settings
    recipe = {"global_batch_size": 1024, "optim": {"target_ema_batch_size": 4096}}
    small = PretrainSettings.model_validate({**recipe, "run": {"local_batch_size": 32, "on_other_batch": "scale"}})
    fitted = small.fitted_to(8)
    plan = plan_batches(fitted, num_samples=N, num_ranks=8)
    assert run_target_ema(fitted, 0, plan) == pytest.approx(0.99 ** (256 / 4096))


def test_how_a_run_is_spread_is_no_content() -> None:
    assert settings_of(accumulation=2, local_batch_size=32, compile=True).content() == settings_of().content()


def test_scaling_needs_a_local_batch_and_whole_groups() -> None:
    with pytest.raises(ValueError, match="on_other_batch: scale needs local_batch_size"):
        settings_of(on_other_batch="scale")
    with pytest.raises(InputError, match=r"3 processes: .*global_batch_size 60 is no multiple"):
        settings_of(local_batch_size=20, on_other_batch="scale").fitted_to(3)
    odd = PretrainSettings.model_validate({"run": {"local_batch_size": 16, "on_other_batch": "scale"}}).fitted_to(2)
    with pytest.raises(
        InputError, match="2 processes cannot share a global batch of 32 in whole clustering groups of 32"
    ):
        plan_batches(odd, num_samples=N, num_ranks=2)
    with pytest.raises(InputError, match="128 processes × 3 passes cannot share a global batch of 4096"):
        plan_batches(settings_of(accumulation=3), num_samples=N, num_ranks=128)
