"""The command as the user meets it: text, Markdown, CSV, files, mistakes."""

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.artifacts.scores import score_of
from pipeline.report import measured
from pipeline.report.paper_rows import PAPER_ROWS
from pipeline.report.report import read_table
from pipeline.report.shown.blocks import WIDTH, Block, as_markdown, as_text, shortened, width_of
from tests.pipeline.report.made_results import Write, iou_counts

ROOT = Path(__file__).parents[3]


def r2o(*arguments: str | Path) -> int:
    return cli.main(["results", *map(str, arguments)])


@pytest.fixture
def some(write: Write, tmp_path: Path) -> Path:
    for seed in range(2):
        write(f"runs/random/{seed}", label="random", batch_norm="initial", seed=seed)
        write(
            f"runs/ours/{seed}", label="ours", seed=seed, counts=iou_counts(seed + 7),
            per_class={"mean_iou": {"cat": 0.5 + seed / 4, "dog": None}},
        )  # fmt: skip
    write("runs/ours/cub", label="ours", protocol="cub", headline="image_mean_of_both", settings={"clusters": 5})
    write("runs/ours/large", label="ours", settings={"size": 448})
    return tmp_path / "runs"


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_text_has_every_cell_and_fits(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert r2o(some, "--per-class", "--compare", "ours", "random") == 0
    text = capsys.readouterr().out
    assert max(map(width_of, text.splitlines())) <= WIDTH
    table = read_table([some], scores=(), resamples=2000)
    for cell in table.cells.values():
        assert cell.interval is not None
        shown = f"[{100 * cell.interval.low:.2f}, {100 * cell.interval.high:.2f}]"
        assert shown in text
    assert "not compared with [1]: size: 224 → 448" in text
    assert "Probability of beating random" in text
    assert "R2O (Table 3)" in text
    assert "71.2 (other data)" in text
    assert "A = ours (" in text
    assert any(line.split() == ["cat", "–", "62.50", "±", "17.68", "(2)"] for line in text.splitlines())
    part = text.split("\n\n")[1 if "birds" not in text.split("\n\n")[0] else 0]
    assert "birds" in part


def test_markdown_is_one_wide_table(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert r2o(some, "--format=markdown") == 0
    text = capsys.readouterr().out
    head = next(line for line in text.splitlines() if line.startswith("| weights"))
    rows = [line for line in text.split("**Probability")[0].splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {head.count("|")} == {7}
    assert len(rows) == 2 + 2 + 8


def test_csv_has_full_precision_and_all_ids(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert r2o(some, "--format=csv", "--compare", "ours", "random", "--per-class") == 0
    lines = lines_of(capsys.readouterr().out)
    table = read_table([some], scores=(), resamples=2000)
    measured = [line for line in lines if line["source"] == "measured" and not line["class"]]
    assert len(measured) == len(table.cells) == 4
    first = measured[1]
    cell = table.cells[1, 0]
    assert first["sha256"] == table.rows[1].sha256
    assert cell.interval is not None
    got = [float(first[name]) for name in ("mean", "std", "low", "high")]
    assert got == [cell.spread.mean, cell.spread.std, *cell.interval]
    assert (first["n"], first["seeds"], first["protocol"], first["against"]) == ("2", "0 1", "r2o.knn/1", "random")
    assert first["data_fingerprint"] == "d" * 64
    assert first["settings"] == '{"size": 224}'
    by_class = {line["class"]: line["mean"] for line in lines if line["class"]}
    assert by_class == {"cat": "0.625", "dog": ""}
    (pair,) = [line for line in lines if line["source"] == "comparison"]
    assert (pair["label"], pair["against"], pair["probability"]) == ("ours", "random", first["probability"])
    quoted = [line for line in lines if line["source"].startswith("quoted")]
    assert [line["mean"] for line in quoted if line["label"] == "R2O"] == ["0.712"]


def test_other_rows_can_be_the_measure(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert r2o(some, "--against", "ours") == 0
    assert "Probability of beating ours" in capsys.readouterr().out
    assert r2o(some, "--bootstrap", "0", "--quoted", "none") == 0
    text = capsys.readouterr().out
    assert "Probability" not in text
    assert "resamples" not in text
    assert "Table 3" not in text.replace("birds (Table 3)", "")


def test_the_paper_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert r2o("--paper", "--format=csv") == 0
    lines = lines_of(capsys.readouterr().out)
    assert [(line["label"], float(line["mean"])) for line in lines] == [(r.method, r.fraction) for r in PAPER_ROWS]
    assert r2o("--paper") == 0
    text = capsys.readouterr().out
    assert max(map(width_of, text.splitlines())) <= WIDTH
    for row in PAPER_ROWS:
        assert any(row.method in line and f"{row.value:g}" in line for line in text.splitlines())


def test_it_is_written_whole_and_never_over_results(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = some / "table.md"
    assert r2o(some, "--format=markdown", "--out", out) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text().startswith("**Scores**")
    before = (some / "ours" / "0" / "results.json").read_bytes()
    for name in ("results.json", "per_image.npz"):
        assert r2o(some, "--out", some / "ours" / "0" / name) == 2
        assert "choose another name" in capsys.readouterr().err
    assert (some / "ours" / "0" / "results.json").read_bytes() == before
    assert r2o(some, "--out", some / "no" / "table") == 2
    assert r2o(some, "--out", some) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "needs a path"),
        (("{}", "--paper"), "leave the paths"),
        (("{}/none",), "none does not exist"),
        (("{}", "--score", "x"), "--score x"),
        (("{}", "--against", "x"), "'x' is none of the weights"),
        (("{}", "--compare", "ours", "x"), "'x' is none of the weights"),
        (("{}", "--bootstrap", "-1"), "'-1' is not a whole number"),
        (("{}", "--bootstrap", "1000001"), "is not a whole number from 0 to 1000000"),
        (("{}", "--bootstrap", "²"), "is not a whole number"),
        (("",), "an empty path"),
    ],
)
def test_mistakes_are_one_line(
    some: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert r2o(*(argument.format(some) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("r2o: error: ")
    assert said in line


def test_odd_labels_are_shown_and_never_interpreted(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [
        "a|b`c`<b>*x*",
        "tab\there\nnext",
        "漢字" * 30,
        "$\\frac{1}{2}$",
        "=1+1",
        "e\u0301" * 40,
        "\x1b[31mred",
        "\u202eevil",
    ]
    for number, label in enumerate(odd):
        write(f"{number}", label=label, counts=iou_counts(number + 1))
    assert r2o(tmp_path) == 0
    text = capsys.readouterr().out
    assert max(map(width_of, text.splitlines())) <= WIDTH
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "tab\\there\\nnext" in text
    assert r2o(tmp_path, "--format=markdown") == 0
    rows = [line for line in capsys.readouterr().out.split("\n\n")[1].splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}
    assert any("a\\|b\\`c\\`\\<b\\>\\*x\\*" in line for line in rows)
    assert r2o(tmp_path, "--format=csv") == 0
    assert sorted(line["label"] for line in lines_of(capsys.readouterr().out)) == sorted(odd)


def test_wrapped_parts_keep_only_rows_that_have_something() -> None:
    cells = ["x" * 50, "y" * 50, "z" * 50]
    block = Block(header=["name", "a", "b", "c"], rows=[["all", *cells], ["third", "", "", "here"]])
    parts = as_text([block]).rstrip("\n").split("\n\n")
    assert [part.splitlines()[2:] for part in parts] == [
        ["all    " + "  ".join(cells[:2])], ["all    " + cells[2], "third  here"],
    ]  # fmt: skip
    assert as_markdown([block]).count("\n| ") == 3


def test_shortened_keeps_both_ends() -> None:
    assert [width_of(text) for text in ("ab", "漢字", "e\u0301", "ａ")] == [2, 4, 1, 2]
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    for text in ("漢字仮名交文", "a" * 99, "e\u0301" * 20):
        assert width_of(shortened(text, 7)) <= 7


@pytest.mark.long
def test_many_results_of_many_classes(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "MANY_FILES", 60)
    for number in range(60):
        write(f"{number}", label=f"weights {number % 20}", weights=str(number % 20), seed=number // 20)
    write("classes", protocol="linear", counts=iou_counts(0, images=60, classes=1000),
          per_class={"mean_iou": {f"class {n}": 0.5 for n in range(1000)}})  # fmt: skip
    assert r2o(tmp_path, "--per-class", "--bootstrap", "200") == 0
    captured = capsys.readouterr()
    assert max(map(width_of, captured.out.splitlines())) <= WIDTH
    assert "61/61 results" in captured.err
    assert sum(line.startswith("class ") for line in captured.out.splitlines()) == 1001


@pytest.mark.processes
def test_output_of_another_encoding_and_a_reader_that_has_seen_enough(some: Path) -> None:
    code = "import sys; from pipeline.cli import main; sys.stdin.read(); sys.exit(main(['results', sys.argv[1]]))"
    command = [sys.executable, "-c", code, str(some)]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True, input=b"")
    assert b"\\xb1" in done.stdout
    assert done.stderr == b""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # before it prints: it waits for the end of stdin
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.long
def test_a_picture_has_a_panel_for_each_column(
    some: Path, write_fine_tuning: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    write_fine_tuning("runs/$x^{2$ 漢字/eval-voc", {"run": {0: 0.5}})
    picture = some / "p.png"
    assert r2o(some, "--picture", picture) == 0
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width > image.height / 3 > 100
    capsys.readouterr()


def test_a_picture_without_the_library_names_the_extra(
    some: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert r2o(some, "--picture", some / "p.png") == 2
    assert capsys.readouterr().err == "r2o: error: --picture needs matplotlib; pip install -e '.[plots]'\n"


def test_scores_are_those_of_the_files(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = write("a")
    assert r2o(tmp_path / "a" / "results.json", "--bootstrap=0") == 0
    assert f"{100 * (score_of(counts) or 0):.2f}" in capsys.readouterr().out
