"""The one exception that means "the user can fix this"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.foundation.exit_codes import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, EXIT_REQUEUE
from pipeline.foundation.progress import say
from pipeline.foundation.signals import StopSignal
from pipeline.foundation.this_rank import is_first_rank


class InputError(ValueError):
    """A mistake in what the user gave. The message is one line that names the thing and says what to do."""


class AgreedError(InputError):
    """An input error that every rank of a job raises at the same point; the first of them says it."""


@contextmanager
def os_errors_named(place: object) -> Iterator[None]:
    """Turn an OSError of the block into an InputError that names its file, or `place` where it names none."""
    try:
        yield
    except OSError as error:
        where, what = error.filename or place, error.strerror or error
        raise InputError(f"{where}: {what}; put that right and run the same command again") from None


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run a command's `main`; turn `InputError` and stop signals into one line on stderr and an exit code."""
    try:
        return main() or 0
    except InputError as error:
        if is_first_rank() or not isinstance(error, AgreedError):
            say(f"r2o: error: {error}")
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        if is_first_rank():  # every rank of a job is interrupted; one tells
            say("r2o: interrupted; run the same command again to go on")
        return EXIT_INTERRUPTED
    except StopSignal as stop:
        say(f"r2o: {stop.name}: stopped; run the same command again to go on")
        return EXIT_REQUEUE
