from __future__ import annotations

import hashlib
import json

import pytest

from pipeline.artifacts.seal import sealed, unsealed

MEMBERS = {"b": [1, 2.5, None], "a": {"é": "x"}}


def test_the_checksum_is_the_sha256_of_the_canonical_rest():
    canonical = json.dumps(MEMBERS, sort_keys=True, separators=(",", ":"))
    assert sealed(MEMBERS) == {**MEMBERS, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}
    assert sealed(sealed(MEMBERS)) == sealed(MEMBERS)
    assert list(sealed(MEMBERS)) == ["b", "a", "checksum"]


def test_what_was_sealed_is_given_back_after_a_round_through_json():
    assert unsealed(json.loads(json.dumps(sealed(MEMBERS))), required=True) == MEMBERS


@pytest.mark.parametrize("change", [{"b": [1, 2.25, None]}, {"c": 1}, {"checksum": "0" * 64}, {"checksum": None}])
def test_a_change_is_found(change):
    with pytest.raises(ValueError, match="does not fit"):
        unsealed({**sealed(MEMBERS), **change}, required=False)


def test_a_file_without_checksum_is_believed_only_where_none_was_written():
    assert unsealed(MEMBERS, required=False) == MEMBERS
    with pytest.raises(ValueError, match="checksum is missing"):
        unsealed(MEMBERS, required=True)
    for other in ([], "x", None, 3):
        with pytest.raises(ValueError, match="not a JSON object"):
            unsealed(other, required=False)
