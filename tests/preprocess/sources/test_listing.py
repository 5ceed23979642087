from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from preprocess.sources import listing as listing_module
from preprocess.sources.listing import Kind, Listing, Part, Source

ODD = (b"new\nline.jpg", b"caf\xc3\xa9.jpg", b"raw\xff\xfe.jpg", b"", b"-", b"a:1:2\x1e.jpg", b" ", b"x/\x01/%00.jpg")


def made_up(count: int) -> list[Source]:
    """Records as archives give them, the odd names among them, each with a number of its own."""
    rng = random.Random(count)
    return [
        Source(
            name=b"%d/%b" % (number, ODD[number % len(ODD)]),
            size=rng.randrange(2**40),
            file=b"shard-%d.tar" % (number // 1000),
            offset=rng.randrange(2**45),
            class_name=(None, "tench, Tinca tinca", "Ünïcode")[number % 3],
            others=tuple(Part(f"part {n}:\udcff\x1e", rng.randrange(2**40), n) for n in range(number % 4)),
        )
        for number in range(count)
    ]


def filled(sources: Iterable[Source], *, kind: Kind = "ranges") -> Listing:
    listing = Listing(root="r", kind=kind, described="made up", class_folders=False, may_repeat=True)
    for source in sources:
        listing.add(source)
    return listing


@pytest.mark.long
def test_200_thousand_records_by_number_and_in_order():
    sources = made_up(200_000)
    with filled(sources) as listing:
        assert len(listing) == len(sources)
        for number in (199_999, 0, *random.Random(0).sample(range(200_000), 500), 9_999, 10_000, 10_001):
            assert listing[number] == sources[number]
        assert all(found == source for found, source in zip(listing, sources, strict=True))


def test_odd_names_alone():
    sources = [Source(name, 1, file=name, others=(Part("", 0, 0), Part("x", 1, 2))) for name in ODD]
    assert list(filled(sources)) == sources


def test_a_name_with_a_zero_byte_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="zero byte"):
        filled([Source(b"a\0b", 1)])


@pytest.mark.parametrize("number", [-1, 3])
def test_no_record_outside(number: int):
    with pytest.raises(IndexError):
        filled(made_up(3))[number]


def test_hash_does_not_know_of_flushes(monkeypatch: pytest.MonkeyPatch):
    sources = made_up(100)
    hashes = {filled(sources).sha256}
    for buffered in (1, 7, 100, 101):
        monkeypatch.setattr(listing_module, "BUFFERED", buffered)
        listing = filled(sources)
        hashes.add(listing.sha256)
        assert list(listing) == sources
        hashes.add(listing.sha256)
    assert len(hashes) == 1


def test_hash_knows_everything_of_a_record_but_not_where_it_lies():
    source = Source(b"a.jpg", 5, file=b"f", offset=7, class_name="c", others=(Part("cls", 1, 2),))
    changed = [
        source,
        source._replace(name=b"b.jpg"),
        source._replace(size=6),
        source._replace(file=b"g"),
        source._replace(offset=8),
        source._replace(class_name="d"),
        source._replace(class_name=None),
        source._replace(others=()),
        source._replace(others=(Part("cls", 1, 3),)),
    ]
    assert len({filled([one]).sha256 for one in changed}) == len(changed)
    assert filled([source], kind="rows").sha256 != filled([source]).sha256
    assert filled([source, changed[1]]).sha256 != filled([changed[1], source]).sha256
    elsewhere = Listing(root="elsewhere", kind="ranges", described="other words", class_folders=False)
    elsewhere.add(source)
    elsewhere.ignored = 9
    assert elsewhere.sha256 == filled([source]).sha256


def test_hash_knows_what_was_noted_wherever_the_flushes_are(monkeypatch: pytest.MonkeyPatch):
    sources = made_up(10)
    hashes = []
    for buffered in (2, 100):
        monkeypatch.setattr(listing_module, "BUFFERED", buffered)
        listing = filled(sources[:5])
        listing.note(b"5 MB")
        for source in sources[5:]:
            listing.add(source)
        hashes.append(listing.sha256)
    assert hashes[0] == hashes[1] != filled(sources).sha256


def test_a_list_that_was_looked_at_is_closed():
    listing = filled(made_up(2))
    assert listing[1].name
    with pytest.raises(AssertionError, match="takes no more images"):
        listing.add(Source(b"late", 1))


def test_the_name_that_is_there_twice():
    sources = made_up(50)
    assert filled(sources).repeated() is None
    assert filled([]).repeated() is None
    twice = sources[17]._replace(size=0, offset=0)
    assert filled([*sources, twice, Source(b"last", 0)]).repeated() == twice.name


def test_classes_of_folders_and_of_labels():
    def of(*names: bytes, class_folders: bool = True) -> Listing:
        listing = Listing(root="r", kind="files", described="d", class_folders=class_folders)
        for name in names:
            listing.add(Source(name, 1))
        return listing

    assert of(b"b/1.jpg", b"a/x/1.jpg", b"100%\xff/1.jpg").classes == ("100%25%FF", "a", "b")
    assert of(b"b/1.jpg", b"a/1.jpg")[1].class_name == "a"
    assert of(b"b/1.jpg", b"1.jpg").classes == ()
    assert of(b"b/1.jpg", class_folders=False).classes == ()
    assert of().classes == ()
    assert filled(made_up(9)).classes == ("tench, Tinca tinca", "Ünïcode")
