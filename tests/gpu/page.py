"""A day's results as Markdown for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.foundation.exit_codes import EXIT_REQUEUE
from tests.gpu.aims import is_meant_card, steps_of, told, verdicts
from tests.gpu.summary import Line, failures

H100_TFLOPS = 989  # dense bf16, of the data sheet; an H200's too
NONE = "–"


def page_of(lines: Sequence[Line]) -> str:
    """The whole page."""
    parts = (_head, _aims, _ceilings, _steps, _compiled, _runs, _ranks, _learning, _trouble)
    return "\n".join(line for part in parts for line in (*part(lines), "")).rstrip() + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Rows of Markdown; None is shown as a dash."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(NONE if cell is None or cell == '' else str(cell) for cell in row)} |"


def _head(lines: Sequence[Line]) -> Iterator[str]:
    code, versions = told(lines, "env", "code") or {}, told(lines, "env", "versions") or {}
    gpu = told(lines, "env", "gpu") or {}
    on_device = any(line.get("device") == "cuda" for line in lines)
    card = f"{gpu['count']} × {gpu['name']}" if "count" in gpu else "a GPU that was not told" if on_device else "no GPU"
    yield f"## `make gpu-day` on {card}, {code.get('date', 'undated')}"
    yield ""
    facts = {
        "commit": code.get("commit"),
        "driver": gpu.get("driver"),
        "CUDA": gpu.get("cuda"),
        "cuDNN": gpu.get("cudnn"),
        "NCCL": gpu.get("nccl"),
        "torch": versions.get("torch"),
        "torchvision": versions.get("torchvision"),
        "Python": versions.get("python"),
        "CPU cores": versions.get("cores"),
        "memory of a GPU": f"{gpu['gib']} GiB" if "gib" in gpu else None,
    }
    yield from table(list(facts), [list(facts.values())])
    if not on_device:
        yield ""
        yield "No figure of this page was measured on a GPU. Sizes of a dry day are tiny."


def _aims(lines: Sequence[Line]) -> Iterator[str]:
    yield "### Aims"
    yield ""
    yield from table(("aim", "wanted", "measured", "verdict"), verdicts(lines))


def _ceilings(lines: Sequence[Line]) -> Iterator[str]:
    yield "### What the device cannot exceed"
    yield ""
    names = {
        "bf16_tflops": "bf16 product, TFLOP/s",
        "tf32_tflops": "tf32",
        "fp32_tflops": "fp32",
        "copy_tb_s": "copy, TB/s",
        "launch_us": "launch, µs",
        "h2d_gb_s": "host to device, GB/s",
    }
    line = told(lines, "env", "ceilings") or {}
    yield from table(list(names.values()), [[line.get(name) for name in names]])


def _steps(lines: Sequence[Line]) -> Iterator[str]:
    yield "### Steps by batch, not compiled"
    yield ""
    product = (told(lines, "env", "ceilings") or {}).get("bf16_tflops")
    rows = []
    for batch, steps in steps_of(lines).items():
        byol = steps.get("byol", {}).get("ms")
        for kind, line in steps.items():
            ms, tflops = line.get("ms"), line.get("tflops")
            rows.append(
                (
                    batch,
                    kind,
                    ms,
                    line.get("images_s"),
                    f"{ms / byol:.3f}" if ms and byol else None,
                    f"{tflops / product:.1%}" if tflops and product else None,
                    f"{tflops / H100_TFLOPS:.1%}" if tflops and is_meant_card(lines) else None,
                    line.get("gib"),
                    line.get("estimated_gib"),
                )
            )
    head = (
        "batch",
        "step",
        "ms",
        "images/s",
        "of BYOL's",
        "of the product above",
        "of an H100's",
        "GiB",
        "estimate",
    )
    yield from table(head, rows)


def _compiled(lines: Sequence[Line]) -> Iterator[str]:
    found = [line for line in lines if line["part"] == "compile" and "batch" in line]
    columns = {
        "batch": "batch",
        "ms": "ms",
        "images_s": "images/s",
        "gib": "GiB",
        "first_step_s": "first step, s",
        "graph_breaks": "graph breaks",
    }
    yield from _figures("Compiled step, K = 128", found, columns)


def _runs(lines: Sequence[Line]) -> Iterator[str]:
    found = [line for line in lines if line["part"] == "stream" and "what" in line]
    columns = {
        "what": "decodes",
        "steps": "steps",
        "images_per_second": "images/s",
        "data_wait_mean": "data_wait",
        "overhead": "overhead",
        "memory_gb": "GB",
    }
    yield from _figures("Whole runs", found, columns)


def _figures(title: str, found: Sequence[Line], columns: Mapping[str, str]) -> Iterator[str]:
    """A section with a row a line; `columns`: which of its figures, and how they are called."""
    yield f"### {title}"
    yield ""
    yield from table(tuple(columns.values()), [[line.get(name) for name in columns] for line in found])


def _ranks(lines: Sequence[Line]) -> Iterator[str]:
    yield "### Two GPUs through NCCL"
    yield ""
    found = [line for line in lines if line["part"] == "nccl" and "worst" in line]
    yield from (f"- {line['what']}: losses differ by at most {line['worst']:.2%}" for line in found)
    if not found:
        yield "Not run."


def _learning(lines: Sequence[Line]) -> Iterator[str]:
    yield "### Learning in equal seconds"
    yield ""
    scored = [line for line in lines if line.get("what") == "frozen scores"]
    runs = {line["method"]: line for line in lines if line["part"] == "learn" and "method" in line}
    paces = (told(lines, "learn", "epochs of equal seconds") or {}).get("images_s", {})
    names = list(dict.fromkeys(name for line in scored for name in line["scores"]))
    head = ["weights", "images/s, timed before", "epochs", "steps", "images", "seconds"]
    head += [column for name in names for column in (f"{name}, %", "above random-bn")]
    by_label = {line["weights"]: line for line in scored}
    rows = []
    for label in dict.fromkeys([*by_label, *runs]):
        run, line = runs.get(label, {}), by_label.get(label, {"scores": {}, "above_random_bn": {}})
        figures = [run.get(name) for name in ("epochs", "steps", "images", "training_s")]
        cells = [
            _interval(line[kind].get(name), signed=kind == "above_random_bn")
            for name in names
            for kind in ("scores", "above_random_bn")
        ]
        ended = {EXIT_REQUEUE: " (ended early)", 0: ""}.get(run.get("exit", 0), " (failed)")
        rows.append([label + ended, paces.get(label), *figures, *cells])
    yield from table(head, rows)
    if scored:
        yield ""
        yield f"Frozen features: {scored[0]['note']}. In brackets: 95 % intervals over images; one seed."
        yield "The masks of detcon_b are superpixels. `seconds` are of training, without start and scoring."


def _interval(figures: Sequence[float] | None, *, signed: bool) -> str | None:
    if figures is None:
        return None
    value, low, high = (f"{100 * one:{'+' if signed else ''}.1f}" for one in figures)
    return f"{value} [{low}, {high}]"


def _trouble(lines: Sequence[Line]) -> Iterator[str]:
    yield "### What failed, and what was left out"
    yield ""
    bad = [f"- failed: {one}" for one in failures(lines)]
    skipped = [f"- left out: {line['part']} ({line['skipped']})" for line in lines if "skipped" in line]
    ended = [f"- ended at its limit of {line['limit']} s: {line['part']}" for line in lines if "limit" in line]
    yield from [*bad, *skipped, *ended] or ["Nothing."]
