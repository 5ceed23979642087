from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field

from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import Settings, apply_overrides, dump_settings, load_settings, read_config


class Inner(Settings):
    momentum: float = 0.9
    sizes: tuple[int, int] = (1, 2)


class Outer(Settings):
    epochs: Annotated[int, Field(gt=0)] = 300
    optim: Inner = Inner()
    extra: Inner | None = None


class Grown(Settings):
    ADDED = frozenset({"later"})

    first: int = 1
    later: str = "as before"


class Whole(Settings):
    one: Grown = Grown()
    many: dict[str, Grown] = Field(default_factory=dict)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_gives_the_defaults() -> None:
    assert load_settings(Outer, "pretrain") == Outer()


def test_override_wins_over_file_wins_over_base(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", "pretrain: {epochs: 10, optim: {momentum: 0.1, sizes: [3, 4]}}\nshards: {seed: 1}")
    top = written(tmp_path, "top.yaml", "base: base.yaml\npretrain: {epochs: 20, optim: {momentum: 0.2}}")
    loaded = load_settings(Outer, "pretrain", top, ["pretrain.optim.momentum=0.3"])
    assert loaded == Outer(epochs=20, optim=Inner(momentum=0.3, sizes=(3, 4)))
    assert read_config(top)["shards"] == {"seed": 1}


def test_what_was_added_is_content_once_it_is_not_as_before() -> None:
    """Nested in settings and in mappings of them; the dump has it always."""
    before, after = Grown(first=2), Grown(later="otherwise")
    assert Whole(one=before, many={"a": before, "b": after}).content() == {
        "one": {"first": 2},
        "many": {"a": {"first": 2}, "b": {"first": 1, "later": "otherwise"}},
    }
    assert Whole(one=after).content() == {"one": {"first": 1, "later": "otherwise"}, "many": {}}
    assert Whole().model_dump() == {"one": {"first": 1, "later": "as before"}, "many": {}}


def test_override_is_yaml_and_makes_what_is_missing() -> None:
    overrides = ["pretrain.extra.sizes=[5, 6]", "pretrain.optim.momentum=null", "shards.prefix=a=b"]
    assert apply_overrides({"pretrain": {"extra": None}}, overrides) == {
        "pretrain": {"extra": {"sizes": [5, 6]}, "optim": {"momentum": None}},
        "shards": {"prefix": "a=b"},
    }


def test_overrides_leave_the_config_alone() -> None:
    config = {"pretrain": {"epochs": 1}}
    apply_overrides(config, ["pretrain.epochs=2"])
    assert config == {"pretrain": {"epochs": 1}}


def test_dumped_settings_load_as_themselves(tmp_path: Path) -> None:
    settings = Outer(epochs=7, extra=Inner(momentum=0.5))
    path = written(tmp_path, "resolved.yaml", dump_settings(pretrain=settings))
    assert load_settings(Outer, "pretrain", path) == settings
    assert yaml.safe_load(path.read_text())["pretrain"]["extra"] == {"momentum": 0.5, "sizes": [1, 2]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrain: {epoch: 3}", "unknown key 'pretrain.epoch'; did you mean 'epochs'?"),
        ("pretrain: {optim: {momentumm: 3}}", "unknown key 'pretrain.optim.momentumm'; did you mean 'momentum'?"),
        ("pretrain: {extra: {size: 3}}", "unknown key 'pretrain.extra.size'; did you mean 'sizes'?"),
        ("pretrain: {zzz: 3}", "unknown key 'pretrain.zzz'; known are epochs, optim, extra"),
        ("pretrain: {epochs: 0}", "pretrain.epochs: Input should be greater than 0 (given: 0)"),
        ("pretrain: {epochs: .nan}", "pretrain.epochs: "),
        ("pretrain: 5", "pretrain"),
        ("pretrian: {}", "unknown section 'pretrian'; did you mean 'pretrain'?"),
        ("- a list", "must hold sections"),
        ("pretrain: {", "is not valid YAML (line "),
        ("base: nowhere.yaml", "nowhere.yaml does not exist"),
        ("base: based.yaml", "only one level is allowed"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(tmp_path: Path, text: str, expected: str) -> None:
    written(tmp_path, "based.yaml", "base: other.yaml")
    path = written(tmp_path, "run.yaml", text)
    with pytest.raises(InputError) as caught:
        load_settings(Outer, "pretrain", path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("override", ["epochs=3", "pretrain.epochs", "pretrain..x=1", "nosuch.x=1", "pretrain.x=[1"])
def test_a_mistake_in_an_override_names_it(override: str) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(Outer, "pretrain", None, [override])
    assert str(caught.value).startswith(f"--set {override}: ")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(Outer, "pretrain", tmp_path / "x.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(Outer, "pretrain", tmp_path)
