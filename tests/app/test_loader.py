"""The model's loader by itself: no conversation, no database, no screen."""

import asyncio

import pytest

from lite_llama.app.events import ModelFailed, ModelGone, ModelLoading, ModelReady, Told
from lite_llama.app.loader import ModelLoader
from lite_llama.app.remote.endpoint import Endpoint, Endpoints
from lite_llama.app.settings import Settings

SETTINGS = Settings.model_validate({"device": "cpu", "dtype": "float32"})


@pytest.fixture
def told():
    return []


@pytest.fixture
def loader(engine, paths, told):
    async def tell(event):
        told.append(event)

    return ModelLoader(paths.models, Endpoints(paths.endpoints), lambda: engine, tell)


async def test_a_model_is_loaded_and_told(loader, engine, paths, told):
    assert loader.loading
    loader.load("tiny", SETTINGS)
    await loader.done()
    assert isinstance(told[0], ModelLoading)
    assert told[-1] == ModelReady("tiny", engine.model)
    assert (loader.name, loader.model, loader.loading) == ("tiny", engine.model, False)
    (options,) = engine.loads
    assert (options.path, options.device, options.dtype) == (paths.models / "tiny", "cpu", "float32")


async def test_a_load_that_fails_or_is_stopped_brings_back_the_model_before(loader, engine, told):
    loader.load("tiny", SETTINGS)
    await loader.done()
    engine.unloadable["big"] = "It does not fit."
    loader.load("big", SETTINGS)
    await loader.done()
    assert Told("big: It does not fit. Going back to tiny.") in told
    assert (loader.name, loader.loading) == ("tiny", False)
    engine.load_hold.clear()
    loader.load("other", SETTINGS)
    while len(engine.loads) < 4:
        await asyncio.sleep(0.005)
    loader.cancel()
    engine.load_hold.set()
    await loader.done()
    assert [options.path.name for options in engine.loads] == ["tiny", "big", "tiny", "other", "tiny"]
    assert loader.name == "tiny"


async def test_without_a_model_before_the_failure_is_told(loader, engine, told):
    engine.load_error = "It does not fit."
    loader.load("tiny", SETTINGS)
    await loader.done()
    assert told[-1] == ModelFailed("tiny", "It does not fit.")
    assert (loader.model, loader.loading) == (None, False)


async def test_unloaded_and_renamed(loader, told):
    loader.load("tiny", SETTINGS)
    await loader.done()
    await loader.renamed("tiny", "small")
    assert isinstance(told[-1], ModelReady)
    assert (loader.name, loader.model.name) == ("small", "small")
    await loader.unload()
    assert told[-1] == ModelGone()
    assert (loader.name, loader.model) == (None, None)


async def test_the_wanted_model_is_found_or_any(loader, paths, make_model, told):
    assert await loader.find("tiny") is None
    make_model("first")
    make_model("second")
    Endpoints(paths.endpoints).save(Endpoint("cluster", "http://127.0.0.1:1/v1", "served"))
    assert [await loader.find(name) for name in ("second", "cluster", "gone", None)] == [
        "second",
        "cluster",
        "first",
        "first",
    ]
    assert loader.has("cluster")
    assert not loader.has("gone")
    assert told == []
