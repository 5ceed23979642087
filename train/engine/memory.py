"""What to turn where a run lacks memory."""

from __future__ import annotations

from contextlib import AbstractContextManager

from train.config.batches import BatchPlan, decoding_workers
from train.config.pretrain import PretrainSettings
from train.distributed.world import World
from train.out_of_memory import Lack, memory_errors_named


def run_memory_named(
    doing: str, settings: PretrainSettings, plan: BatchPlan, world: World
) -> AbstractContextManager[None]:
    """`memory_errors_named` of a run."""
    return memory_errors_named(
        doing, lambda lack: what_to_turn(settings, plan, lack, device=world.device.type), world.device
    )


def what_to_turn(settings: PretrainSettings, plan: BatchPlan, lack: Lack, *, device: str) -> str:
    """The settings that help, those that help most first: with them the run goes on, or another one begins.

    Args:
        device: `cuda` or `cpu`; a CPU's steps and its decoding workers share the host's memory.
    """
    readers = _fewer_batches(settings)
    smaller = _smaller_passes(settings, plan)
    workers_first = lack.memory == "host" and (lack.of_worker or device == "cuda")
    same_run = [smaller] if lack.memory == "GPU" else [readers, smaller] if workers_first else [smaller, readers]
    kept = ", or ".join(filter(None, same_run))
    ways = [f"go on with {kept}"] if kept else []
    return "; or ".join([*ways, f"begin another RUN with {', or '.join(_of_another_run(settings, plan))}"])


def _smaller_passes(settings: PretrainSettings, plan: BatchPlan) -> str:
    """The next smaller local batch that keeps the global one and whole clustering groups; empty where there is none."""
    local, group = plan.local_batch_size, settings.refine.clustering_group_size
    groups = local // group
    parts = next((n for n in range(2, groups + 1) if groups % n == 0), None)
    if parts is None:
        return ""
    return (
        f"{_passes(settings, plan, parts)} (of {local // parts} images in place of {local}; batch norm sees one pass)"
    )


def _passes(settings: PretrainSettings, plan: BatchPlan, parts: int) -> str:
    """The settings of passes that are smaller by a whole factor."""
    local = f"pretrain.run.local_batch_size={plan.local_batch_size // parts} "
    return f"{local if settings.run.local_batch_size else ''}pretrain.run.accumulation={plan.accumulation * parts}"


def _fewer_batches(settings: PretrainSettings) -> str:
    data = settings.data
    workers = decoding_workers(data.num_workers)
    if workers == 0:
        return ""
    fewer = f"pretrain.data.num_workers={workers // 2}"
    return f"{fewer} pretrain.data.prefetch_batches=1" if data.prefetch_batches > 1 else fewer


def _of_another_run(settings: PretrainSettings, plan: BatchPlan) -> list[str]:
    """What helps and changes the numbers that come out."""
    model, group = settings.model.backbone, settings.refine.clustering_group_size
    sizes = "pretrain.data.image_size and view_size" if model.startswith("vit") else "pretrain.data.view_size"
    ways = ["pretrain.run.precision=bf16"] if settings.run.precision in ("fp32", "tf32") else []
    ways.append(f"{sizes} below {settings.data.view_size}")
    if plan.local_batch_size == group and group % 2 == 0:
        ways.append(
            f"pretrain.refine.clustering_group_size={group // 2} {_passes(settings, plan, 2)}, as the local batch of "
            f"{group} is one clustering group"
        )
    return ways
