"""The bench command: every mode's figures add up, both sides did the same work, and doubt is answered."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lite_llama.app.bench import profile, roofline, startup, ui
from lite_llama.app.bench.first_token import main as first_token
from lite_llama.app.bench.roofline import CopyBandwidth, kv_bytes, step_traffic, weight_bytes
from lite_llama.app.bench.shapes import SHAPES
from lite_llama.app.bench.subject import Subject
from lite_llama.app.bench.timing import percentiles, time_decode
from lite_llama.app.bench.workload import Job, Replies, ragged_jobs
from lite_llama.models.checkpoint import Checkpoint
from lite_llama.models.config import ModelConfig
from lite_llama.models.decoder import Decoder
from lite_llama.models.errors import UserError
from lite_llama.models.weights import parameter_count

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "rope_parameters": SHAPES["Llama-3.2-1B"]["rope_parameters"],
    "tie_word_embeddings": True,
    "dtype": "float32",
}
PUBLISHED = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3-8B": 8_030_261_248,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "SmolLM2-135M": 134_515_008,
    # Less the last layer of the image encoder and the norm after it, which nothing reads.
    "LLaVA-1.5-7B": 7_063_427_072 - 12_598_272,
    "LLaVA-1.5-13B": 13_351_494_656 - 12_598_272,
}


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape called tiny, and copies that take no time."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 1 << 20)


@pytest.fixture
def bench(cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a mode on the CPU and returns its JSON, which is the same on stdout and in the file."""

    def run(mode: str, *options: str | int) -> dict[str, Any]:
        result = cli("bench", mode, *options, "--device", "cpu", "--json", "--out", tmp_path)
        assert result.exit_code == 0, (result.output, result.exception)
        report = json.loads(result.stdout)
        (file,) = tmp_path.glob("*.json")
        assert json.loads(file.read_text()) == report
        assert file.name.startswith(f"{mode}-tiny-cpu-")
        assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert report["mode"] == mode
        assert report["command"].startswith(f"lite-llama-tui bench {mode} ")
        assert report["dtype"] == "float32"
        assert {"torch", "triton", "transformers", "python", "cuda"} <= set(report["versions"])
        return report

    return run


def test_shapes_are_the_published_ones():
    shapes = {name: raw for name, raw in SHAPES.items() if name != "tiny"}
    assert {name: parameter_count(ModelConfig.from_dict(raw)) for name, raw in shapes.items()} == PUBLISHED


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen2.5-0.5B", "Qwen3-8B"])
def test_transformers_builds_the_same_from_a_shape(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = ModelConfig.from_dict(SHAPES[name])
    theirs = AutoConfig.for_model(**SHAPES[name])
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(theirs)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert theirs.rope_parameters["rope_theta"] == ours.rope.theta
    assert theirs.rope_parameters["rope_type"] == ours.rope.kind
    assert theirs.rms_norm_eps == ours.rms_norm_eps


def test_decode(bench):
    report = bench("decode", "--shape", "tiny", "--batch", 1, "--batch", 3, "--batch", 2,
                   "--compare-batch", 1, "--compare-batch", 3,
                   "--prompt-tokens", 12, "--new-tokens", 32, "--repeats", 3)  # fmt: skip
    rows = report["results"]
    assert [(row["engine"], row["batch"]) for row in rows] == [
        ("lite_llama", 1),
        ("transformers", 1),
        ("lite_llama", 2),
        ("lite_llama", 3),
        ("transformers", 3),
    ]
    copy = report["copy_bandwidth"]
    assert copy["gb_per_s"] == pytest.approx(2e-9 * copy["bytes"] / statistics.median(copy["repeats_s"]))
    for row in rows:
        batch = row["batch"]
        assert row["generated_tokens"] == [32] * batch
        assert len(row["one_token_repeats_s"]) == len(row["all_tokens_repeats_s"]) == 3
        difference = statistics.median(row["all_tokens_repeats_s"]) - row["ttft_s"]
        assert row["decode_tokens_per_s"] == pytest.approx(batch * 31 / difference)
        assert row["repeats_gave_the_same_tokens"]
        assert row["weight_bytes_per_step"] == 4 * report["parameters"]
        assert row["kv_bytes_per_step"] == batch * 2 * 2 * 32 * 4 * (12 + 16)
        read = row["weight_bytes_per_step"] + row["kv_bytes_per_step"]
        assert row["gb_per_s"] == pytest.approx(read * row["decode_tokens_per_s"] / batch / 1e9)
        assert row["percent_of_copy"] == pytest.approx(100 * row["gb_per_s"] / copy["gb_per_s"])
        if row["engine"] == "transformers":
            agreement = row["agreement"]
            assert agreement["leading_equal_tokens"] == [32] * batch
            assert agreement["our_tokens_that_are_its_first_choice"] == agreement["of_tokens"] == 32 * batch


def test_decode_of_a_checkpoint_is_what_bench_alone_does(cli, tiny_model):
    result = cli("bench", "--prompt-tokens", "9", "--new-tokens", "32", "--device", "cpu")
    assert result.exit_code == 0, result.output
    title, *lines = result.stdout.splitlines()
    assert title == "decode: tiny (checkpoint weights), float32, CPU, 1 thread"
    assert "32 of 32" in next(line for line in lines if "transformers" in line)


def test_transformers_computes_something_else_when_its_weights_differ(tiny_converted):
    from lite_llama.app.bench.decode import ours
    from lite_llama.app.bench.rivals import Rival, shared_weights

    subject = Subject.of_checkpoint(Checkpoint.open(tiny_converted), "cpu", "float32")
    engine = subject.load()
    weights = shared_weights(engine, subject.config)
    name = "model.layers.0.self_attn.k_proj.weight"
    assert (
        weights[name].data_ptr()
        == engine.runner.model.state_dict()["layers.0.self_attn.qkv_proj.weight"][64:].data_ptr()
    )  # shared, not copied
    prompts = [list(range(20)), list(range(50, 70))]
    replies = ours(engine, prompts)(8)
    wrong = Rival("transformers", subject.raw_config, weights | {name: weights[name].flip(0)})
    agreement = wrong.agreement(prompts, replies, wrong.generator(prompts)(8))
    assert agreement["our_tokens_that_are_its_first_choice"] < 16
    assert agreement["largest_logit_gap"] > 0


def test_an_engine_that_stops_early_is_not_counted():
    ragged = iter([[[1, 2], [1]]])
    with pytest.raises(UserError, match="did not give 2 tokens to each of 2 requests"):
        time_decode(lambda count: next(ragged), 2, 2, 1)
    replies = Replies()
    with pytest.raises(UserError, match="Request 0 got 0 tokens instead of 3"):
        replies.check([Job([1], 3)])


def test_changed_tokens_between_repeats_are_told():
    numbers = itertools.count()
    timing = time_decode(lambda count: [[next(numbers)] * count], 1, 2000, 2)
    assert not timing.repeatable


def test_prefill(bench):
    rows = bench("prefill", "--shape", "tiny", "--repeats", 3)["results"]
    assert [row["prompt_tokens"] for row in rows] == [128, 512]  # 2048 and 8192 do not fit 1024
    for row in rows:
        assert row["ttft_s"] == statistics.median(row["repeats_s"])
        assert row["prefill_tokens_per_s"] == row["prompt_tokens"] / row["ttft_s"]


def test_perplexity(cli, tiny_model, tmp_path):
    text = tmp_path / "novel.txt"
    text.write_text("Sir Walter Elliot, of Kellynch Hall, was a man who never took up a book. " * 12)
    arguments = (
        "perplexity",
        str(text),
        "--model",
        tiny_model,
        "--window",
        "64",
        "--tokens",
        "300",
        "--json",
    )
    found = json.loads(cli("bench", *arguments).stdout)
    ours, theirs = found["results"]
    assert ours["scored_tokens"] == theirs["scored_tokens"] == 300 - 5
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)
    assert theirs["largest_difference"] < 1e-4
    assert ours["perplexity"] > 1.5


def test_context(bench):
    report = bench("context", "--shape", "tiny", "--prompt-tokens", 300, "--new-tokens", 40)
    (row,) = report["results"]
    assert row["mean_context"] == 320
    assert row["kv_bytes_per_step"] == 2 * 2 * 32 * 4 * 320
    read = row["weight_bytes_per_step"] + row["kv_bytes_per_step"]
    floor = read / 1e9 / report["copy_bandwidth"]["gb_per_s"]
    assert row["floor_ratio"] == pytest.approx(row["step_s"] / floor)


def test_images(bench, monkeypatch):
    text = {"architectures": ["LlamaForCausalLM"], **TINY, "tie_word_embeddings": False}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48}
    vision |= {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    shape = SHAPES["LLaVA-1.5-7B"] | {"text_config": text, "vision_config": vision, "dtype": "float32"}
    monkeypatch.setitem(SHAPES, "tiny", shape | {"image_token_index": 380})
    encoded = []
    encode = Decoder.encode_images
    monkeypatch.setattr(
        Decoder, "encode_images", lambda self, pixels: (encoded.append(pixels), encode(self, pixels))[1]
    )
    report = bench("images", "--shape", "tiny", "--prompt-tokens", 9, "--new-tokens", 24, "--repeats", 2)
    image, rival, text_only = report["results"]
    assert [row["engine"] for row in report["results"]] == [
        "lite_llama",
        "transformers",
        "lite_llama, text only",
    ]
    assert report["image_tokens"] == 25
    for row in (image, rival):
        assert row["encode_s"] == statistics.median(row["encode_repeats_s"])
        assert row["encode_s"] > 0
    for row in report["results"]:
        assert row["generated_tokens"] == [24]
        assert row["decode_tokens_per_s"] == pytest.approx(1 / row["step_s"])
    # Three for the time of encoding, and one for each generation that was timed: none was found encoded.
    assert len(encoded) == 3 + 2 + 2 * 2
    agreement = rival["agreement"]
    assert agreement["leading_equal_tokens"] == [24]
    assert agreement["our_tokens_that_are_its_first_choice"] == 24
    assert "encode_s" not in text_only


def test_serve(bench):
    report = bench("serve", "--shape", "tiny", "--rate", 50, "--rate", 200, "--requests", 9,
                   "--prompt-tokens", 10, "--new-tokens", 5)  # fmt: skip
    assert len(set(report["new_tokens"])) > 1
    assert [row["requests_per_s"] for row in report["results"]] == [50, 200]
    for row in report["results"]:
        assert row["generated_tokens"] == sum(report["new_tokens"])
        assert row["tokens_per_s"] == pytest.approx(row["generated_tokens"] / row["wall_s"])
        assert len(row["ttft_each_s"]) == 9
        assert row["ttft_s"]["p99"] == max(row["ttft_each_s"])
        assert 0 < row["tpot_s"]["p50"] <= row["tpot_s"]["p90"] <= row["tpot_s"]["p99"]


def test_turn(bench):
    rows = bench("turn", "--shape", "tiny", "--conversation-tokens", 200, "--repeats", 1)["results"]
    warm, cold = rows
    assert warm["prompt_tokens"] == cold["prompt_tokens"] == 232
    assert warm["cached_prompt_tokens"] >= 176
    assert cold["cached_prompt_tokens"] == 0


def test_ablation(bench):
    report = bench("ablation", "--shape", "tiny", "--requests", 24, "--prompt-tokens", 8,
                   "--new-tokens", 24, "--repeats", 1)  # fmt: skip
    rows = report["results"]
    assert len(rows) == 7
    first, last = rows[0]["options"], rows[-1]["options"]
    assert first["attention"] == "plain"
    assert not any(first[name] for name in ("flash_decoding", "dynamic_kv", "fused", "cuda_graphs"))
    assert last["attention"] == "flash2"
    assert all(last[name] for name in ("flash_decoding", "dynamic_kv", "fused", "cuda_graphs"))
    assert not last["prefix_cache"]
    assert report["kv_tokens"] == 16 * 4 * (8 + 24)
    for row in rows:
        assert row["ragged_generated_tokens"] == sum(report["ragged_new_tokens"])
        assert row["generated_tokens"] == [24]
    static, dynamic = rows[0]["most_requests_at_once"], rows[-1]["most_requests_at_once"]
    assert 16 <= static < dynamic <= 24


def test_speculate(bench, tiny_model):
    rows = bench("speculate", "--model", "tiny", "--new-tokens", 40, "--repeats", 2)["results"]
    assert [(row["text"], row["speculation"]) for row in rows] == [
        ("repetitive", "without"),
        ("repetitive", "with"),
        ("not repetitive", "without"),
        ("not repetitive", "with"),
    ]
    assert all(row["same_tokens"] for row in rows)


def test_ui(cli, monkeypatch):
    monkeypatch.setattr(ui, "SHORTEST_S", 1.0)
    monkeypatch.setattr(ui, "REPLIES", {"table": ui.REPLIES["table"]})
    result = cli("bench", "ui", "--rate", 400, "--rate", 1, "--turns", 4, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    assert (report["mode"], report["model"], report["weights"]) == ("ui", "scripted replies", None)
    streamed, conversation = report["results"]  # at 1 token a second it would take too long
    assert (streamed["reply"], streamed["tokens_per_s"]) == ("table", 400)
    assert streamed["wall_s"] > 0.95 * streamed["ideal_s"] > 2
    echo = streamed["echo_s"]
    assert echo["keys"] >= 10
    assert 0 < echo["p50"] <= echo["p99"] <= echo["worst"]
    assert streamed["stall_s"] >= 0
    assert len(conversation["rss_mb"]) == 4
    assert min(conversation["rss_mb"]) > 20


def test_ui_with_a_model(cli, tiny_model):
    result = cli(
        "bench", "ui", "--model", "tiny", "--new-tokens", 40, "--repeats", 2, "--device", "cpu", "--json"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    assert report["dtype"] == "float32"
    assert len(report["results"]) == 2
    for row in report["results"]:
        assert row["of_headless"] == pytest.approx(row["tokens_per_s"] / row["headless_tokens_per_s"])
        assert row["tokens_per_s"] > 1


def test_ui_says_why_the_app_did_not_start(fails, monkeypatch):
    monkeypatch.setattr(ui.sys, "executable", "/bin/false")
    assert fails("bench", "ui") == "The app did not start: it printed nothing"


def test_startup(bench, cli, tiny_model, monkeypatch):
    started: list[tuple[list[str], Path]] = []

    def first_byte(command: list[str], environment: dict[str, str]) -> float:
        cache = Path(environment[startup.CACHE_VARIABLE])
        started.append((command, cache))
        was_filled = any(cache.iterdir())
        (cache / "kernel").touch()
        return 1.0 + was_filled

    monkeypatch.setattr(startup, "_first_byte", first_byte)
    empty, filled = bench("startup", "--model", "tiny", "--repeats", 2)["results"]
    assert (empty["triton_cache"], empty["repeats_s"]) == ("empty", [1, 1])
    assert (filled["triton_cache"], filled["repeats_s"]) == ("filled", [2, 2])
    commands, caches = zip(*started, strict=True)
    assert caches[0] == caches[1] != caches[2] == caches[3]
    assert not caches[0].exists()
    assert commands[0][:4] == [sys.executable, "-m", "lite_llama", "ask"]
    result = cli(*commands[0][3:])
    assert result.exit_code == 0, result.output
    assert result.stdout


def test_the_process_that_startup_starts_for_a_shape(capsys):
    subject = Subject.of_shape("tiny", "cpu", "float32")
    module, *arguments = startup._arguments(subject)
    assert module == first_token.__module__
    first_token(*arguments)
    assert 0 <= int(capsys.readouterr().out) < 384


def test_startup_times_the_first_byte_and_tells_failures():
    slow_end = "import sys, time; print(1, flush=True); time.sleep(0.5)"
    assert startup._first_byte([sys.executable, "-c", slow_end], dict(os.environ)) < 0.5
    with pytest.raises(UserError, match="The fresh process failed: no such model"):
        startup._first_byte([sys.executable, "-c", "import sys; sys.exit('error: no such model')"], {})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shape", "Llama-9"], "Unknown shape 'Llama-9': choose one of Llama-3.2-1B"),
        (["--shape", "tiny", "--model", "x"], "not both"),
        (["--shape", "tiny", "--compare", "vllm"], "choose transformers, transformers-compiled or none"),
        (["--shape", "tiny", "--prompt-tokens", "1020", "--new-tokens", "9"], "1029 tokens do not fit"),
        (["--shape", "tiny", "--batch", "900", "--new-tokens", "9"], "use a smaller batch"),
        (["prefill", "--shape", "tiny", "--prompt-tokens", "1024"], "1025 tokens do not fit"),
        (["images", "--shape", "tiny"], "tiny reads text only"),
        (["--model", "missing"], "no converted model"),
        (["--shape", "tiny", "--out", "/dev/null/here"], "choose another --out"),
    ],
)
def test_bad_options(fails, arguments, sentence):
    assert sentence in fails("bench", *arguments, "--device", "cpu")


def test_ctrl_c(fails, monkeypatch):
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lite_llama.app.bench.prefill.measure", press)
    assert fails("bench", "prefill", "--shape", "tiny").startswith("Stopped")


def test_without_matplotlib_the_figures_are_written_and_the_plot_explained(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ("--shape", "tiny", "--prompt-tokens", "8", "--repeats", "1", "--out", tmp_path)
    result = cli("bench", "prefill", *options, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "pip install matplotlib" in result.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_runs_where_nothing_of_the_app_is_installed():
    """As `python -m lite_llama.app.bench` does on a machine that the app was never installed on."""
    code = f"""
import sys
missing = {{"textual", "pydantic_settings", "tomlkit", "platformdirs", "aiosqlite", "gguf"}}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from lite_llama.app.bench.shapes import SHAPES
from lite_llama.app.bench.__main__ import main
SHAPES["tiny"] = {TINY!r}
sys.argv[1:] = ["prefill", "--shape", "tiny", "--prompt-tokens", "8", "--device", "cpu", "--repeats", "1"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.argv[1:] = ["--model", "named"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("prefill: tiny (random weights)"), done.stderr
    assert done.returncode == 1
    assert done.stderr == "error: platformdirs is not installed: give --shape, or --model a directory.\n"


def test_percentiles_are_values_that_were_measured():
    assert percentiles([float(number) for number in range(200, 0, -1)]) == {
        "p50": 100,
        "p90": 180,
        "p99": 198,
    }
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}


def test_bytes_of_a_step():
    tied, untied = (ModelConfig.from_dict(SHAPES[name]) for name in ("Llama-3.2-1B", "Llama-3.1-8B"))
    assert weight_bytes(tied, 2) == 2 * 1_235_814_400
    assert weight_bytes(untied, 2) == 2 * (8_030_261_248 - 128256 * 4096)  # its embedding is looked up
    assert kv_bytes(tied, 2, 1) == 32768
    copy = CopyBandwidth(10**9, [0.001, 0.002, 0.004])
    assert copy.gb_per_s == 1000
    traffic = step_traffic(tied, 2, 4, 100.0, 0.01, copy)
    assert traffic["gb_per_s"] == pytest.approx((2 * 1_235_814_400 + 4 * 100 * 32768) / 0.01 / 1e9)


def test_ragged_lengths_are_the_same_each_time_and_bounded():
    jobs = ragged_jobs(384, 500, 100, 40)
    assert jobs == ragged_jobs(384, 500, 100, 40)
    lengths = sorted(len(job.prompt) for job in jobs)
    assert lengths[-1] == 400
    assert lengths[0] >= 1
    assert 90 <= statistics.median(lengths) <= 110
    assert max(job.new_tokens for job in jobs) <= 160


def test_a_profile_is_for_a_gpu(fails):
    assert "A profile is taken on a GPU" in fails("bench", "profile", "--shape", "tiny", "--device", "cpu")


def test_a_profile_names_the_launches_of_a_step():
    """Two layers of launches that overlap by 1 us, but for a gap of 2 us before each step."""
    names = ["_step", *["_gemv", "_decode_attention", "_gemv", "_gemv", "_gemv"] * 2, "_gemv", "_decide"]
    kernels, now = [], 0
    for _ in range(5):
        now += 2000
        for at, name in enumerate(names):
            kernels.append((f"{name}_kernel", now - 1000 * (at > 0), now + 4000))
            now += 4000
    config = ModelConfig.from_dict(TINY)
    launches = profile._launches(kernels, config, 2, 100)
    assert list(launches) == ["step", "qkv", "decode_attention", "o", "gate + up", "down", "head", "decide"]
    assert set(launches["step"].advance) == {6000}
    assert set(launches["step"].gap) == {2000}
    assert [len(launches[name].advance) for name in ("down", "head")] == [2 * 3, 3]
    assert set(launches["down"].advance) == {4000}
    assert set(launches["down"].gap) == {-1000}
    linear = (
        sum(2 * launches[name].bytes for name in ("qkv", "o", "gate + up", "down")) + launches["head"].bytes
    )
    norms = 2 * (2 * config.num_layers + 1) * config.hidden_size
    assert linear + norms == weight_bytes(config, 2)
    assert 2 * launches["decode_attention"].bytes == kv_bytes(config, 2, 100)


def test_a_profile_without_steps_says_so():
    with pytest.raises(UserError, match="did not see"):
        profile._launches([("_gemv_kernel", 0, 1)] * 9, ModelConfig.from_dict(TINY), 2, 100)
