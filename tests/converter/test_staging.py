"""No half model, no orphaned gigabytes: cancelled, interrupted, killed at any moment, disk full."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lite_llama.app.library import scan
from lite_llama.converter import (
    Cancelled,
    Notice,
    Part,
    Progress,
    clean_up,
    convert,
    discard_part,
    parts,
    remove,
    rename,
    staging,
)
from lite_llama.converter.huggingface import HuggingFaceSource
from lite_llama.converter.writer import WeightsWriter
from lite_llama.models.checkpoint import MANIFEST, Checkpoint
from lite_llama.models.errors import UserError

# A process that converts, in a fork per moment, and is killed at that moment. Arguments: source, a directory
# for the results, moments. It is one process because the imports take longer than the conversions.
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
import torch, tokenizers
from lite_llama.converter import convert, staging, writer

source, root, *moments = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def run(moment):
    models = Path(root, moment, "models")
    force = moment.startswith("force")
    if force:  # there is a model of that name already, which was not cast
        list(convert(source, models, Path(root, moment, "downloads")))
    kind, number = moment.split("-")[-2:]
    if kind == "rename":
        original, count = Path.rename, [0]
        def rename(path, target):
            count[0] += 1
            if count[0] == int(number):
                die()
            return original(path, target)
        Path.rename = rename
    if kind == "discard":
        staging._discard = lambda *_: die()
    if kind == "timer":
        threading.Timer(int(number) / 1000, die).start()
    options = {"dtype": "bfloat16", "force": force}
    for step, event in enumerate(convert(source, models, Path(root, moment, "downloads"), **options)):
        if kind == "event" and step == int(number):
            die()

for moment in moments:
    child = os.fork()
    if not child:
        run(moment)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(moment, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)
"""
MOMENTS = [
    "event-0",
    "event-9",
    "event-28",
    "timer-1",
    "timer-5",
    "timer-15",
    "rename-1",
    "discard-0",
    "force-event-9",
    "force-rename-1",
    "force-rename-2",
    "force-discard-0",
]


def hidden(models_dir: Path) -> list[str]:
    return [path.name for path in models_dir.glob(".*")]


@pytest.fixture(scope="module")
def killed(tiny_llama, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(tiny_llama), str(root), *MOMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    signals = dict(line.split() for line in done.stdout.splitlines())
    assert set(signals) == set(MOMENTS)
    assert all(signal == "9" for moment, signal in signals.items() if "timer" not in moment)
    return root


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(killed, tiny_llama, moment):
    models_dir, downloads_dir = killed / moment / "models", killed / moment / "downloads"
    clean_up(models_dir, downloads_dir)
    assert not hidden(models_dir)
    # The new model when it was killed after the rename, else the old one, if there was one, and sound.
    dtypes = []
    for checkpoint in scan(models_dir).models:
        checkpoint.verify(force=True)
        dtypes.append(checkpoint.manifest.dtype)
    if moment.endswith("discard-0"):
        assert dtypes == ["bfloat16"]
    elif "timer" not in moment:
        assert dtypes == (["float32"] if moment.startswith("force") else [])
    assert len(list(models_dir.glob("*"))) == len(dtypes)
    list(convert(str(tiny_llama), models_dir, downloads_dir, force=True))
    assert hidden(models_dir) == []
    Checkpoint.open(models_dir / "tiny-llama").verify(force=True)


def test_clean_up_frees_what_was_written_and_says_how_much(models_dir, downloads_dir):
    orphan = models_dir / ".staging-abc" / "new" / "model"
    orphan.mkdir(parents=True)
    (orphan / "model.safetensors").write_bytes(bytes(1000))
    assert clean_up(models_dir, downloads_dir) == 1000
    assert not any(models_dir.iterdir())


def test_clean_up_without_directories(models_dir, downloads_dir):
    assert clean_up(models_dir, downloads_dir) == 0


def test_clean_up_leaves_a_running_conversion_alone(llama, models_dir, downloads_dir):
    events = convert(str(llama), models_dir, downloads_dir)
    next(events)
    assert clean_up(models_dir, downloads_dir) == 0
    list(events)
    Checkpoint.open(models_dir / "tiny-llama").verify(force=True)


def test_clean_up_sweeps_old_downloads_that_nobody_uses(models_dir, downloads_dir):
    for name in ("old", "young", "used"):
        (downloads_dir / name).mkdir(parents=True)
        (downloads_dir / name / "model.safetensors.part").write_bytes(bytes(100))
    with staging.download_directory(downloads_dir / "used"):
        week = time.time() - 8 * 24 * 3600
        for name in ("old", "used"):
            for path in [*(downloads_dir / name).iterdir(), downloads_dir / name]:
                os.utime(path, (week, week))
        assert clean_up(models_dir, downloads_dir) == 100
    assert sorted(path.name for path in downloads_dir.iterdir()) == ["used", "young"]


def test_a_download_directory_is_for_one_process(downloads_dir):
    with (
        staging.download_directory(downloads_dir / "repo"),
        pytest.raises(UserError, match="repo is being downloaded by another run"),
        staging.download_directory(downloads_dir / "repo"),
    ):
        pass
    with staging.download_directory(downloads_dir / "repo"):
        pass


# A process that converts, keeping its part after every tensor, and is killed at the event of that number.
STOPPED = """
import os, signal, sys
from pathlib import Path
from lite_llama.converter import convert

sys.modules[convert.__module__].KEEP_EVERY_S = 0
source, models, downloads, number = sys.argv[1:]
for step, _ in enumerate(convert(source, Path(models), Path(downloads), dtype="bfloat16")):
    if step == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def stopped(llama, models_dir, downloads_dir) -> Part:
    """What a conversion of `llama` to bfloat16 left that was killed after some tensors."""
    command = [sys.executable, "-c", STOPPED, str(llama), str(models_dir), str(downloads_dir), "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == -9, done.stderr
    [part] = parts(models_dir)
    return part


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the tensors that are read from a source from now on."""
    names: list[str] = []
    read = HuggingFaceSource.read

    def record(self, name):
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(HuggingFaceSource, "read", record)
    return names


def test_a_killed_conversion_is_resumed(llama, stopped, reads, run, models_dir, downloads_dir):
    assert (stopped.name, stopped.source, stopped.dtype) == ("tiny-llama", str(llama), "bfloat16")
    assert 0 < stopped.done < stopped.total
    assert clean_up(models_dir, downloads_dir) == 0
    events = list(convert(str(llama), models_dir, downloads_dir, dtype="bfloat16"))
    resumed = len(reads)
    assert any(isinstance(event, Notice) and "Going on with" in event.text for event in events)
    assert hidden(models_dir) == []
    model = Checkpoint.open(models_dir / "tiny-llama")
    model.verify(force=True)
    reads.clear()
    anew = run(llama, name="anew", dtype="bfloat16")
    assert 0 < resumed < len(reads)
    assert model.weights.read_bytes() == anew.weights.read_bytes()
    assert model.manifest.files == anew.manifest.files


def spoil_weights(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 4] ^= 1
    part.write_bytes(content)


def truncate_weights(part: Path) -> None:
    os.truncate(part, 5000)


@pytest.mark.parametrize("spoil", [spoil_weights, truncate_weights])
def test_a_part_that_is_not_what_was_written_is_not_trusted(
    llama, stopped, reads, run, models_dir, downloads_dir, spoil
):
    [weights] = models_dir.glob(".staging-*/new/*/model.safetensors")
    spoil(weights)
    run(llama, dtype="bfloat16").verify(force=True)
    assert len(reads) == len(HuggingFaceSource(llama).shapes)


@pytest.mark.parametrize("changed", ["source", "dtype", "name"])
def test_a_part_of_something_else_is_not_taken(llama, stopped, reads, run, models_dir, changed):
    if changed == "source":
        os.utime(llama / "model.safetensors", (1, 1))
    options = {"dtype": "float16" if changed == "dtype" else "bfloat16"}
    run(llama, **options, **({"name": "other"} if changed == "name" else {})).verify(force=True)
    assert len(reads) == len(HuggingFaceSource(llama).shapes)
    assert parts(models_dir) == ([stopped] if changed == "name" else [])


def test_a_cancelled_conversion_is_resumed(llama, reads, run, models_dir, downloads_dir, monkeypatch):
    monkeypatch.setattr(sys.modules[convert.__module__], "KEEP_EVERY_S", 0)
    cancel = threading.Event()
    with pytest.raises(Cancelled):  # noqa: PT012
        for step, _ in enumerate(convert(str(llama), models_dir, downloads_dir, cancel=cancel)):
            if step == 12:
                assert parts(models_dir) == []  # it runs
                cancel.set()
    [part] = parts(models_dir)
    before = len(reads)
    run(llama).verify(force=True)
    assert before + len(reads[before:]) <= len(HuggingFaceSource(llama).shapes) + 1  # the one at hand, again
    assert (part.name, parts(models_dir)) == ("tiny-llama", [])


def test_removing_a_model_leaves_the_part_of_its_name(llama, stopped, run, models_dir):
    run(llama, name="other", dtype="bfloat16")
    rename(models_dir, "other", stopped.name)
    remove(models_dir, stopped.name)
    assert parts(models_dir) == [stopped]
    assert not (models_dir / stopped.name).exists()


def test_a_part_can_be_discarded(stopped, models_dir):
    assert discard_part(models_dir, stopped) >= stopped.done
    assert hidden(models_dir) == []


def test_an_old_part_is_swept(stopped, models_dir, downloads_dir):
    [record] = models_dir.glob(".staging-*/part.json")
    os.utime(record, (1, 1))
    assert clean_up(models_dir, downloads_dir) >= stopped.done
    assert hidden(models_dir) == []


def test_rename(llama, run, models_dir):
    run(llama)
    rename(models_dir, "tiny-llama", "Small")
    assert [path.name for path in models_dir.iterdir()] == ["Small"]
    model = Checkpoint.open(models_dir / "Small")
    assert model.manifest.name == "Small"
    model.verify(force=True)
    run(llama)
    for new, why in (("tiny-llama", "already a model called"), ("../x", "cannot be a model's name")):
        with pytest.raises(UserError, match=why):
            rename(models_dir, "Small", new)
    with pytest.raises(UserError, match="There is no model called gone"):
        rename(models_dir, "gone", "there")
    assert sorted(path.name for path in models_dir.iterdir()) == ["Small", "tiny-llama"]


@pytest.mark.parametrize("manifest", ["{", "[]", "null", "{}", "\xff"])
def test_a_damaged_model_is_not_renamed(llama, run, models_dir, manifest):
    path = run(llama).path
    (path / MANIFEST).write_text(manifest, encoding="latin-1")
    with pytest.raises(UserError, match="manifest of tiny-llama is damaged"):
        rename(models_dir, "tiny-llama", "Small")
    assert [each.name for each in models_dir.iterdir()] == ["tiny-llama"]


@pytest.mark.parametrize("at", [0, 5, -1])
def test_cancelled(llama, models_dir, downloads_dir, at):
    total = sum(1 for _ in convert(str(llama), models_dir, downloads_dir, name="whole"))
    cancel = threading.Event()
    events = convert(str(llama), models_dir, downloads_dir, cancel=cancel)
    last = range(total - 1)[at]  # the one before Done
    with pytest.raises(Cancelled):  # noqa: PT012
        for step, _ in enumerate(events):
            if step == last:
                cancel.set()
    assert [path.name for path in models_dir.iterdir()] == ["whole"]


def test_closed(llama, models_dir, downloads_dir):
    with contextlib.closing(convert(str(llama), models_dir, downloads_dir)) as events:
        for event in events:
            if isinstance(event, Progress) and event.done:
                break
        assert hidden(models_dir)
    assert not any(models_dir.iterdir())


def test_ctrl_c(llama, run, models_dir, monkeypatch):
    """KeyboardInterrupt is raised wherever the program happens to be, such as inside a write."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WeightsWriter, "_append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(llama)
    assert not any(models_dir.iterdir())


def test_name_is_taken(llama, run, models_dir):
    before = run(llama)
    with pytest.raises(UserError, match="already a model called tiny-llama: replace it with --force"):
        run(llama, dtype="float16")
    before.verify(force=True)
    assert run(llama, dtype="float16", force=True).manifest.dtype == "float16"
    assert [path.name for path in models_dir.iterdir()] == ["tiny-llama"]


def test_name_is_taken_while_converting(llama, run, models_dir, downloads_dir):
    events = convert(str(llama), models_dir, downloads_dir)
    next(events)
    first = run(llama)
    with pytest.raises(UserError, match="already a model called tiny-llama"):
        list(events)
    first.verify(force=True)
    assert [path.name for path in models_dir.iterdir()] == ["tiny-llama"]


def test_a_directory_that_is_no_model_is_never_replaced(llama, run, models_dir):
    (models_dir / "tiny-llama").mkdir(parents=True)
    (models_dir / "tiny-llama" / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match="is in the way and is no model"):
        run(llama, force=True)
    assert (models_dir / "tiny-llama" / "letters.txt").read_text() == "dear"


def test_remove(llama, run, models_dir):
    size = run(llama).size
    assert remove(models_dir, "tiny-llama") >= size
    assert not any(models_dir.iterdir())
    with pytest.raises(UserError, match="There is no model called tiny-llama"):
        remove(models_dir, "tiny-llama")


@pytest.mark.parametrize("name", ["", ".", "..", "../models", "/etc", ".hidden", "a/b"])
def test_remove_takes_names_only(models_dir, name):
    models_dir.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be a model's name"):
        remove(models_dir, name)


def test_too_little_space_is_said_before_anything_is_written(llama, run, models_dir, monkeypatch):
    usage = type("Usage", (), {"free": 50_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"\d+ MB are needed on the disk of .* \d+ MB are free"):
        run(llama)
    assert not models_dir.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_becomes_full(llama, run, models_dir, monkeypatch, code):
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(WeightsWriter, "_append", full)
    with pytest.raises(UserError, match="The disk became full during the conversion"):
        run(llama)
    assert not any(models_dir.iterdir())


def test_full_disk_in_earnest(llama, downloads_dir, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(UserError, match=r"are needed on the disk of .*disk and \d+ [kM]B are free"):
            list(convert(str(llama), disk / "models", downloads_dir))
        usage = type("Usage", (), {"free": 1 << 40})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(UserError, match="The disk became full during the conversion"):
            list(convert(str(llama), disk / "models", downloads_dir))
        assert not any((disk / "models").iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_models_directory_cannot_be_written(llama, tmp_path, downloads_dir):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/models: Not a directory"):
        list(convert(str(llama), tmp_path / "file" / "models", downloads_dir))
