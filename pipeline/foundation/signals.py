"""The signals by which a scheduler, a terminal or a person asks a process to end in good order."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
