"""What changes over a run, as pure functions of epoch or step: K, learning rate, target EMA."""

from __future__ import annotations

import math
from collections.abc import Callable

# Share of (larger - smaller K) that is left after a share `progress` in [0, 1] of the decay.
K_SCHEDULES: dict[str, Callable[[float], float]] = {
    "quarter_cosine": lambda progress: math.cos(math.pi / 2 * progress),  # Eq. A1, as A.8's values need it
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


def num_clusters_at(
    epoch: float, *, schedule: str, initial: int, final: int, hold_epochs: float, total_epochs: float
) -> int:
    """K in an epoch: `initial` before `hold_epochs`, then along the schedule to `final` at `total_epochs` (Eq. A1).

    Eq. A1 is read as K_f + cos(π/2 · (t - t_α)/(T - t_α))·(K_0 - K_f), truncated: as printed it would end at 103,
    while A.8 shows K(100) = 119, K(200) = 74, K(300) = 4. A rising schedule (initial < final, Table 4) is the falling
    one run backwards, so that it holds `final` in its last `hold_epochs`. `piecewise` (Table A5) halves K at equal
    distances until it is `final`: 128, 64, … 4.

    Args:
        epoch: 0-based; values past `total_epochs` give `final` (`initial` for the constant schedule).
    """
    if initial < final and schedule != "constant":
        return num_clusters_at(
            total_epochs - epoch,
            schedule=schedule,
            initial=final,
            final=initial,
            hold_epochs=hold_epochs,
            total_epochs=total_epochs,
        )
    progress = min(max((epoch - hold_epochs) / (total_epochs - hold_epochs), 0.0), 1.0)
    if schedule == "piecewise":
        return _halved(initial, final, progress)
    return int(final + K_SCHEDULES[schedule](progress) * (initial - final) + 1e-9)


def _halved(initial: int, final: int, progress: float) -> int:
    """One of the values initial, initial/2, … final, each for an equal share of the way."""
    pieces = [initial]
    while pieces[-1] > final:
        pieces.append(max(pieces[-1] // 2, final))
    return pieces[min(int(progress * len(pieces) + 1e-9), len(pieces) - 1)]


def scaled_target_ema(target_ema: float, *, batch_size: int, reference_batch_size: int | None) -> float:
    """τ of a batch such that as many images leave the same share of the old target: τ^(batch / reference)."""
    return target_ema if reference_batch_size is None else target_ema ** (batch_size / reference_batch_size)


def target_ema_at(step: int, *, base_target_ema: float, total_steps: int) -> float:
    """τ of a 0-based step: from `base_target_ema` to 1 at `total_steps` along a half cosine (A.1)."""
    progress = min(step / max(total_steps, 1), 1.0)
    return 1 - (1 - base_target_ema) * (1 + math.cos(math.pi * progress)) / 2
