"""The command `maquette`: one module per verb, found by the table below.

A verb's module offers either

- `Args`, a frozen dataclass whose docstring and field docstrings are the help, and `run(args: Args) -> int`, or
- `COMMANDS: dict[str, tuple[type, Callable[[Any], int]]]`, for nested verbs such as `maquette models list`: name
  to its own `Args` class and `run`.

This module stays light: `maquette --help` imports neither torch nor tyro, and verb modules import heavy things inside
their functions.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TextIO

import maquette
from maquette.errors import MaquetteError

VERBS: dict[str, str] = {
    "generate": "Pictures of an object, or a sentence, to Gaussians, mesh, turntable and contact sheet.",
    "render": "A .ply, .splat or .glb file to a picture, a contact sheet or a turntable video.",
    "view": "A 3D file in the browser, or as one HTML page that works offline.",
    "convert": "One 3D file format to another.",
    "app": "A web page and an HTTP API that make, show and edit 3D objects.",
    "refine": "A mesh moved until its normals match given normal maps.",
    "models": "List, describe, download and import models.",
    "data": "Render 3D assets to posed pictures for training and evaluation.",
    "train": "Train a model on rendered assets.",
    "evaluate": "Measure a model on novel views.",
    "evaluate-views": "Measure a generator of views from fronts and captions.",
    "bench": "Measure speed and memory on this machine.",
    "doctor": "Say what this machine can do, and check that it works.",
}
"""Verb to its one-line help. The module of verb `x-y` is `maquette.cli.x_y`."""

_LIST_WORD = re.compile(r"(ply|splat|glb|mp4|png|\d+)?(,(ply|splat|glb|mp4|png|\d+)?)*")
"""What the lists of `--formats` and `--pick` are made of."""

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

Run = Callable[[Any], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0 fine, 1 error, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nmaquette: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`maquette ... | head`): nothing more can be said there.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"maquette: {message}", file=sys.stderr)
        return EXIT_ERROR


def _message(error: Exception) -> str | None:
    """What to tell the user; None for an error that nobody foresaw."""
    if isinstance(error, MaquetteError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        reason = str(error).split("\n")[0]
        return f"not enough memory ({reason}): choose a smaller size or batch, or --device cpu if the GPU is full"
    return None


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return EXIT_OK if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version"):
        print(f"maquette {maquette.__version__}")
        return EXIT_OK
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        return _usage_error(f"unknown verb {verb!r}", list(VERBS))
    module = importlib.import_module(f"maquette.cli.{verb.replace('-', '_')}")
    commands: dict[str, tuple[type, Run]] | None = getattr(module, "COMMANDS", None)
    if commands is None:
        return _run(f"maquette {verb}", module.Args, module.run, rest)
    return _dispatch_nested(verb, module, commands, rest)


def _dispatch_nested(verb: str, module: ModuleType, commands: dict[str, tuple[type, Run]], rest: list[str]) -> int:
    if not rest or rest[0] in ("-h", "--help"):
        print(_nested_overview(verb, commands))
        return EXIT_OK if rest else EXIT_USAGE
    if rest[0] not in commands:
        return _usage_error(f"unknown verb {verb + ' ' + rest[0]!r}", [f"{verb} {name}" for name in commands])
    arguments_type, run = commands[rest[0]]
    return _run(f"maquette {verb} {rest[0]}", arguments_type, run, rest[1:])


def _run(prog: str, arguments_type: type, run: Run, rest: list[str]) -> int:
    import tyro

    try:
        parsed: Any = tyro.cli(arguments_type, prog=prog, args=rest)
    except SystemExit as stop:  # tyro has printed help (0) or what is wrong with the arguments (2)
        if stop.code and (listed := _split_list(rest)):
            print(f"maquette: lists are written with commas and without spaces: {listed}", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return run(parsed)


def _split_list(rest: list[str]) -> str | None:
    """The right form of a list that was given with spaces (`--formats ply glb`), or None if there is none."""
    for name in ("--formats", "--pick"):
        if name in rest:
            after = rest[rest.index(name) + 1 :]
            words = list(itertools.takewhile(_LIST_WORD.fullmatch, after))
            if len(words) > 1:
                return f"{name} {','.join(word.strip(',') for word in words)}"
    return None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Like `warnings.showwarning`; what the library says to users comes without its place in the sources."""
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _overview() -> str:
    lines = [
        f"maquette {maquette.__version__}: pictures in, 3D assets out.",
        "",
        "usage: maquette VERB ...        maquette VERB --help tells more",
        "",
        *(f"  {verb:<14} {line}" for verb, line in VERBS.items()),
        "",
        "  --debug    anywhere on the line: show the traceback of an error",
        "  --version  print the version",
        "",
        "A first try: maquette doctor; maquette generate VIEWS_DIR -o outputs",
    ]
    return "\n".join(lines)


def _nested_overview(verb: str, commands: dict[str, tuple[type, Run]]) -> str:
    width = max(len(name) for name in commands)
    lines = [f"usage: maquette {verb} COMMAND ...        maquette {verb} COMMAND --help tells more", ""]
    for name, (arguments_type, _) in commands.items():
        summary = (arguments_type.__doc__ or "").strip().split("\n")[0]
        lines.append(f"  {name:<{width}}  {summary}")
    return "\n".join([VERBS[verb], "", *lines])


def _usage_error(message: str, valid: list[str]) -> int:
    print(f"maquette: {message}; valid: {', '.join(valid)}. See: maquette --help", file=sys.stderr)
    return EXIT_USAGE
