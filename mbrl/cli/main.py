"""The command line, `mbrl COMMAND …`. Commands import their modules when they run, so that help is printed at once."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from mbrl.cli.arguments import add_commands
from mbrl.cli.completion import add_completions, complete
from mbrl.cli.configured import CONFIGURED, run_configured
from mbrl.cli.errors import TRACEBACK, show
from mbrl.errors import UserError, one_line
from mbrl.processes.stopping import interrupt

INTERRUPTED = 130
UNREAD = 128 + signal.SIGPIPE
EPILOG = """\
`mbrl COMMAND --help` shows its arguments, with examples. A first run, in miniature: mbrl train experiment=smoke
Shell completion in bash and zsh: eval "$(register-python-argcomplete mbrl)"
"""
NOT_INSTALLED = "mbrl is not installed here: in the clone, give `make setup` or pip install -e ."
RESUMED = dict.fromkeys(CONFIGURED, "from the last checkpoint") | {"collect": "with what is missing"}


class Version(argparse.Action):
    """Prints the installed version, which is looked up only for this option."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        from mbrl.run_folder.provenance import DISTRIBUTION

        try:
            print(f"mbrl {version(DISTRIBUTION)}")
        except PackageNotFoundError:
            raise UserError(NOT_INSTALLED) from None
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


class LineFormatter(logging.Formatter):
    """Formats a message as one line: the name of a stranger's file could control the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def build_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of all commands, and their names."""
    parser = Parser(
        prog="mbrl",
        description="Model-based reinforcement learning for robot manipulation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version_help = "print the version and exit"
    parser.add_argument("--version", action=Version, nargs=0, default=argparse.SUPPRESS, help=version_help)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = commands.add_parser("train", help="train an agent, or resume its run", add_help=False)
    pretrain = commands.add_parser(
        "pretrain", help="train a world model on folders of episodes, or resume", add_help=False
    )
    add_completions(train, "train")
    add_completions(pretrain, "pretrain")
    add_commands(commands)
    return parser, list(commands.choices)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code.

    Exit codes: 0 done; 1 failed during the run (full disk, NaN in a loss, a defect); 2 the command or a setting is
    wrong; 130 interrupted; 141 nobody reads the output any more.

    Args:
        arguments: the command and its arguments; None for those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("mbrl: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a letter of a path or of a table
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        command = arguments[0] if arguments else ""
        resumed = f"; the same command resumes {RESUMED[command]}" if command in RESUMED else ""
        print(f"\nmbrl: interrupted{resumed}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        in_run = bool(arguments) and arguments[0] in CONFIGURED
        if isinstance(error, BrokenPipeError) and _is_unread():
            sys.exit(UNREAD)
        sys.exit(show(error, in_run=in_run))


def _is_unread() -> bool:
    """Whether the reader of the output, such as `head`, has ended; later output is then discarded."""
    poll = select.poll()  # The pipe of a worker may have broken instead.
    poll.register(sys.stdout, select.POLLOUT)
    broken = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return broken


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in CONFIGURED:
        return run_configured(arguments[0], arguments[1:])
    parser, commands = build_parser()
    complete(parser)
    if not arguments:
        parser.print_help()
        return 0
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        close = difflib.get_close_matches(arguments[0], commands, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(commands)}"
        raise UserError(f"no command {arguments[0]!r}; {hint}")
    options = parser.parse_args(arguments)
    return int(options.run(options))
