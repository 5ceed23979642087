"""What an export replaces, and that it can be repeated wherever it was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.foundation.errors import InputError, exit_code_of
from tests.train.run.test_model_card import RECORD, run_of
from train import export as command
from train.export import export
from train.models.formats import write_weights

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def run(tmp_path: Path, shallow: None) -> Path:
    run_of(tmp_path / "run", "resnet18")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


TEXTS = {
    "a README": b"# Mine\n\nHours of work.\n",
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "another library's card": b"---\nlibrary_name: timm\n---\n\n# x\n\n## Loading\n\n## Figures\n",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_is_no_model_card_stays(run: Path, out: Path, text: str) -> None:
    (out / "README.md").write_bytes(TEXTS[text])
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(
            InputError, match=r"README\.md is there, and is no model card as an export writes it; choose"
        ):
            export(run, out / f"README{suffix}", format="timm")
    assert contents(out) == {"README.md": TEXTS[text]}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_former_weights_and_their_card_are_replaced(run: Path, out: Path, suffix: str) -> None:
    path = out / f"w{suffix}"
    export(run, path, format="timm")
    first = contents(out)
    (run / "run.json").write_text(json.dumps({**RECORD, "samples": 71}))
    export(run, path, format="mmseg")
    assert "71 images" in (out / "w.md").read_text()
    assert path.read_bytes() != first[path.name]
    (run / "run.json").write_text(json.dumps(RECORD))
    export(run, path, format="timm")
    assert (out / "w.md").read_bytes() == first["w.md"]
    assert suffix == ".safetensors" or contents(out) == first  # there, the order of what it says is not ours


def test_a_card_of_0_1_0_is_replaced_and_an_edited_one_stays(run: Path, out: Path) -> None:
    path, card = out / "w.pth", out / "w.md"
    export(run, path, format="timm")
    whole = card.read_text()
    assert whole.count("<!-- Written by r2o export.") == 1
    card.write_text(whole.partition("\n<!--")[0])  # it had no mark
    export(run, path, format="timm")
    assert card.read_text() == whole
    edited = whole.replace("License: for who publishes", "License: MIT. For who publishes")
    card.write_text(edited)
    with pytest.raises(InputError, match=r"w\.md is there, and is no model card as an export writes it"):
        export(run, path, format="timm")
    assert card.read_text() == edited


def test_heads_of_others_stay_and_those_of_an_export_may_go(run: Path, out: Path) -> None:
    heads, weights = out / "w-heads.safetensors", {"online.projector.0.weight": torch.ones(2)}
    save_file(weights, heads)
    before = contents(out)
    with pytest.raises(InputError, match=r"w-heads\.safetensors is there, and is no file of heads as an export writes"):
        export(run, out / "w.pth", format="timm", heads=True)
    assert contents(out) == before
    export(run, out / "w.pth", format="timm")
    assert heads.read_bytes() == before[heads.name]
    facts = {"backbone": "resnet18", "names": "timm", "fingerprint": "f"}
    save_file(weights, heads, metadata={"format": "pt", **facts})  # as 0.1.0 did
    for _ in range(2):
        with pytest.raises(InputError, match="has no checkpoint, which alone holds the heads"):
            export(run, out / "w.pth", format="timm", heads=True)
        write_weights(heads, weights, "torchvision", metadata=facts)


IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x"),
    "nothing": lambda path: path.touch(),
    "another archive": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "pipe": os.mkfifo,
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.md", "w-heads.safetensors"])
@pytest.mark.parametrize("case", IN_THE_WAY)
def test_whatever_else_is_in_the_way_stays(run: Path, out: Path, case: str, name: str) -> None:
    IN_THE_WAY[case](out / name)
    before = os.lstat(out / name)
    path = out / (name if name.startswith("w.") and not name.endswith("md") else "w.pth")
    with pytest.raises(InputError, match=rf"{name} is there, and is no "):
        export(run, path, format="timm", heads=True)
    assert os.lstat(out / name) == before
    assert [path.name for path in out.iterdir()] == [name]


def test_no_runs_own_files_are_replaced(run: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "other", "resnet18")
    (tmp_path / "other/checkpoints").mkdir()
    for own in ("other/backbone.pt", "other/checkpoints/step-00000012.pt", "run/backbone.pt", "run/checkpoints/new.pt"):
        with pytest.raises(InputError, match="is a run's own; choose another OUT"):
            export(run, tmp_path / own, format="timm")


@pytest.mark.parametrize("after", ["write_weights", "write_atomic"])
def test_an_interrupted_export_is_repeated(run: Path, out: Path, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, out / "w.pth", format="timm")
    expected = contents(out)
    (out / "w.md").unlink()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for former in (True, False):
        if not former:
            (out / "w.pth").unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            patched.setattr(command, after, stop)
            with pytest.raises(KeyboardInterrupt):
                export(run, out / "w.pth", format="timm")
        export(run, out / "w.pth", format="timm")
        assert contents(out) == expected


def without_config(run: Path) -> str:
    (run / "config.yaml").unlink()
    return "config.yaml"


def with_linked_results(run: Path) -> str:
    (run / "elsewhere").mkdir()
    (run / "eval-voc").symlink_to("elsewhere")
    return "eval-voc: a link"


def with_changed_results(run: Path) -> str:
    (run / "eval-voc").mkdir()
    (run / "eval-voc/results.json").write_text('{"format_version": 2}')
    return "results.json: its checksum is missing"


def with_linked_backbone(run: Path) -> str:
    (run / "backbone.pt").rename(run / "elsewhere.pt")
    (run / "backbone.pt").symlink_to("elsewhere.pt")
    return "backbone.pt: a link"


def with_a_changed_record(run: Path) -> str:
    (run / "run.json").write_text(json.dumps({**RECORD, "fingerprint": "../x"}))
    return "run.json is damaged"


def with_a_flipped_bit(run: Path) -> str:
    data = bytearray((run / "backbone.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "backbone.pt").write_bytes(data)
    return "backbone.pt is damaged"


@pytest.mark.parametrize(
    "spoil",
    [
        without_config, with_linked_results, with_changed_results, with_linked_backbone, with_a_changed_record,
        with_a_flipped_bit,
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    run: Path, out: Path, spoil: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = spoil(run)
    assert exit_code_of(lambda: command.main([f"--run={run}", f"--out={out / 'w.pth'}"])) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("r2o: error: ")
    assert err.count("\n") == 1
    assert contents(out) == {}
