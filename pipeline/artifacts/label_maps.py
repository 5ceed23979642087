"""Names of a sample's label maps, and of the members that hold them."""

from __future__ import annotations

MAIN_MAP = ""  # the superpixels; every further map has a name. Finished shards of unfinished jobs say it so on disk.


def map_member(name: str) -> str:
    """The member that holds the map `name`."""
    return "superpixels.png" if name == MAIN_MAP else f"superpixels-{name}.png"
