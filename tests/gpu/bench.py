"""The part `bench`: how long operators and steps take, against BYOL's step, and that against its bare passes."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torchvision.models import get_model

from tests.gpu.device import CUDA, DEVICE, cudnn_benchmark, matmul_in_tf32, timed
from tests.gpu.places import DRY
from tests.gpu.telling import check, tell
from tests.gpu.trainer import BYOL, Sections, Trainer, estimated_bytes, fits, settings_of
from train.data.augment import AugmentParams, augment_views, draw_params
from train.engine.step import _gradient_norm
from train.r2o.ema import update_target
from train.r2o.kmeans import kmeans, seeding_uniforms

H100_DENSE, H100_REAL = 989e12, 800e12  # bf16 FLOP/s: of the data sheet, of a large product
BATCHES = (16,) if DRY else (32, 128, 256)
STEPS: tuple[tuple[str, int, Sections], ...] = (("byol", 1, BYOL), ("r2o_k4", 4, {}), ("r2o_k128", 128, {}))


def main() -> None:
    with check("K-means, ms") as c:
        c.update(clustering(), device=DEVICE.type)
    with check("augmentation, ms") as c:
        c.update(augmentation(), device=DEVICE.type)
    for batch in BATCHES:
        if not fits(settings_of(batch)):
            tell(f"steps of {batch}", why="they should not fit into this device's memory, by the estimate")
            continue
        with check(f"a bare supervised ResNet-50 step of {batch}") as c:
            c.update(bare_step(batch), device=DEVICE.type)
        with check(f"BYOL's bare passes of {batch}") as c:
            c.update(ms=round(bare_passes(batch) * 1e3, 2), batch=batch, device=DEVICE.type)
        for name, k, sections in STEPS:
            with check(f"step of {batch}, {name}") as c:
                c.update(kind=name, batch=batch, device=DEVICE.type)
                step(batch, k, sections, c, with_parts=name == "r2o_k128")


def clustering() -> dict[str, float]:
    found = {}

    def ms(groups: int, k: int, iterations: int = 10) -> float:
        rows = torch.nn.functional.normalize(torch.randn(groups, 100 if DRY else 3200, 1024, device=DEVICE), dim=2)
        valid = torch.ones(rows.shape[:2], dtype=torch.bool, device=DEVICE)
        uniforms = seeding_uniforms(k, seed=0, step=0, first_group=0, num_groups=groups).to(DEVICE)
        return round(timed(lambda: kmeans(rows, valid, uniforms=uniforms, iterations=iterations)) * 1e3, 3)

    for groups in (1, 4, 8):
        for k in (4, 128):
            found[f"g{groups}_k{k}"] = ms(groups, k)
            found[f"seeding_g{groups}_k{k}"] = ms(groups, k, iterations=0)
    with matmul_in_tf32():
        found["tf32_g8_k128"] = ms(8, 128)
    return found


def augmentation() -> dict[str, float]:
    rng, settings = np.random.default_rng(0), settings_of(8 if DRY else 32)
    size, augment = settings.data.view_size, settings.augment
    found = {}
    for pairs in BATCHES:
        views = torch.randint(0, 256, (2 * pairs, 3, size, size), dtype=torch.uint8, device=DEVICE)
        drawn = [draw_params(rng, augment) for _ in range(pairs)]
        params = AugmentParams(*(np.concatenate(values) for values in zip(*drawn, strict=True)))
        seconds = timed(partial(augment_views, views, params, augment, dtype=torch.bfloat16))
        found[f"pairs{pairs}"] = round(seconds * 1e3, 2)
    return found


def bare_step(batch: int) -> dict[str, float]:
    """Images a second of a network alone, forward and backward."""
    layout, size = torch.channels_last, 64 if DRY else 224
    net = get_model("resnet18" if DRY else "resnet50").to(DEVICE, memory_format=layout).train()
    images = torch.randn(batch, 3, size, size, device=DEVICE).contiguous(memory_format=layout)

    def bare() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = net(images).float().square().mean()
        loss.backward()

    found = {"images_s": round(batch / timed(bare, warm=4), 1)}
    with cudnn_benchmark():
        found["images_s_cudnn_benchmark"] = round(batch / timed(bare, warm=4), 1)
    return found


def bare_passes(batch: int) -> float:
    """Seconds of both views through both networks, and back through one, with torchvision's model and nothing else."""
    layout, size = torch.channels_last, 64 if DRY else 224
    online, target = (
        get_model("resnet18" if DRY else "resnet50").to(DEVICE, memory_format=layout).train() for _ in range(2)
    )
    online.fc = target.fc = torch.nn.Identity()
    views = [torch.randn(batch, 3, size, size, device=DEVICE).contiguous(memory_format=layout) for _ in range(2)]

    def passes() -> None:
        online.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            ours = [online(view) for view in views]
            with torch.no_grad():
                theirs = [target(view) for view in reversed(views)]
            loss = sum((a.float() - b.float()).square().mean() for a, b in zip(ours, theirs, strict=True))
        loss.backward()

    return timed(passes, warm=4)


def step(batch: int, k: int, sections: Sections, found: dict[str, object], *, with_parts: bool) -> None:
    """The figures of a step go into `found`."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(settings_of(batch, k, **sections))
    seconds = timed(trainer.step, warm=4, times=8)
    assert trainer.figures is not None
    rate = trainer.image_flops() * batch / seconds
    found.update(
        ms=round(seconds * 1e3, 2),
        images_s=round(batch / seconds, 1),
        masks=round(trainer.figures.masks_per_image, 2),
        tflops=round(rate / 1e12, 2),
        of_800=round(rate / H100_REAL, 4),
        of_989=round(rate / H100_DENSE, 4),
    )
    if CUDA:
        found["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["estimated_gib"] = round(estimated_bytes(trainer.settings) / 2**30, 2)
    if with_parts:
        found.update(parts_of(trainer, k))


def parts_of(trainer: Trainer, k: int) -> dict[str, float]:
    """Milliseconds of a step with cuDNN's benchmark, and of what it is made of."""
    training, model, batch = trainer.training, trainer.model, trainer.local_batch.batch
    groups = len(batch.images) // trainer.settings.refine.clustering_group_size
    uniforms = seeding_uniforms(k, seed=0, step=0, first_group=0, num_groups=groups).to(DEVICE)

    def refine() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            model.refine(batch.images, batch.superpixels, uniforms)

    def c4() -> None:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            model.target["backbone"].forward_c4(batch.images)

    with cudnn_benchmark():
        found = {"cudnn_benchmark_ms": round(timed(trainer.step, warm=4, times=5) * 1e3, 2)}
    found["lars_ms"] = round(timed(training.optimizer.step) * 1e3, 3)
    ema = timed(lambda: update_target(model.target, model.online, target_ema=0.99))
    found["ema_ms"] = round(ema * 1e3, 3)
    norm = timed(lambda: _gradient_norm(training, torch.ones((), device=DEVICE)))
    found["norm_ms"] = round(norm * 1e3, 3)
    found["refine_ms"], found["of_which_c4_ms"] = round(timed(refine) * 1e3, 2), round(timed(c4) * 1e3, 2)
    return found


if __name__ == "__main__":
    main()
