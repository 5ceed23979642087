"""What the verbs share: how a command line is read, and what it says of settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from pipeline import stages
from pipeline.config import Recipe, load_recipe
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import is_url


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{message}; `{self.prog} --help` tells how")


Verbs = argparse._SubParsersAction  # of Parser; what a file of verbs adds its own to


def path(text: str) -> Path:
    """A path that is not empty."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def place(text: str) -> str:
    """A path or a URL."""
    return text if is_url(text) else str(path(text))


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def with_settings() -> Parser:
    """Parent of every verb that takes settings: `--set`."""
    parser = Parser(add_help=False)
    parser.add_argument("--set", action="extend", nargs="+", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    return parser


def with_config() -> Parser:
    """Parent of every verb of one stage: `--set` and `--config`."""
    parser = Parser(add_help=False, parents=[with_settings()])
    parser.add_argument("--config", type=path, help="YAML file of settings; see configs/")
    return parser


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The settings that a command line names. Raises InputError for the first mistake in them."""
    return load_recipe(arguments.config, arguments.overrides)


def options_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The same settings, as a stage's command takes them."""
    return stages.config_arguments(arguments.config, arguments.overrides)
