"""The figures of the telemetry line and of the panel: right, off the event loop, and those that fit."""

import asyncio
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from textual.app import App
from textual.widgets import Static

from lite_llama.app import machine as machine_module
from lite_llama.app.machine import GpuLoad, Machine, MachineLoad
from lite_llama.app.pace import BARS, BUCKET_S, Pace
from lite_llama.app.screens.figures import FiguresScreen
from lite_llama.app.widgets.telemetry import Telemetry, load_in_words
from lite_llama.engine.events import EngineFigures, Usage

SAMPLE = Machine.sample  # before the fixture takes its place


def test_pace_of_a_steady_reply():
    pace = Pace(submitted=10.0)
    assert (pace.sparkline, pace.p95_s, pace.ttft_s, pace.is_settled) == ("", 0.0, 0.0, False)
    for token in range(1, 101):
        pace.add(token, 10.5 + token * 0.02)
    assert pace.ttft_s == pytest.approx(0.52)
    assert pace.p95_s == pytest.approx(0.02)
    assert pace.is_settled
    assert set(pace.sparkline) == {"█"}
    assert len(pace.sparkline) == int(99 * 0.02 / BUCKET_S)


def test_pace_tells_a_pause_and_a_change():
    pace, now = Pace(), 0.0
    for token in range(1, 101):
        now += 0.5 if token in (20, 40, 60, 80, 90, 95) else 0.001
        pace.add(token, now)
    assert pace.p95_s == pytest.approx(0.5)  # 6 of 99 gaps
    pace = Pace()
    for token in range(1, 201):
        pace.add(token, token * (0.01 if token <= 100 else 0.02))
    assert pace.sparkline[0] == "█"
    assert pace.sparkline[-1] in "▄▅"


def test_pace_shares_the_gap_among_tokens_that_come_at_once_and_forgets_what_is_long_over():
    pace = Pace()
    pace.add(1, 0.0)
    pace.add(5, 0.4)
    assert pace.p95_s == pytest.approx(0.1)
    pace.add(5, 0.5)  # no new token
    pace.add(6, 1000.0)
    assert len(pace.sparkline) == 0  # nothing came in the last seconds
    for token in range(7, 500):
        pace.add(token, 1000 + token)
    assert len(pace.sparkline) == BARS


def test_a_sample_of_this_machine():
    machine = Machine()
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    load = SAMPLE(machine, gpu=False)
    assert 0.1 < load.cpu < (os.cpu_count() or 1) + 0.5
    assert 10e6 < load.rss_bytes < 100e9
    assert load.gpu is None


def test_samples_for_one_do_not_spoil_those_for_another(monkeypatch):
    clock = SimpleNamespace(now=100.0, cpu_s=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(machine_module, "time", clock)
    monkeypatch.setattr(machine_module, "_cpu_seconds", lambda: clock.cpu_s)
    machine, loads = Machine(), []
    for busy in (1.0, 1.0, 1.0, 0.0, 0.0):  # processors, for a second each
        clock.now, clock.cpu_s = clock.now + 1.0, clock.cpu_s + busy
        loads += [SAMPLE(machine, gpu=False).cpu]
        clock.now += 0.01
        loads += [SAMPLE(machine, gpu=False).cpu]
    assert loads == pytest.approx([1.0] * 6 + [0.0] * 4, abs=0.02)


def test_the_gpu_is_found_by_its_id(monkeypatch):
    import torch

    asked = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: asked.append("init"),
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 * 10**9, total=80 * 10**9),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=37),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="abc"))
    machine = Machine()
    for _ in range(2):
        load = SAMPLE(machine, gpu=True)
        assert load.gpu == GpuLoad("NVIDIA H100", 3 * 10**9, 80 * 10**9, 0.37)
    assert asked == ["init", "GPU-abc"]


def test_a_driver_that_fails_costs_the_figures_only(monkeypatch):
    import torch

    def broken(*_):
        raise RuntimeError("driver mismatch")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=broken))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "AMD")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60, 80))
    machine = Machine()
    assert SAMPLE(machine, gpu=True).gpu == GpuLoad("AMD", 20, 80, None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert SAMPLE(machine, gpu=True).gpu is None


def test_load_in_words():
    figures = EngineFigures(1234, 5, 6000, 1, 0)
    assert load_in_words(MachineLoad(1.8, 4 * 10**8), figures) == ["KV 1,234/6,000", "CPU 180% 400 MB"]
    gpu = GpuLoad("NVIDIA H100", 12 * 10**9, 80 * 10**9, 0.34)
    assert load_in_words(MachineLoad(1.8, 4 * 10**8, gpu), None) == ["GPU 34% 12 GB of 80 GB"]


@pytest.mark.parametrize("width", [20, 44, 60, 75, 110])
async def test_what_does_not_fit_is_left_out_from_the_end(width):
    class Host(App):
        CSS = "Telemetry { width: 1fr; height: 1; }"

        def compose(self):
            yield Telemetry()

    app = Host()
    async with app.run_test(size=(width, 3)) as pilot:
        telemetry = app.query_one(Telemetry)
        telemetry.show_usage(Usage(60, 48, 45, 0.25, 20.0, 2.5, 7))
        telemetry.show_load(MachineLoad(0.42, 4 * 10**8), EngineFigures(5, 12, 128, 0, 0))
        await pilot.pause()
        whole = "45 tokens · 20.0 tok/s · first token 0.25 s · 48 reused · KV 5/128 · CPU 42% 400 MB"
        shown = str(telemetry.render())
        assert whole.startswith(shown)
        assert len(shown) <= width
        assert (shown == whole) == (width == 110)
        assert ("KV" in shown) == (width >= 75)


async def test_figures_go_on_in_further_lines_where_there_are_some():
    class Host(App):
        CSS = "Telemetry { width: 26; height: 3; }"

        def compose(self):
            yield Telemetry()

    app = Host()
    async with app.run_test(size=(30, 5)) as pilot:
        telemetry = app.query_one(Telemetry)
        telemetry.show_usage(Usage(60, 48, 45, 0.25, 20.0, 2.5, 7))
        telemetry.show_also("363 MB of memory")
        await pilot.pause()
        assert str(telemetry.render()).splitlines() == [
            "45 tokens · 20.0 tok/s",
            "first token 0.25 s",
            "48 reused",
        ]
        telemetry.styles.height = 4
        await pilot.pause()
        assert str(telemetry.render()).splitlines()[3:] == ["363 MB of memory"]


async def test_the_machine_is_sampled_off_the_event_loop(make_app, engine, until, monkeypatch):
    threads = []

    def sample(self, *, gpu):
        threads.append((threading.current_thread(), gpu))
        return MachineLoad(0.42, 4 * 10**8)

    monkeypatch.setattr(Machine, "sample", sample)
    app = make_app()
    async with app.run_test(size=(160, 40)) as pilot:
        await until(pilot, lambda: "KV 5/128 · CPU 42% 400 MB" in str(app.query_one("#telemetry").render()))
    assert all(thread is not threading.main_thread() and not gpu for thread, gpu in threads)


async def test_the_panel_shows_the_last_replies_of_all_conversations(make_app, engine, until):
    app = make_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.controller.loader.model)
        for question in ("one two three", "four"):
            await app.controller.new_conversation()
            engine.reply("a", "b", "c")
            await app.controller.send(question)
            await until(pilot, lambda: not app.controller.replying)
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, FiguresScreen))
        await until(pilot, lambda: "First" in str(app.screen.query_one("#replies", Static).render()))
        lines = str(app.screen.query_one("#replies", Static).render()).splitlines()
        assert [line.split()[1:] for line in lines[1:]] == [
            ["tiny", "5", "0", "3", "20.0", "0.25", "s"],
            ["tiny", "7", "0", "3", "20.0", "0.25", "s"],
        ]
        now = str(app.screen.query_one("#now", Static).render())
        assert "5 of 128 pages in use · 12 kept for later" in now
        assert "42% of a processor · 400 MB of memory" in now
        await pilot.press("escape")
        await asyncio.sleep(0)
