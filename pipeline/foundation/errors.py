"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import os
from collections.abc import Callable

from pipeline.foundation.progress import say

EXIT_INPUT_ERROR = 2
EXIT_REQUEUE = 75  # sysexits' EX_TEMPFAIL: ended in good order before its end; start the same command again
EXIT_INTERRUPTED = 130


class InputError(ValueError):
    """A mistake in what the user gave. The message is one line that names the thing and says what to do."""


class AgreedError(InputError):
    """An input error that every rank of a job raises at the same point; the first of them says it."""


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run a command's `main`; turn `InputError` and Ctrl-C into one line on stderr and an exit code."""
    try:
        return main() or 0
    except InputError as error:
        if _is_first_rank() or not isinstance(error, AgreedError):
            say(f"r2o: error: {error}")
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        if _is_first_rank():  # every rank of a job is interrupted; one tells
            say("r2o: interrupted; run the same command again to go on")
        return EXIT_INTERRUPTED


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
