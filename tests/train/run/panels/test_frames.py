"""Colours that follow masks over training, and the files that they are kept in."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from train.run.panels.frames import Frame, Refined, evenly, follow, read_frame, read_frames, write_frame

BEFORE = np.array([[[0, 0, 3], [0, 2, 3], [2, 2, 3]]])


def frame(step: int, images: int = 2) -> Frame:
    rng = np.random.default_rng(step)
    return Frame(step, (32, 4), Refined(rng.integers(0, 32, (images, 5, 6)), rng.integers(0, 4, (images, 5, 6))))


def score(before: np.ndarray, named: np.ndarray) -> tuple[int, int]:
    """Cells that keep their id; minus the ids of before that were given to masks that share no cell with them."""
    wrong = [i for i in np.unique(named) if i in before and not (before[named == i] == i).any()]
    return int((before == named).sum()), -len(wrong)


@pytest.mark.parametrize("seed", range(30))
def test_ids_are_renamed_as_the_best_of_all_renamings_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    most = (int(rng.integers(1, 6)), int(rng.integers(1, 6)))
    before, now = (rng.integers(0, most[i], (1, 3, 4)) for i in (0, 1))
    named = follow(now, before)
    ids, colours = np.unique(now), range(max(now.max(), before.max()) + 1)
    best = max(score(before, np.array(chosen)[np.searchsorted(ids, now)]) for chosen in permutations(colours, len(ids)))
    assert score(before, named) == best
    for mask in ids:  # the masks themselves stay what they are
        assert np.array_equal(now == mask, named == named[now == mask][0])


def test_clusters_numbered_anew_keep_their_ids_in_every_image() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 9, (4, 7, 7))
    now = np.stack([rng.permutation(9)[labels] for labels in before])
    assert np.array_equal(follow(now, before), before)


def test_a_new_mask_gets_an_id_that_was_not_there() -> None:
    now = np.array([[[1, 1, 3], [1, 0, 3], [0, 2, 3]]])  # 1 goes on as 0, 3 as 3, 0 as 2; 2 was a part of 2
    assert follow(now, BEFORE).tolist() == [[[0, 0, 3], [0, 2, 3], [2, 1, 3]]]


def test_a_finer_grid_is_compared_cell_by_cell() -> None:
    finer = BEFORE.repeat(2, 1).repeat(2, 2)
    assert np.array_equal(follow((finer + 1) % 4, BEFORE), finer)


def test_evenly_by_hand() -> None:
    assert evenly("abcdefgh", 40) == list("abcdefgh")
    assert evenly("abcdefghi", 3) == ["a", "e", "i"]
    assert evenly("abcdefgh", 1) == ["h"]
    assert evenly("", 3) == []
    for count in range(2, 60):
        chosen = evenly(range(count), 40)
        assert (chosen[0], chosen[-1], len(chosen)) == (0, count - 1, min(count, 40))
        assert chosen == sorted(set(chosen))


def test_a_frame_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_frame(tmp_path, frame(936))
    found = read_frame(tmp_path / "step-00000936.npz")
    assert found is not None
    assert found[:2] == (936, (32, 4))
    for ours, theirs in zip(found.masks, frame(936).masks, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.long
def test_a_damaged_frame_is_none_and_never_another_one(tmp_path: Path) -> None:
    write_frame(tmp_path, frame(1))
    path = tmp_path / "step-00000001.npz"
    whole = path.read_bytes()
    damaged = [b"", b"PK", whole[:-1], whole[: len(whole) // 2], whole[10:], b"\x80\x04N."]
    damaged += [whole[:i] + bytes([whole[i] ^ 0x11]) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        found = read_frame(path)
        refused += found is None
        assert found is None or all(np.array_equal(a, b) for a, b in zip(found.masks, frame(1).masks, strict=True))
    assert refused > len(damaged) / 2  # the rest changed dates and the like


@pytest.mark.parametrize(
    "change",
    [
        {"at_end": np.full((2, 5, 6), -1)},
        {"at_end": np.full((2, 5, 6), 1 << 16)},
        {"at_end": np.zeros((3, 5, 6), int)},
        {"at_end": np.zeros((2, 5), int)},
        {"at_end": np.zeros((2, 0, 6), int)},
        {"at_end": np.array([{}, {}])},
        {"at_end": np.full((2, 5, 6), "a")},
        {"num_clusters": np.array([3])},
        {"step": np.array([3, 4])},
    ],
)
def test_a_foreign_file_is_no_frame(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    arrays = {"step": np.array(3), "num_clusters": np.array([32, 4]), **frame(3).masks._asdict()}
    np.savez(tmp_path / "step-00000003.npz", **arrays)
    assert read_frame(tmp_path / "step-00000003.npz") is not None
    np.savez(tmp_path / "step-00000003.npz", allow_pickle=True, **{**arrays, **change})
    assert read_frame(tmp_path / "step-00000003.npz") is None
    assert read_frame(tmp_path / "missing.npz") is None


def test_frames_are_those_up_to_a_step_that_can_be_read(tmp_path: Path) -> None:
    for step in (0, 4, 8, 12, 16, 20):
        write_frame(tmp_path, frame(step))
    write_frame(tmp_path, frame(12, images=3))
    (tmp_path / "step-00000008.npz").write_bytes(b"damaged")

    def steps(until: int, most: int = 40) -> list[int]:
        return [one.step for one in read_frames(tmp_path, until=until, images=2, most=most)]

    assert steps(99) == [0, 4, 16, 20]
    assert steps(16) == [0, 4, 16]
    assert steps(15) == [0, 4]
    assert steps(20, most=2) == [0, 20]
    assert steps(19, most=1) == [16]
    assert read_frames(tmp_path / "none", until=9, images=2, most=1) == []
