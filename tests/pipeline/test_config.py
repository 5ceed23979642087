from pathlib import Path

import pytest

from pipeline.config import code_version, load_recipe
from pipeline.foundation.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_ships_is_valid(path: Path) -> None:
    load_recipe(path)


def test_a_mistake_in_any_section_is_found(tmp_path: Path) -> None:
    for section in ("scenes", "shards", "pretrain", "eval_voc", "workflow"):
        (tmp_path / "x.yaml").write_text(f"{section}: {{nosuchkey: 1}}")
        with pytest.raises(InputError, match=rf"x.yaml: unknown key '{section}.nosuchkey'"):
            load_recipe(tmp_path / "x.yaml")


def test_version_is_the_checkouts() -> None:
    assert code_version().count(".") == 2
