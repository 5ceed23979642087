"""`make bench-step`: K-means against a loop and scikit-learn, and an R2O step against a BYOL step and the floor.

python -m tests.benchmarks.step [--images FOLDER] [--rounds 5] [--batch 32] [--backbone resnet50] [--only PART]

On a CUDA device where there is one, else on the CPU (bf16 where `--precision` says so). Real photographs where there
are some (--images, by default ../shared/data/imagenet1k_sample beside the checkout), else generated ones. What is
compared takes turns; best of some rounds. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

from pipeline.artifacts.manifest import Manifest
from tests.benchmarks.shards import SAMPLE, generated_images
from tests.train.conftest import ShardSettings, write_shards
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch, to_device
from train.data.loader import host_batches
from train.data.shards.open import open_shards
from train.distributed.world import World
from train.engine.build import build_training, compile_backbones, unwrapped
from train.engine.step import train_step
from train.models.backbone import build_backbone
from train.r2o.kmeans import kmeans, seeding_uniforms
from train.r2o.refine import pool_regions

CONVERGED = 100  # Lloyd iterations
CLOSE = 1.001  # of the inertia at which the loop converges
SEEDS = 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Everything, one line a figure."""
    parser = argparse.ArgumentParser(description="Speed of refinement and of a step, as ratios.")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="images of a step, a multiple of 32")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--only", choices=("kmeans", "step", "heads", "profile", "sweep"))
    parser.add_argument("--sweep", type=int, nargs="*", help="local batches; by default 32 64 128 256 on a GPU")
    args = parser.parse_args(argv)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; best of {args.rounds}")
    sweep = ([32, 64, 128, 256] if DEVICE.type == "cuda" else []) if args.sweep is None else args.sweep
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["R2O_CACHE"] = f"{scratch}/marks"
        root = args.images or (SAMPLE if SAMPLE.is_dir() else generated_images(Path(scratch) / "images"))
        shards = Path(scratch) / "shards"
        write_shards(root, shards, ShardSettings(images_per_shard=64))
        parts = {
            "kmeans": lambda: clustering(shards, args.rounds),
            "step": lambda: steps(shards, args),
            "heads": lambda: heads(shards, args),
            "profile": lambda: costs(shards, args),
            "sweep": lambda: [sizes(shards, args, batch, compiled) for batch in sweep for compiled in (False, True)],
        }
        for name, part in parts.items():
            if args.only in (None, name):
                part()
    return 0


def settings_of(batch: int = 32, num_clusters: int = 4, **sections: dict[str, object]) -> PretrainSettings:
    """The paper's recipe at one batch size and one K."""
    fixed = {"schedule": "constant", "initial_num_clusters": num_clusters, "final_num_clusters": num_clusters}
    return PretrainSettings.model_validate(
        {
            "global_batch_size": batch,
            "data": {"num_workers": 0},
            "curriculum": {**fixed, "hold_epochs": 0},
            **sections,
        }
    )


def make_local_batch(shards: Path, settings: PretrainSettings) -> LocalBatch:
    """The run's first batch, on the device."""
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    host = next(iter(host_batches(reader, settings, range(1), rank=0, num_ranks=1)))
    return LocalBatch(host, to_device(host, settings, DEVICE))


def repeated(local_batch: LocalBatch, times: int) -> LocalBatch:
    """The same images several times over, for batches that a sample of a data set is too small for."""
    tensors = {
        name: value.repeat(times, *[1] * (value.dim() - 1)).contiguous(memory_format=_layout(value))
        for name, value in local_batch.batch._asdict().items()
        if value is not None
    }
    return local_batch._replace(batch=local_batch.batch._replace(**tensors))


def _layout(value: Tensor) -> torch.memory_format:
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def best_of(rounds: int, actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least seconds of each, taking turns, after one round to warm up."""
    best = dict.fromkeys(actions, float("inf"))
    for number in range(rounds + 1):
        for name, action in actions.items():
            _wait()
            began = time.perf_counter()
            action()
            _wait()
            if number:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


# --- K-means ---------------------------------------------------------------------------------------------------------


def region_rows(shards: Path) -> Tensor:
    """Regions of 32 photographs in ResNet-50's C4, L2-normalised: (regions, 1024)."""
    settings = settings_of()
    batch = make_local_batch(shards, settings).batch
    net = build_backbone("resnet50", seed=0).to(DEVICE).train()
    with torch.no_grad():
        regions = pool_regions(net.forward_c4(batch.images), batch.superpixels, max_superpixels=128)
    return F.normalize(regions.features[regions.valid], dim=1)


def loop_kmeans(rows: Tensor, num_clusters: int, *, iterations: int, seed: int = 0) -> list[float]:
    """K-means as one writes it first: random rows as centres, then a loop over clusters; inertia by iteration."""
    generator = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=generator)[:num_clusters].to(rows.device)]
    inertia: list[float] = []
    for _ in range(iterations):
        distance, assignment = torch.cdist(rows, centres).min(1)
        inertia.append(float(distance.square().sum()))
        for k in range(num_clusters):
            members = rows[assignment == k]
            if len(members):
                centres[k] = members.mean(0)
    return inertia


def clustering(shards: Path, rounds: int) -> None:
    """K-means of one group. The mark is the inertia at which the loop converges (median of some seeds): ours and the
    loop run as many iterations as bring their median to within 0.1 % of it; scikit-learn stops by itself.
    """
    rows = region_rows(shards)
    grouped, valid = rows[None], torch.ones(1, len(rows), dtype=torch.bool, device=DEVICE)
    on_host = rows.cpu().numpy()

    def ours(k: int, iterations: int, seed: int = 0) -> Tensor:
        uniforms = seeding_uniforms(k, seed=seed, step=0, first_group=0, num_groups=1).to(DEVICE)
        return kmeans(grouped, valid, uniforms=uniforms, iterations=iterations).inertia

    def theirs(k: int, seed: int = 0) -> float:
        return float(KMeans(k, n_init=1, algorithm="lloyd", random_state=seed).fit(on_host).inertia_)

    def median_of(inertia: Callable[[int], float]) -> float:
        return statistics.median(inertia(seed) for seed in range(SEEDS))

    for k in (4, 32, 128):
        loops = [loop_kmeans(rows, k, iterations=CONVERGED, seed=seed) for seed in range(SEEDS)]
        by_iteration = [statistics.median(values) for values in zip(*loops, strict=True)]
        mark = CLOSE * by_iteration[-1]
        loop_needed = next(i for i, value in enumerate(by_iteration, start=1) if value <= mark)
        needed = next(
            (i for i in range(CONVERGED) if median_of(lambda seed, i=i, k=k: float(ours(k, i, seed))) <= mark),
            CONVERGED,
        )
        centres = rows[:k].T.contiguous()
        seconds = best_of(
            rounds,
            {
                "ours": lambda n=needed, k=k: ours(k, n),
                "loop": lambda n=loop_needed, k=k: loop_kmeans(rows, k, iterations=n),
                "sklearn": lambda k=k: theirs(k),
                "ours, 10 iterations": lambda k=k: ours(k, 10),
                "product": lambda c=centres: rows @ c,
            },
        )
        inertia = {
            "ours": median_of(lambda seed, k=k, n=needed: float(ours(k, n, seed))),
            "loop": by_iteration[loop_needed - 1],
            "sklearn": median_of(lambda seed, k=k: theirs(k, seed)),
            "ours, 10 iterations": median_of(lambda seed, k=k: float(ours(k, 10, seed))),
        }
        told = ", ".join(f"{name} {seconds[name] * 1e3:.1f} ms ({inertia[name]:.1f})" for name in inertia)
        print(
            f"kmeans.vs_loop_k{k} {seconds['loop'] / seconds['ours']:.2f}  kmeans.vs_sklearn_k{k} "
            f"{seconds['sklearn'] / seconds['ours']:.2f}   {len(rows)} rows, {needed} and {loop_needed} iterations to "
            f"{mark:.1f}: {told}; floor {(needed + 1) * seconds['product'] * 1e3:.1f} ms, {needed + 1} products"
        )
    if DEVICE.type == "cuda":
        _clustering_of_eight_groups(rows, rounds)


def _clustering_of_eight_groups(rows: Tensor, rounds: int) -> None:
    """What a local batch of 256 images takes, seeding apart, against the loop over the groups."""
    eight = torch.stack([rows[torch.randperm(len(rows), device=DEVICE)[:3200]] for _ in range(8)])
    uniforms = seeding_uniforms(128, seed=0, step=0, first_group=0, num_groups=8).to(DEVICE)
    everything = torch.ones(eight.shape[:2], dtype=torch.bool, device=DEVICE)
    seconds = best_of(
        rounds,
        {
            "seeding": lambda: kmeans(eight, everything, uniforms=uniforms, iterations=0),
            "all": lambda: kmeans(eight, everything, uniforms=uniforms, iterations=10),
            "loop": lambda: [loop_kmeans(group, 128, iterations=10) for group in eight],
        },
    )
    print(
        f"kmeans.gpu_ms {seconds['all'] * 1e3:.2f}   8 groups of 3,200 rows, K = 128, 10 iterations, of which seeding "
        f"{seconds['seeding'] * 1e3:.2f}; kmeans.gpu_vs_loop {seconds['loop'] / seconds['all']:.1f}"
    )


# --- steps -----------------------------------------------------------------------------------------------------------


class Trainer:
    """One configuration's step on one batch, over and over."""

    def __init__(self, shards: Path, settings: PretrainSettings) -> None:
        self.settings = settings
        self.plan = plan_batches(settings, num_samples=settings.global_batch_size, num_ranks=1)
        world = World(0, 1, DEVICE)
        max_superpixels = Manifest.read(shards).max_superpixels
        self.training = build_training(settings, self.plan, world, max_superpixels=max_superpixels)
        self.model, self.optimizer = unwrapped(self.training.model), self.training.optimizer
        batch, group = settings.global_batch_size, settings.refine.clustering_group_size
        one = settings.model_copy(update={"global_batch_size": group})
        self.local_batch = repeated(make_local_batch(shards, one), batch // group)
        self.masks = 0.0

    def step(self) -> None:
        """One whole step with its update."""
        figures = train_step(self.training, [self.local_batch], step=0).figures
        self.masks = figures.masks_per_image


class Bare:
    """The forwards and backwards of a BYOL step with torchvision's model and nothing else."""

    def __init__(self, trainer: Trainer) -> None:
        name, last = trainer.settings.model.backbone, torch.channels_last
        self.views, self.precision = trainer.local_batch.batch.views, trainer.settings.run.precision
        self.online, self.target = (get_model(name).to(DEVICE, memory_format=last).train() for _ in range(2))
        self.online.fc = self.target.fc = nn.Identity()

    def step(self) -> None:
        """Both views through both networks, and back through one."""
        self.online.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16"):
            online = [self.online(self.views[:, v]) for v in (0, 1)]
            with torch.no_grad():
                target = [self.target(self.views[:, v]) for v in (0, 1)]
            loss = sum((a.float() - b.float()).square().mean() for a, b in zip(online, reversed(target), strict=True))
        loss.backward()


def floor_of(trainer: Trainer, *, refines: bool) -> float:
    """Floating-point operations of a step: backbones, C4 of the whole image, and the heads' rows; ×3 where learned."""
    backbone, images = trainer.model.online["backbone"], trainer.local_batch.batch.images[:1].float()
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        backbone.eval()(images)
    with FlopCounterMode(display=False) as to_c4, torch.no_grad():
        backbone.forward_c4(images)
    backbone.train()
    model = trainer.settings.model
    width, hidden, size = backbone.c5_channels, model.head_hidden_size, model.projection_size
    projector, predictor = 2 * hidden * (width + size), 2 * hidden * 2 * size
    per_image = 2 * 4 * whole.get_total_flops() + (to_c4.get_total_flops() if refines else 0)
    return per_image + trainer.masks * 2 * (4 * projector + 3 * predictor)


def sections_of(args: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Backbone and precision that were asked for."""
    return {"run": {"precision": args.precision, "channels_last": True}, "model": {"backbone": args.backbone}}


def steps(shards: Path, args: argparse.Namespace) -> None:
    """A BYOL step, R2O's at K = 4 and 128 (and with every row through the heads), and the bare loop, taking turns."""
    sections = sections_of(args)
    byol = {"refine": {"clustering": "none", "regions": "image"}}
    every = {"objective": {"rows": "all"}}
    trainers = {
        "byol": Trainer(shards, settings_of(args.batch, 1, **sections, **byol)),
        "r2o_k4": Trainer(shards, settings_of(args.batch, 4, **sections)),
        "r2o_k128": Trainer(shards, settings_of(args.batch, 128, **sections)),
        "all_rows_k128": Trainer(shards, settings_of(args.batch, 128, **sections, **every)),
    }
    bare = Bare(trainers["byol"])
    seconds = best_of(args.rounds, {"bare": bare.step, **{name: t.step for name, t in trainers.items()}})
    base = floor_of(trainers["byol"], refines=False)
    print(
        f"step.byol_vs_bare {seconds['bare'] / seconds['byol']:.3f}   {args.backbone}, {args.batch} images of 224 px, "
        f"{args.precision}: BYOL {seconds['byol']:.3f} s, bare {seconds['bare']:.3f} s; "
        f"{args.batch / seconds['byol']:.1f} images/s, {base * args.batch / seconds['byol'] / 1e12:.2f} TFLOP/s"
    )
    for k in (4, 128):
        name = f"r2o_k{k}"
        floor = floor_of(trainers[name], refines=True) / base
        ratio = seconds[name] / seconds["byol"]
        print(
            f"step.vs_floor_k{k} {ratio / floor:.3f}   R2O/BYOL {ratio:.3f}, floor {floor:.3f} with "
            f"{trainers[name].masks:.1f} valid masks an image; {args.batch / seconds[name]:.1f} images/s"
        )
    print(
        f"step.all_rows_k128 {seconds['all_rows_k128'] / seconds['r2o_k128']:.3f}   every row through the heads against"
        " the valid ones"
    )


def heads(shards: Path, args: argparse.Namespace) -> None:
    """The valid rows alone, against padding them to buckets of 256, against all B × K rows: both heads, both ways."""
    for k in (4, 128):
        trainer = Trainer(shards, settings_of(args.batch, k, **sections_of(args)))
        trainer.step()
        valid = max(round(trainer.masks * args.batch), 2)
        every = torch.randn(args.batch * k, trainer.model.online["backbone"].c5_channels, device=DEVICE)
        bucket = every[: min(-(-valid // 256) * 256, len(every))]
        torch.testing.assert_close(
            both_ways(trainer, every[:valid], valid),
            both_ways(trainer, bucket, valid, padded=True)[:valid],
            atol=0.05,
            rtol=0.05,
        )
        seconds = best_of(
            args.rounds,
            {
                "valid": lambda rows=every[:valid], t=trainer, n=valid: both_ways(t, rows, n),
                "padded": lambda rows=bucket, t=trainer, n=valid: both_ways(t, rows, n, padded=True),
                "all": lambda rows=every, t=trainer, n=valid: both_ways(t, rows, n),
            },
        )
        print(
            f"heads.padded_vs_valid_k{k} {seconds['padded'] / seconds['valid']:.2f}  heads.all_vs_valid_k{k} "
            f"{seconds['all'] / seconds['valid']:.2f}   {valid} valid rows {seconds['valid'] * 1e3:.1f} ms, "
            f"{len(bucket)} padded {seconds['padded'] * 1e3:.1f} ms, {len(every)} in all {seconds['all'] * 1e3:.1f} ms"
        )


def both_ways(trainer: Trainer, rows: Tensor, valid: int, *, padded: bool = False) -> Tensor:
    """Rows forward through projector and predictor, and back from the valid ones."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=trainer.settings.run.precision == "bf16"):
        for head in (trainer.model.online["projector"], trainer.model.predictor):
            rows = head_of_first(head, rows, valid) if padded else head(rows)
    rows[:valid].float().square().sum().backward()
    return rows.detach()


def head_of_first(head: nn.Module, rows: Tensor, count: int) -> Tensor:
    """A head whose batch statistics are those of the first `count` rows: what padding to buckets needs."""
    hidden, norm = head[0](rows), head[1]
    variance, mean = torch.var_mean(hidden[:count].float(), 0, correction=0)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return head[3](head[2](torch.addcmul(norm.bias - mean * scale, hidden, scale)))


def costs(shards: Path, args: argparse.Namespace) -> None:
    """The five operators that a step spends most in, K = 128."""
    trainer = Trainer(shards, settings_of(args.batch, 128, **sections_of(args)))
    trainer.step()
    on_gpu = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        trainer.step()
        _wait()
    spent = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in profiled.key_averages()}
    whole = sum(spent.values())
    largest = sorted(spent, key=lambda key: -spent[key])[:5]
    print("largest costs of a step, K = 128: " + ", ".join(f"{key} {spent[key] / whole:.1%}" for key in largest))


PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "V100": 125e12}  # dense half precision FLOP/s


def sizes(shards: Path, args: argparse.Namespace, batch: int, compiled: bool) -> None:
    """Images a second, share of the peak and memory at one local batch, K = 128."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(shards, settings_of(batch, 128, **sections_of(args)))
    if compiled:
        compile_backbones(trainer.model)
    seconds = best_of(args.rounds, {"step": trainer.step})["step"]
    if compiled:  # operations are counted on modules that are not
        trainer = Trainer(shards, settings_of(batch, 128, **sections_of(args)))
        trainer.step()
    rate = floor_of(trainer, refines=True) * batch / seconds
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    peak = next((value for key, value in PEAK.items() if key in name), None)
    print(
        f"step of {batch:4} images{', compiled' if compiled else '':10} {batch / seconds:8.1f} images/s  "
        f"{rate / 1e12:.2f} TFLOP/s{f' ({rate / peak:.1%} of peak)' if peak else ''}"
        + (f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if DEVICE.type == "cuda" else "")
    )


if __name__ == "__main__":
    sys.exit(main())
