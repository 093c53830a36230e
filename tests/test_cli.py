"""The command `maquette`: help, exit codes, messages, and the frozen surface."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import maquette
from maquette import cli
from maquette.cli.console import StageLines, size_text
from maquette.errors import InvalidInputError

SURFACE = Path(__file__).parent / "goldens" / "cli_surface.json"


def nested_commands() -> list[list[str]]:
    """Every command line prefix that runs something: `["generate"]`, `["models", "list"]`, ..."""
    commands = []
    for verb in cli.VERBS:
        module = importlib.import_module(f"maquette.cli.{verb.replace('-', '_')}")
        nested = getattr(module, "COMMANDS", None)
        commands += [[verb]] if nested is None else [[verb, name] for name in nested]
    return commands


def arguments_type(command: list[str]) -> type:
    module = importlib.import_module(f"maquette.cli.{command[0].replace('-', '_')}")
    found: type = module.Args if len(command) == 1 else module.COMMANDS[command[1]][0]
    return found


def flags_in_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the help lists, in its boxes: positional arguments in order, then every option, sorted."""
    assert cli.main([*command, "--help"]) == 0
    positional: list[str] = []
    options: set[str] = set()
    for box in re.split(r"^.{0,2} ?(?=(?:positional arguments|options) )", capsys.readouterr().out, flags=re.MULTILINE):
        names = re.findall(r"^[│ ] (\S.*?)(?:  |$)", box, flags=re.MULTILINE)  # descriptions start further right
        if box.startswith("positional"):
            positional = [name for name in names if not name.startswith("-")]
        options |= {part.split()[0] for name in names if name.startswith("-") for part in name.split(", ")}
    return positional + sorted(option for option in options - {"-h"} if option.strip("-") not in ("", "help"))


def test_help_is_fast_and_light() -> None:
    code = "import sys; from maquette.cli import main; main(['--help']); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in shown for verb in cli.VERBS)
    modules = shown.splitlines()[-1]
    assert not [name for name in ("torch", "numpy", "tyro", "rich") if f"'{name}'" in modules]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "maquette", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_help_of_every_verb_works_without_torch(verb: str) -> None:
    code = (
        f"import sys; from maquette.cli import main; code = main([{verb!r}, '--help']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: maquette {verb}" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_version_and_module_entry_points() -> None:
    for module in ("maquette", "maquette.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"maquette {maquette.__version__}\n"


def test_unknown_verbs_list_the_valid_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sculpt"]) == 2
    message = capsys.readouterr().err
    assert "unknown verb 'sculpt'" in message
    assert all(verb in message for verb in cli.VERBS)
    assert cli.main(["models", "paint"]) == 2
    assert "models list" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert cli.main(["help"]) == 0


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate"]) == 1
    assert "folder of views" in capsys.readouterr().err
    assert cli.main(["generate", "folder", "--frames", "many"]) == 2
    assert cli.main(["generate", "folder", "--no-such-option"]) == 2


def test_errors_are_one_message_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nothing"
    assert cli.main(["generate", str(missing)]) == 1
    message = capsys.readouterr().err
    assert str(missing) in message
    assert "Traceback" not in message
    assert cli.main(["generate", str(missing), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption_and_unexpected_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("maquette.cli.convert")

    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    def broken(args: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "run", interrupted)
    assert cli.main(["convert", "a.ply", "b.ply"]) == 130
    monkeypatch.setattr(module, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):  # bugs are not dressed up as user errors
        cli.main(["convert", "a.ply", "b.ply"])


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "maquette", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == cli.EXIT_BROKEN_PIPE
    assert done.stderr == b""


def test_surface_is_frozen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed verb or flag breaks people's scripts: change `tests/goldens/cli_surface.json` on purpose only.

    To rewrite it: `MAQUETTE_REWRITE_SURFACE=1 pytest tests/test_cli.py -k surface`.
    """
    monkeypatch.setenv("COLUMNS", "250")
    surface = {" ".join(command): flags_in_help(command, capsys) for command in nested_commands()}
    if os.environ.get("MAQUETTE_REWRITE_SURFACE"):
        SURFACE.write_text(json.dumps(surface, indent=1) + "\n")
    assert surface == json.loads(SURFACE.read_text())


def test_every_verb_and_option_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    for command in nested_commands():
        assert f"maquette {' '.join(command)}" in text
        assert (arguments_type(command).__doc__ or "").strip()
    documents = text + (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    flags = {flag for listed in json.loads(SURFACE.read_text()).values() for flag in listed if flag.startswith("--")}
    named = set(re.findall(r"--[a-z][a-z-]*", documents))
    assert not {flag for flag in flags if not flag.startswith("--no-")} - named


def test_conversion_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline_scenes import ball_of_gaussians

    source, target = tmp_path / "ball.ply", tmp_path / "ball.splat"
    maquette.write_gaussians(source, ball_of_gaussians())
    assert cli.main(["convert", str(source), str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert maquette.read_gaussians(target).num_gaussians == maquette.read_gaussians(source).num_gaussians
    assert cli.main(["convert", str(source), str(tmp_path / "ball.docx")]) == 1
    assert ".glb" in capsys.readouterr().err


def test_progress_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines = StageLines(sys.stderr)
    lines("render", 0, 3)
    lines("render", 2, 3)
    lines("render", 3, 3)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("render ")
    assert [size_text(n) for n in (12, 3400, 5_600_000)] == ["12 B", "3.4 kB", "5.6 MB"]


def test_messages_of_the_library_reach_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: object) -> int:
        raise InvalidInputError("needs four views")

    monkeypatch.setattr(importlib.import_module("maquette.cli.convert"), "run", refuse)
    assert cli.main(["convert", "a.ply", "b.ply"]) == 1
    assert capsys.readouterr().err == "maquette: needs four views\n"
