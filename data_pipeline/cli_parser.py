"""What the verbs of `fovea` share: how they are declared; whole numbers and files to write as arguments."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class IntermixedParser(argparse.ArgumentParser):
    """Lets `key=value` stand after options; plain argparse refuses `RECIPE --out DIR key=value`."""

    _inside = False

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        # parse_known_intermixed_args calls back, and it does not know verbs within verbs.
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help_text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=help_text,
        description=f"{help_text[0].upper()}{help_text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run_verb=run)
    return parser


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def new_file(text: str) -> Path:
    """Where a file is to be written: better refused now than after hours of work."""
    if (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory: name a file, {path / 'NAME'} say")
    return path


def natural(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value
