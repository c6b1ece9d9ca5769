"""The command line: ``diptych NAME ...``, one file per subcommand.

A command is a frozen dataclass of options and a ``main(options) -> exit code``, marked with ``@command``. Files here
handle arguments and print; the work is done by the layers below, which any program can import. Heavy imports stand
inside functions, so that ``diptych --help`` answers at once.

Exit codes: 0 done · 1 the work failed · 2 the user's mistake, reported in one line (``--debug`` shows the traceback).
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from diptych import config
from diptych.errors import DiptychError, PeerLostError
from diptych.registry import Registry

Main = TypeVar("Main", bound=Callable[[Any], int])


@dataclass(frozen=True)
class Command:
    """One subcommand: its function, its options, one example; ``parse`` replaces the plain way from flags to options."""

    main: Callable[[Any], int]
    options: type
    example: str
    parse: Callable[[Sequence[str]], Any] | None = None

    @property
    def summary(self) -> str:
        """The first line of the function's documentation."""
        return (self.main.__doc__ or "").strip().splitlines()[0]

    def read(self, name: str, argv: Sequence[str]) -> Any:
        """Turn flags into options; raises ConfigError, or SystemExit(0) for --help."""
        if self.parse is not None:
            return self.parse(argv)
        return config.parse(self.options, argv, program=f"diptych {name}", description=self.description)

    @property
    def description(self) -> str:
        """What --help says first: an example, then the function's documentation."""
        return f"Example: {self.example}\n\n{(self.main.__doc__ or '').strip()}"


COMMANDS: Registry[Command] = Registry(__name__, "command")


def command(name: str, *, example: str, parse: Callable[[Sequence[str]], Any] | None = None) -> Callable[[Main], Main]:
    """Decorate ``main(options: Options) -> int`` of a command's file."""

    def register(main: Main) -> Main:
        options = typing.get_type_hints(main)["options"]
        COMMANDS.register(name)(Command(main, options, example, parse))
        return main

    return register


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from diptych import __version__

        print(f"diptych {__version__}")
        return 0
    try:
        name, *flags = arguments
        chosen = COMMANDS.get(name)
        return chosen.main(chosen.read(name, flags))
    except DiptychError as error:
        if debug:
            raise
        if _says(error):
            print(f"diptych: {error.line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (``diptych models | head``): nobody reads on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("diptych: interrupted", file=sys.stderr)
        return 130


def _says(error: DiptychError) -> bool:
    """Whether this process is the one to say it: what is wrong on every process is said by one of them."""
    if error.on_every_rank or "RANK" not in os.environ:
        return os.environ.get("RANK", "0") == "0"
    from diptych.distributed.process_group import first_to_say, nobody_spoke

    if isinstance(error, PeerLostError) and not nobody_spoke():
        return False
    return first_to_say(error.line)


def overview() -> str:
    """One line per command."""
    names = COMMANDS.names()
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {COMMANDS.get(name).summary}" for name in names]
    return "\n".join(
        [
            "diptych: one toolkit for the whole life of a CLIP-style model, on any PyTorch accelerator.",
            "",
            "Example: diptych demo",
            "",
            *lines,
            "",
            "diptych NAME --help lists each command's options; --debug shows tracebacks; --version.",
        ]
    )
