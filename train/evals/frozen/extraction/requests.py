"""Passes that the main rank asks for while it scores, and that all ranks do together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pipeline.foundation.errors import AgreedError
from train.config.frozen import DataPart
from train.distributed.collectives import from_main
from train.distributed.world import World
from train.evals.frozen.extraction.arrays import PassFiles
from train.evals.frozen.extraction.extract import ArrayName


@dataclass(frozen=True, kw_only=True)
class PassRequest:
    """Which pass: numbers of a set of images and of a subject, the seed of random weights, part, size, arrays."""

    data: int
    subject: int
    seed: int
    part: DataPart
    size: int
    arrays: tuple[ArrayName, ...]


class SharedPasses:
    """Asks and answers. Every rank has one; the main rank calls `ask`, the others `serve` until the main rank ends.

    Args:
        do: what every rank does for a request; all of them raise AgreedError where it fails on one.
    """

    def __init__(self, world: World, do: Callable[[PassRequest], PassFiles]) -> None:
        self._world, self._do = world, do

    def ask(self, request: PassRequest) -> PassFiles:
        """Have all ranks do a pass."""
        from_main(lambda: json.dumps(asdict(request)), self._world)
        return self._do(request)

    def serve(self) -> None:
        """Take part in every pass that the main rank asks for."""
        while text := from_main(str, self._world):
            told = json.loads(text)
            self._do(PassRequest(**{**told, "arrays": tuple(told["arrays"])}))

    def lead(self, work: Callable[[], None]) -> None:
        """On the main rank, do what asks for passes, then let the others end; they have ended after an AgreedError."""
        try:
            work()
        except AgreedError:
            raise
        except Exception:
            from_main(str, self._world)
            raise
        from_main(str, self._world)
