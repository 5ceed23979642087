"""Typed, frozen settings read from YAML: one file is one run, an unknown key is an error.

A file holds sections, one per stage. `base: other.yaml` (one level, relative to the file) gives defaults, and
`--set section.key=value` wins over both.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.foundation.errors import InputError

SECTIONS = ("scenes", "shards", "pretrain", "workflow")
# ValueError: a value like 2026-99-99, which is no date.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
EVALUATION_PREFIX = "eval_"  # of the sections of evaluations; whoever has no list of them lets every one pass


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Base of every settings class: frozen, no unknown keys, defaults checked too.

    `NOT_CONTENT` names the fields that say how a stage runs or reports, not what it makes: a change of them redoes
    nothing and enters no fingerprint. `ADDED` names those that came after 0.1.0. They enter none at their default,
    which must do what was done before them, so that what former versions began keeps its fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset()
    ADDED: ClassVar[frozenset[str]] = frozenset()

    def content(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values."""
        fields = type(self).model_fields
        unchanged = {name for name in self.ADDED if getattr(self, name) == fields[name].get_default()}
        plain = self.model_dump(mode="json", exclude=set(self.NOT_CONTENT | unchanged))
        return {name: _content(getattr(self, name), value) for name, value in plain.items()}


def _content(value: Any, plain: Any) -> Any:
    """`plain`, but for settings and mappings of settings, of which it is their content."""
    if isinstance(value, Settings):
        return value.content()
    return {key: _content(value[key], inner) for key, inner in plain.items()} if isinstance(value, dict) else plain


S = TypeVar("S", bound=Settings)


def load_settings(
    model: type[S],
    section: str,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    known: Sequence[str] | None = None,
) -> S:
    """One section of a config file as settings; without a file, the defaults.

    Args:
        overrides: `section.key=value` strings, the value in YAML.
        known: every section that there may be; None: SECTIONS and those of any evaluation.
    Raises:
        InputError: names the file, the key, what is wrong, and for an unknown key the nearest known one.
    """
    config = apply_overrides(read_config(path, known) if path else {}, overrides, known)
    origin = str(path) if path else "settings"
    try:
        return model.model_validate(config.get(section) or {})
    except ValidationError as error:
        raise InputError(_first_problem(error, model, section, origin)) from None


def read_config(path: Path, known: Sequence[str] | None = None) -> dict[str, Any]:
    """A config file merged over its base, as nested plain values. Raises InputError where it is not one."""
    config = _read_yaml(path, known)
    base = config.pop("base", None)
    if base is not None:
        base_path = path.parent / str(base)
        base_config = _read_yaml(base_path, known)
        if "base" in base_config:
            raise InputError(f"{path}: base {base_path} has a base itself; only one level is allowed")
        config = _merged(base_config, config)
    for section in config:
        if not _is_known(section, known):
            raise InputError(f"{path}: unknown section '{section}'{_nearest(section, known or SECTIONS)}")
    return config


def apply_overrides(
    config: Mapping[str, Any], overrides: Sequence[str], known: Sequence[str] | None = None
) -> dict[str, Any]:
    """`config` with each `section.key=value` laid over it. Raises InputError on a malformed one."""
    result: dict[str, Any] = dict(config)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise InputError(f"--set {override}: expected section.key=value, as in --set pretrain.seed=1")
        if not _is_known(keys[0], known):
            raise InputError(f"--set {override}: unknown section '{keys[0]}'{_nearest(keys[0], known or SECTIONS)}")
        try:
            nested: Any = yaml.safe_load(text)
        except NOT_YAML:
            raise InputError(f"--set {override}: the value is not valid YAML") from None
        for key in reversed(keys):
            nested = {key: nested}
        result = _merged(result, nested)
    return result


def dump_settings(**sections: Settings) -> str:
    """Settings as the YAML file that resolves to them."""
    return yaml.safe_dump({name: s.model_dump(mode="json") for name, s in sections.items()}, sort_keys=False)


def _is_known(section: str, known: Sequence[str] | None) -> bool:
    return section in known if known is not None else section in SECTIONS or section.startswith(EVALUATION_PREFIX)


def _read_yaml(path: Path, known: Sequence[str] | None) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"config {path} does not exist; configs/ has the ones that ship") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} cannot be read: {error}") from None
    try:
        loaded = yaml.safe_load(text)
    except NOT_YAML as error:
        where = getattr(error, "problem_mark", None)
        raise InputError(f"config {path} is not valid YAML{f' (line {where.line + 1})' if where else ''}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        sections = ", ".join(known or SECTIONS)
        raise InputError(f"config {path} must hold sections ({sections}), not a {type(loaded).__name__}")
    return loaded


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _first_problem(error: ValidationError, model: type[BaseModel], section: str, origin: str) -> str:
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    keys, known = _resolved(model, [str(part) for part in problem["loc"]])
    dotted = ".".join([section, *keys])
    if problem["type"] == "extra_forbidden":
        return f"{origin}: unknown key '{dotted}'{_nearest(keys[-1], known)}"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        tags = context["expected_tags"].replace("'", "").split(", ")
        dotted += "." + context["discriminator"].strip("'")
        return f"{origin}: {dotted}: unknown value '{context['tag']}'{_nearest(context['tag'], tags)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{origin}: {dotted}: {message}{shown}"


def _resolved(annotation: Any, location: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys of a location without the tags of unions, and the keys known where the last of them is."""
    if not location:
        return [], []
    key, *rest = location
    models = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
    if len(models) > 1:  # a union; pydantic names its member by the tag
        tagged = [
            m for m in models if key in {f.default for f in m.model_fields.values() if isinstance(f.default, str)}
        ]
        return _resolved(tagged[0], rest) if tagged else ([], [])
    if models:
        known = list(models[0].model_fields)
        field = models[0].model_fields.get(key)
        keys, inner = _resolved(field.annotation, rest) if field else (list(rest), [])
        return [key, *keys], inner or known
    values = [_plain(a) for a in get_args(annotation)[-1:]]  # of a dict, or of what Annotated hides
    keys, known = _resolved(values[0], rest) if values else (list(rest), [])
    return [key, *keys], known


def _plain(annotation: Any) -> Any:
    """An annotation without what Annotated adds to it."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    return annotation
