"""The command line: every command explains itself, and every mistake is one clear message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from cache import describe, open_cache
from cache_making import IDENTITY, make_cache
from pipeline.config import Run
from stages import cache_cli, cli
from stages.info import show
from stages.progress import console

COMMANDS = [
    (cli.app, "prepare"),
    (cli.app, "teach"),
    (cli.app, "distill"),
    (cli.app, "evaluate"),
    (cli.app, "export"),
    (cli.app, "bench-student"),
    (cli.app, "report"),
    (cli.app, "mean"),
    (cli.app, "ablate"),
    (cli.app, "models"),
    (cli.app, "predict"),
    (cache_cli.app, "extract"),
    (cache_cli.app, "info"),
    (cache_cli.app, "plan"),
    (cache_cli.app, "verify"),
    (cache_cli.app, "repair"),
    (cache_cli.app, "push"),
    (cache_cli.app, "pull"),
    (cache_cli.app, "ls"),
]


@pytest.mark.parametrize(("app", "command"), COMMANDS)
def test_every_command_has_a_help(app: typer.Typer, command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_all_commands_are_tried_here() -> None:
    named = {
        (id(app), command.name or command.callback.__name__)
        for app in (cli.app, cache_cli.app)
        for command in app.registered_commands
        if command.callback
    }
    assert named == {(id(app), name) for app, name in COMMANDS}


def run(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> int:
    """Run a command as its entry point does; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit) as stop:
        {"dualkd": cli.main, "dualkd-cache": cache_cli.main}[command]()
    return int(stop.value.code or 0)


def test_an_unknown_dataset_lists_the_configs(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dualkd", "prepare", "--dataset", "k4000") == 1
    error = capsys.readouterr().err
    assert "k4000" in error
    assert "mini" in error
    assert "Traceback" not in error


def test_all_mistakes_of_a_config_are_shown_at_once(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("configs/mini.yaml")
    text = path.read_text()
    text = text.replace("pool: 14", "pool: -1").replace("kind: aligned", "kind: alinged")
    path.write_text(text.replace("temperature: 2.0", "temprature: 2.0"))
    assert run(monkeypatch, "dualkd-cache", "extract", "--dataset", "mini") == 1
    error = capsys.readouterr().err
    for part in ("teach.pool", "-1", "extract.projection.kind", "alinged", "distill.temprature"):
        assert part in error
    assert "distill.temperature" in error  # it is missing now


def test_a_full_gpu_is_one_message(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_given: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand so on")

    monkeypatch.setattr("stages.teach.teach", full)
    assert run(monkeypatch, "dualkd", "teach", "--dataset", "mini") == 1
    error = capsys.readouterr().err
    assert "error: CUDA out of memory. Tried to allocate 2 GiB. A smaller --batch-size" in error
    assert "and so on" not in error


def test_an_unusable_device_is_refused(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("distill", "--dataset", "mini", "--device", "tpu9")
    assert run(monkeypatch, "dualkd", *arguments) == 2
    assert "tpu9" in capsys.readouterr().err


def test_an_unknown_model_names_the_nearest(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("configs/mini.yaml")
    path.write_text(path.read_text().replace("student: pytorchvideo/x3d_nano", "student: x3d_nono"))
    assert run(monkeypatch, "dualkd", "distill", "--dataset", "mini") == 1
    assert "pytorchvideo/x3d_nano" in capsys.readouterr().err


def test_extract_stores_the_clips_of_students_that_the_command_names(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("extract", "--dataset", "mini", "--clips")
    assert run(monkeypatch, "dualkd-cache", *command, "pytorchvideo/x3d_tiny") == 0
    assert set(open_cache(mini.cache_path).fields) >= {
        "clip/pytorchvideo/x3d_tiny",
        "clip/pytorchvideo/x3d_nano",  # the config's
    }
    assert run(monkeypatch, "dualkd-cache", *command, "x3d_nono") == 1
    assert "pytorchvideo/x3d_nano" in capsys.readouterr().err


def test_extract_stores_clips_in_the_format_that_the_command_names(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("extract", "--dataset", "mini", "--clips", "pytorchvideo/x3d_tiny", "--clips-as")
    assert run(monkeypatch, "dualkd-cache", *command, "png") == 2
    assert "--clips-as takes raw or jpeg, got 'png'" in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, "dualkd-cache", *command, "jpeg") == 0
    fields = open_cache(mini.cache_path).fields
    assert "jpeg" in fields["clip/pytorchvideo/x3d_tiny"].dims
    assert "height" in fields["clip/pytorchvideo/x3d_nano"].dims
    assert run(monkeypatch, "dualkd-cache", "info", str(mini.cache_path)) == 0
    assert "×2048 JPEG" in capsys.readouterr().out


def test_info_as_json_and_as_a_table(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dualkd-cache", "info", str(mini.cache_path), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["coverage"] == 1
    assert facts["samples"] == 14
    assert run(monkeypatch, "dualkd-cache", "info", str(mini.cache_path)) == 0
    table = capsys.readouterr().out
    assert facts["fingerprint"] in table
    assert "vit/logits/action" in table


def test_info_reads_a_cache_at_a_url(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = mini.cache_path.absolute().as_uri()
    assert run(monkeypatch, "dualkd-cache", "info", url) == 0
    assert "100.0%, 28 valid rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [("verify", "s3://b/c"), ("repair", "s3://b/c"), ("extract", "--out", "s3://b/c")]
)
def test_other_commands_refuse_a_url(
    mini: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    more = ("--dataset", "mini") if arguments[0] == "extract" else ()
    assert run(monkeypatch, "dualkd-cache", *arguments, *more) == 2
    assert "is a URL" in capsys.readouterr().err
    assert not Path("s3:").exists()


def test_info_on_no_cache_says_so(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dualkd-cache", "info", "configs") == 1
    assert "configs" in capsys.readouterr().err


STEERING = "[/nope]:x:\x1b[31m\x9b2J\x07\r\u202e"
SPELLED = r"[/nope]:x:\x1b[31m\x9b2J\x07\r\u202e"


@pytest.mark.parametrize("claims", [{}, {"accuracy": []}, {"accuracy": {"vit": {"top1": "x"}}}])
@pytest.mark.parametrize(
    "inputs",
    [
        {"dataset": "tiny"},
        {"dataset": ["tiny"], "teachers": ["mvit"]},
        {"dataset": {"name": [[]]}, "teachers": {"vit": "mvit", "cnn": [1], "": None}},
        {"dataset": {}, "teachers": {"vit": {"model": 10**300, "weights_sha256": {}}}},
    ],
)
def test_info_shows_what_a_stranger_says_of_itself(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    inputs: dict[str, Any],
    claims: dict[str, Any],
) -> None:
    identity = {"format_version": 1, **inputs}
    make_cache(tmp_path / "c", identity=identity, provenance=claims).close()
    show(describe(tmp_path / "c"))
    out = capsys.readouterr().out
    assert "10 (7 train, 3 test)" in out
    assert "top-1" not in out


def test_what_a_stranger_writes_does_not_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No control characters, and no markup, be it in a table, a line, or an error."""
    monkeypatch.setenv("COLUMNS", "1000")
    teacher = {"model": STEERING, "weights_sha256": STEERING}
    identity = {**IDENTITY, "dataset": {"name": STEERING}, "teachers": {"vit": teacher}}
    accuracy = {"top1": 0.5, "top5": 0.75, "videos": [4], "split": STEERING}
    path = tmp_path / "c"
    make_cache(path, identity=identity, provenance={"accuracy": {"vit": accuracy}}).close()
    (path / f"{STEERING.replace('/', '')}\udcff").touch()  # the byte 0xff is no UTF-8
    assert run(monkeypatch, "dualkd-cache", "info", str(path)) == 0
    shown = capsys.readouterr().out
    assert shown.count(SPELLED) == 3
    assert f"top-1 50.0%, top-5 75.0%, [4] videos of {SPELLED}" in shown
    assert run(monkeypatch, "dualkd-cache", "verify", str(path)) == 1
    found = capsys.readouterr().out
    assert rf"{SPELLED.replace('/', '')}\udcff belongs to nothing" in found
    assert run(monkeypatch, "dualkd-cache", "info", str(tmp_path / STEERING)) == 1
    error = capsys.readouterr().err
    assert SPELLED in error
    console.print(STEERING)
    assert capsys.readouterr().err == f"{SPELLED}\n"
    assert all(part.isprintable() for part in (shown + found + error).split("\n"))


WAITING = """
import os, signal, sys, time
from stages import cache_cli, cli

@cache_cli.app.command()
def wait() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        {ending}

cli._ORDERLY_SEC = {seconds}
sys.argv = ["dualkd-cache", "wait"]
cache_cli.main()
"""


@pytest.mark.parametrize(
    ("ending", "seconds"),
    [
        ("pass", 60),
        ("time.sleep(60)", 0.1),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", 60),
    ],
    ids=["in order", "late", "once more"],
)
def test_ctrl_c_is_one_message(ending: str, seconds: float) -> None:
    code = WAITING.format(ending=ending, seconds=seconds)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    told = "interrupted: what was finished is kept, and the same command makes the rest\n"
    assert done.stderr == told


def test_help_does_not_import_torch() -> None:
    """Commands answer at once; torch takes seconds to import."""
    code = "import sys, stages.cli, stages.cache_cli; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
