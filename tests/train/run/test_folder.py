"""What a run folder says of itself is checked when it is read, covers the shards' bytes, and lies where it says."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import dump_settings
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.run import folder as run_folder
from train.run.folder import RunFolder, has_begun, read_record, run_config, run_settings

SEED = int(os.environ.get("R2O_FUZZ_SEED", "13"))
SETTINGS = PretrainSettings.model_validate(
    {"epochs": 1, "global_batch_size": 16, "refine": {"clustering_group_size": 8}, "curriculum": {"hold_epochs": 0}}
)
OTHERS = SETTINGS.model_copy(update={"data": SETTINGS.data.model_copy(update={"num_workers": 3})})  # no other content
LEFT = Path(__file__).parents[2] / "upgrade" / "of_0_1_0"


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return Manifest.read(shards)


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_git_commit", lambda: None)


def note(run: Path, manifest: Manifest, settings: PretrainSettings = SETTINGS, *, step: int = 0) -> RunFolder:
    """A start of a run, as its folder tells it."""
    folder = RunFolder(run, settings, manifest)
    folder.check()
    run.mkdir(exist_ok=True)
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=1)
    folder.note_start(plan, torch.device("cpu"), step=step)
    return folder


def sha256(*parts: object) -> str:
    text = json.dumps(parts[0], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_shard(manifest: Manifest, **changes: object) -> Manifest:
    first, *rest = manifest.shards
    return manifest.model_copy(update={"shards": (first.model_copy(update=changes), *rest)})


def test_the_fingerprint_covers_every_shards_name_and_bytes(tmp_path: Path, manifest: Manifest) -> None:
    rows = [[one.name, one.sha256, one.index_sha256] for one in manifest.shards]
    parts = {"settings": SETTINGS.content(), "shards": manifest.fingerprint, "content": sha256({"shards": rows})}
    assert note(tmp_path / "run", manifest).fingerprint == sha256(parts)


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"index_sha256": "0" * 64}, {"name": "r2o-000009.tar"}])
def test_a_run_does_not_go_on_with_remade_shards_of_other_content(
    tmp_path: Path, manifest: Manifest, changes: dict[str, str]
) -> None:
    note(tmp_path / "run", manifest)
    remade = with_shard(manifest, **changes)
    expected = r"run holds another run \(other shards: their content differs\); choose another RUN$"
    with pytest.raises(InputError, match=expected):
        RunFolder(tmp_path / "run", SETTINGS, remade).check()
    with pytest.raises(InputError, match=r"run holds another run \(other shards\); choose"):
        RunFolder(tmp_path / "run", SETTINGS, remade.model_copy(update={"fingerprint": "0" * 64})).check()
    other = SETTINGS.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match=r"\(pretrain\.seed: 0 → 1; other shards: their content differs\)"):
        RunFolder(tmp_path / "run", other, remade).check()
    RunFolder(tmp_path / "run", OTHERS, manifest).check()


def test_a_run_of_0_1_0_keeps_its_fingerprint_and_from_then_on_its_shards_too(tmp_path: Path) -> None:
    run, manifest = Path(shutil.copytree(LEFT / "run", tmp_path / "run")), Manifest.read(LEFT / "shards")
    settings = run_settings(run)
    former = json.loads((run / "run.json").read_bytes())
    RunFolder(run, settings, with_shard(manifest, sha256="0" * 64)).check()  # nobody knows yet
    folder = note(run, manifest, settings, step=3)
    assert folder.fingerprint == former["fingerprint"]
    assert RunFolder(run, settings, manifest).fingerprint == former["fingerprint"]
    assert json.loads((run / "run.json").read_bytes())["format_version"] == 1
    with pytest.raises(InputError, match=r"\(other shards: their content differs\)"):
        RunFolder(run, settings, with_shard(manifest, sha256="0" * 64)).check()
    assert run_settings(run) == settings


def flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def other_types(data: bytes, rng: random.Random) -> bytes:
    loaded = json.loads(data)
    member = rng.choice([name for name in loaded if name not in ("checksum", "starts")])
    return json.dumps({**loaded, member: rng.choice([None, -1, "x", [], {}, True, 1.5, [[]]])}).encode()


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flips": flipped,
    "cuts": lambda data, rng: data[: rng.randrange(len(data))],
    "types": other_types,
    "none": lambda data, rng: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_record_is_one_line_or_says_the_same(tmp_path: Path, manifest: Manifest, change: str) -> None:
    note(tmp_path / "run", manifest)
    rng, path = random.Random(SEED), tmp_path / "run" / "run.json"
    data, expected = path.read_bytes(), read_record(tmp_path / "run")
    refused = 0
    for number in range(200):
        path.write_bytes(CHANGES[change](data, rng))
        try:
            assert read_record(tmp_path / "run") == expected, (SEED, number, path.read_bytes())
        except InputError as error:
            refused += "\n" not in str(error) and str(path) in str(error)
    assert refused > 150, (SEED, refused)


def test_a_changed_config_is_found_where_it_is_read(tmp_path: Path, manifest: Manifest) -> None:
    run = tmp_path / "run"
    note(run, manifest)
    rng, path = random.Random(SEED), run / "config.yaml"
    data = path.read_bytes()
    assert run_config(run) == data.decode() == dump_settings(pretrain=SETTINGS)
    for _ in range(50):
        path.write_bytes(flipped(data, rng))
        for read in (run_settings, run_config):
            with pytest.raises(InputError, match=r"config\.yaml was changed after it was written"):
                read(run)
    path.unlink()
    with pytest.raises(InputError, match=r"config\.yaml cannot be read: No such file or directory; `make pretrain`"):
        run_settings(run)
    note(run, manifest)
    assert run_settings(run) == SETTINGS


class Killed(BaseException):
    pass


@pytest.mark.parametrize("starts", [1, 2, 3])
def test_a_kill_between_config_and_record_leaves_a_run_that_goes_on(
    tmp_path: Path, manifest: Manifest, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = tmp_path / "run", []
    kinds = [SETTINGS, OTHERS, SETTINGS]
    for settings in kinds[: starts - 1]:
        note(run, manifest, settings)
    write = run_folder.write_atomic

    def write_one(path: Path, data: str) -> None:
        if written:
            raise Killed
        written.append(path.name)
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "write_atomic", write_one)
        with pytest.raises(Killed):
            note(run, manifest, kinds[starts - 1])
    assert written == ["config.yaml" if starts == 1 else "run.json"]
    assert has_begun(run) == (starts > 1)
    assert run_settings(run).content() == SETTINGS.content()
    note(run, manifest, OTHERS)
    assert run_settings(run) == OTHERS
    assert len(read_record(run)["starts"]) == (1 if starts == 1 else starts + 1)


def test_a_record_of_a_newer_format_is_left_alone(tmp_path: Path, manifest: Manifest) -> None:
    note(tmp_path / "run", manifest)
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_bytes()), "format_version": 3})))
    with pytest.raises(InputError, match=r"run\.json: format version 3, but this r2o reads up to 2; use the r2o that"):
        RunFolder(tmp_path / "run", SETTINGS, manifest).check()


def hold(folder: RunFolder) -> None:
    with ExitStack() as held:
        folder.hold(held)


@pytest.mark.parametrize(
    "name",
    [
        ".lock", "config.yaml", "run.json", "log.jsonl", "skipped.jsonl", "backbone.pt", "checkpoints", "panels",
        "tensorboard", "checkpoints/step-00000001.pt", "panels/step-00000000.png", "tensorboard/events.out",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dangling", [True, False])
def test_no_link_is_followed_below_run(tmp_path: Path, manifest: Manifest, name: str, dangling: bool) -> None:
    path, target = tmp_path / "run" / name, tmp_path / "elsewhere"
    if not dangling:
        target.mkdir() if "." not in name else target.write_text("{}")
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    with pytest.raises(InputError, match=f"{name}: a link, and r2o follows none there"):
        hold(RunFolder(tmp_path / "run", SETTINGS, manifest))
    assert target.exists() != dangling


def test_run_itself_and_what_others_keep_in_it_may_be_links(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "wandb").mkdir()
    (tmp_path / "there" / "wandb" / "latest-run").symlink_to("run-1")
    hold(RunFolder(tmp_path / "run", SETTINGS, manifest))
    note(tmp_path / "run", manifest)
    assert read_record(tmp_path / "there")["samples"] == 70


@pytest.mark.parametrize("read", [read_record, run_settings])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, manifest: Manifest, read: Callable[[Path], Any]) -> None:
    note(tmp_path / "run", manifest)
    path = tmp_path / "run" / ("run.json" if read is read_record else "config.yaml")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"{path.name}: no plain file"):
        read(tmp_path / "run")
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f"{path.name} cannot be read: Is a directory"):
        read(tmp_path / "run")
