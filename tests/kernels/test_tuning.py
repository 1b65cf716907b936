"""The table of tiles, and how the tuner fills it (its clock replaced: speed is no matter for a test)."""

import json

import pytest
import torch

from lite_llama.kernels import decode_attention, gemm, gemv, tiles, tuning
from lite_llama.kernels._triton import Target, target

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_table(monkeypatch, tmp_path):
    """A table of the test's own; yields where the user's is."""
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "tiles.json"))
    tiles._table.cache_clear()
    yield tmp_path / "tiles.json"
    tiles._table.cache_clear()


def test_the_users_table_comes_on_top_of_the_rule(own_table):
    shape = 64, 48, False, torch.float16, target(CPU)
    with tiles.asked() as asked:
        usual = gemv.tile(*shape)
    own = usual | {"BLOCK_N": 2}
    tiles.save(own_table, dict.fromkeys(asked, own))
    tiles.save(own_table, {"other": {"BLOCK_N": 1}})
    tiles._table.cache_clear()
    assert gemv.tile(*shape) == own
    assert gemv.tile(64, 50, *shape[2:]) == usual
    assert json.loads(own_table.read_text())["other"] == {"BLOCK_N": 1}


def test_options_of_another_version_count_for_nothing(own_table):
    shape = 64, 48, torch.float16, target(CPU)
    with tiles.asked() as asked:
        usual = gemm.tile(*shape, split=True)
    (mine,) = asked
    packaged = next(key for key in tiles._table() if " gemm " in key)
    measured = tiles._table()[packaged]
    for old, used in (({"AHEAD": 0, "BLOCK_N": 16}, {}), (usual | {"BLOCK_N": 16}, {"BLOCK_N": 16})):
        tiles.save(own_table, {mine: old, packaged: old})
        tiles._table.cache_clear()
        assert gemm.tile(*shape, split=True) == usual | used
        assert tiles._table()[packaged] == (old if used else measured)


def test_the_packaged_options_are_those_that_the_kernels_have():
    """And so tell which entries of a user's table are of today's kernels."""
    where = Target("sm_90", hip=False, warp_size=32, processors=132, shared_kib=227, pdl=True)
    rules = {
        "gemm": gemm.rule(2048, 2048, where, split=True),
        "gemv": gemv.rule(2048, False, torch.bfloat16, where),
        "decode_attention": decode_attention.rule(64, torch.bfloat16, where, few=True),
    }
    packaged = tiles._read(tiles._PACKAGED)
    assert {key.split()[1] for key in packaged} == set(rules)
    for key, options in packaged.items():
        assert options.keys() == rules[key.split()[1]].keys(), key


def test_many_tokens_have_tiles_of_their_own_that_take_the_same_sums(own_table):
    shape = 64, 48, torch.float16, target(CPU)
    with tiles.asked() as asked:
        usual = gemm.tile(*shape, split=True, wide=True)
    narrow, wide = asked
    assert usual == gemm.tile(*shape, split=True)
    other = usual | {"SLICE": 2 * usual["SLICE"]}
    own = other | {"STAGES": 1}
    for measured, used in (({wide: own}, usual), ({narrow: other, wide: own}, own)):
        tiles.save(own_table, measured)
        tiles._table.cache_clear()
        assert gemm.tile(*shape, split=True, wide=True) == used
    assert gemm.tile(*shape, split=True) == other
    assert {options["SLICE"] for options in asked[wide]()} <= {other["SLICE"]}


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', '{"a": {"b": "c"}}', "{"])
def test_a_broken_table_is_named(own_table, text):
    own_table.write_text(text)
    with pytest.raises(ValueError, match="is no table of tiles"):
        tiles.choose("a", dict, list)


def test_candidates_cover_the_shape_and_its_slices():
    where = target(CPU)
    for inputs, outputs in ((896, 1152), (2048, 3072), (14336, 4096), (1040, 70)):
        for options in gemm.candidates(inputs, outputs, where, split=True):
            splits = -(-inputs // options["SLICE"])
            assert options["SLICE"] % options["BLOCK_K"] == 0
            assert (splits - 1) * options["SLICE"] < inputs <= splits * options["SLICE"]
        assert list(gemv.candidates(inputs, False, where))


def test_the_fastest_that_runs_is_chosen():
    """Two kernels of two cases each; the second one is tried with the best that was found for the first."""
    seconds = {1: (3.0, 1.0), 2: (1.0, 1.1), 3: (1.1, 3.0)}
    seen, lines = [], []

    def measure() -> list[float]:
        a, b = (
            tiles.choose(name, lambda: {"N": 3}, lambda: [{"N": n} for n in (1, 2, 3, 4)])["N"]
            for name in "ab"
        )
        seen.append((a, b))
        if 4 in (a, b):
            raise RuntimeError("too large")
        return [x * y for x, y in zip(seconds[a], seconds[b], strict=True)]

    assert tuning.tune(measure, lines.append) == {"a": {"N": 2}, "b": {"N": 2}}
    assert seen == [(3, 3), (1, 3), (2, 3), (3, 3), (4, 3), (2, 1), (2, 2), (2, 3), (2, 4)]
    assert [line for line in lines if "cannot run (RuntimeError)" in line] == [lines[0], lines[2]]
    assert tiles.choose("a", dict, list) == {"N": 2}


def test_nothing_that_runs_is_an_error():
    def measure() -> list[float]:
        if tiles.choose("a", lambda: {"N": 0}, lambda: [{"N": 1}])["N"]:
            raise MemoryError
        return [1.0]

    with pytest.raises(RuntimeError, match="No tile of a can run"):
        tuning.tune(measure)
