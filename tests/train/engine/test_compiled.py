"""What torch.compile gets to see of a run: the steps alone, in their precision, each network once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

from tests.train.conftest import SMALL_RUN
from train.config.pretrain import PretrainSettings
from train.distributed.world import World
from train.engine.job import check_job
from train.engine.loop import pretrain
from train.run.log import read_log
from train.run.stopping import StopRequest

pytestmark = pytest.mark.usefixtures("shallow")
RUN = {"panels_every_epochs": 1, "panel_images": 2, "panel_image_size": 96, "probe_every_epochs": 1, "probe_images": 16}


class Graph(NamedTuple):
    """One that was compiled: shape of the images, whether autocast was on, and whether gradients were."""

    images: tuple[int, ...]
    autocast: bool
    gradients: bool


def run_of(shards: Path, folder: Path, **run: Any) -> list[float]:
    settings = PretrainSettings.model_validate({**SMALL_RUN, "epochs": 2, "run": {"log_every_steps": 1, **RUN, **run}})
    job = check_job(settings, shards=str(shards), run=folder, num_ranks=1, node_ranks=range(1))
    assert pretrain(job, World(0, 1, torch.device("cpu")), StopRequest()) == 0
    return [line["loss"] for line in read_log(folder)]


@pytest.mark.long
def test_steps_alone_are_compiled_in_their_precision_and_without_breaks(shards: Path, tmp_path: Path) -> None:
    graphs: list[Graph] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        shapes = [tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 4]
        images = next(shape for shape in shapes if shape[:2] == (16, 3))
        graphs.append(Graph(images, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return module.forward

    torch._dynamo.reset()
    counters.clear()
    with patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        compiled = run_of(shards, tmp_path / "compiled", compile=True, precision="bf16")
    assert not counters["graph_break"]
    # C4 of whole images and the target's C5, without gradients; the online network's C5
    assert sorted(graph.gradients for graph in graphs) == [False, False, True]
    assert {(graph.images[2:], graph.autocast) for graph in graphs} == {((64, 64), True)}
    assert compiled == pytest.approx(run_of(shards, tmp_path / "plain", precision="bf16"), rel=1e-3)
