"""The table of tiles, and how the tuner fills it (its clock replaced: speed is no matter for a test)."""

import json

import pytest
import torch

from lite_llama.kernels import gemm, gemv, tiles, tuning
from lite_llama.kernels._triton import target

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_table(monkeypatch, tmp_path):
    """A table of the test's own; yields where the user's is."""
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "tiles.json"))
    tiles._table.cache_clear()
    yield tmp_path / "tiles.json"
    tiles._table.cache_clear()


def test_the_users_table_comes_on_top_of_the_rule(own_table):
    where = target(CPU)
    usual = gemv.tile(64, 48, False, torch.float16, where)
    own = usual | {"BLOCK_N": 2}
    tiles.save(own_table, {gemv.tile_key(64, 48, False, torch.float16, where): own})
    tiles.save(own_table, {"other": {"BLOCK_N": 1}})
    tiles._table.cache_clear()
    assert gemv.tile(64, 48, False, torch.float16, where) == own
    assert gemv.tile(64, 50, False, torch.float16, where) == usual
    assert json.loads(own_table.read_text())["other"] == {"BLOCK_N": 1}


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', '{"a": {"b": "c"}}', "{"])
def test_a_broken_table_is_named(own_table, text):
    own_table.write_text(text)
    with pytest.raises(ValueError, match="is no table of tiles"):
        tiles.lookup("a")


def test_candidates_cover_the_shape_and_its_slices():
    where = target(CPU)
    for inputs, outputs in ((896, 1152), (2048, 3072), (14336, 4096), (1040, 70)):
        for options in gemm.candidates(inputs, outputs, where, split=True):
            splits = -(-inputs // options["SLICE"])
            assert options["SLICE"] % options["BLOCK_K"] == 0
            assert (splits - 1) * options["SLICE"] < inputs <= splits * options["SLICE"]
        assert list(gemv.candidates(inputs, False, where))


def test_the_fastest_that_runs_is_chosen(monkeypatch):
    """Each candidate is really launched (on a GPU: compiled and replayed), the fastest by the clock wins."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter's run")
    tried = []

    def seconds(run):
        if len(tried) == 1:
            tried.append(None)
            raise RuntimeError("too large")
        calls = run()
        tried.append(calls)
        return 1.0 / len(tried)

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(tuning, "_FEW_SEQUENCES", ((1, 40),))
    monkeypatch.setattr(tuning, "_MANY_SEQUENCES", ((2, 40),))
    monkeypatch.setattr(
        gemm, "candidates", lambda *shape, split: iter([gemm.rule(*shape, split=split) | {"STAGES": 1}])
    )
    lines = []
    shapes = [tuning.LinearShape(512, 8, gated=True)] * 2
    heads = tuning.AttentionShape(2, 1, 64)
    found = tuning.tune(shapes, heads, CPU, torch.float16, lines.append)
    assert [key.split()[1] for key in found] == ["gemv", "gemm", "decode_attention", "decode_attention"]
    assert "cannot run (RuntimeError)" in lines[0]
    for key, options in found.items():
        assert tiles.lookup(key) == options
    *_, last = gemv.candidates(512, True, target(CPU))
    assert found[next(iter(found))] == last  # later ones were given shorter times
