"""What the exit code of a command says. One number has one meaning, whatever the command."""

from __future__ import annotations

EXIT_FAILED = 1  # a fault that is not the user's, or a rank that lost the others
EXIT_INPUT_ERROR = 2  # a mistake in what the user gave; the last line on stderr names it
EXIT_TOO_MANY_BAD = 3  # `shards`: the set is whole, but more images are bad than was allowed
EXIT_DAMAGED = 4  # `verify`: something is damaged
EXIT_REQUEUE = 75  # sysexits' EX_TEMPFAIL: ended in good order before its end; start the same command again
EXIT_INTERRUPTED = 130  # Ctrl-C


def exit_code_of_signal(number: int) -> int:
    """The exit code of a process that signal `number` ended, as shells say it."""
    return 128 + number
