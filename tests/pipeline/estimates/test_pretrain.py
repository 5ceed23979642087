import re

from pipeline.estimates.pretrain import describe
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings


def test_the_papers_run() -> None:
    settings = PretrainSettings()
    text = describe(settings, plan_batches(settings, num_samples=1_281_167, num_ranks=128))
    rows = {int(r[0]): r[1:] for line in text.splitlines() if re.match(r"\s+\d", line) and (r := line.split())}
    assert {epoch: int(rows[epoch][3]) for epoch in rows} == {0: 128, 3: 128, 40: 128, 100: 119, 200: 74, 300: 4}
    assert [float(rows[e][1]) for e in (0, 3, 300)] == [0.0, 4.8, 0.0]
    assert [float(rows[e][2]) for e in (0, 300)] == [0.99, 1.0]
    assert "peak 4.8 = 0.3 × 4096 / 256, after 936 steps (3 epochs)" in text
    assert "312 an epoch × 300 epochs = 93,600 in all" in text
    assert "4,096 images = 128 processes × 32" in text
    assert "3,215 samples of each epoch" in text
    assert 312 * 4096 + 3215 == 1_281_167


def test_rows_of_a_short_run_lie_in_it() -> None:
    settings = PretrainSettings.model_validate(
        {"epochs": 2, "global_batch_size": 64, "curriculum": {"hold_epochs": 0}, "optim": {"warmup_epochs": 5}}
    )
    text = describe(settings, plan_batches(settings, num_samples=200, num_ranks=2))
    assert [line.split()[:2] for line in text.splitlines()[-3:]] == [["0", "0"], ["1", "3"], ["2", "6"]]
