"""What the settings of every evaluation are made from."""

from __future__ import annotations

from typing import ClassVar

from pipeline.foundation.settings import Settings


class EvaluationSettings(Settings):
    """Base of every evaluation's settings; `SECTION` is its section of a config file, `eval_<name>`."""

    SECTION: ClassVar[str]
