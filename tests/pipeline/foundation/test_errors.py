import pytest

from pipeline.foundation.errors import InputError, exit_code_of


def test_what_main_gives_is_the_exit_code() -> None:
    assert exit_code_of(lambda: 3) == 3
    assert exit_code_of(lambda: None) == 0


def test_the_users_mistake_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise InputError("x.yaml: no such file\n\x1b[2J")

    assert exit_code_of(main) == 2
    assert capsys.readouterr().err == "r2o: error: x.yaml: no such file\\n\\x1b[2J\n"


def test_an_interrupt_is_told_by_one_rank(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert exit_code_of(main) == 130
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert exit_code_of(main) == 130
    assert capsys.readouterr().err == ""


def test_our_own_bugs_are_not_hidden() -> None:
    def main() -> int:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        exit_code_of(main)


@pytest.mark.parametrize("rank", ["", "x"])
def test_a_rank_that_is_no_number_hides_no_error(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise InputError("a mistake")

    monkeypatch.setenv("RANK", rank)
    assert exit_code_of(fails) == 2
    assert capsys.readouterr().err == "r2o: error: a mistake\n"
