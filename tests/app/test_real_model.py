"""The app from its keys down to the weights: the real engine runs the real demo model, and a tiny LLaVA."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from PIL import Image as pillow
from textual import events
from textual.widgets import OptionList, Select

from lite_llama.app.ask import answer
from lite_llama.app.screens.tokens import TokensScreen
from lite_llama.app.tui import LiteLlamaApp
from lite_llama.app.widgets.attachments import AttachedChip, Chip
from lite_llama.app.widgets.message import UserMessage
from lite_llama.app.widgets.prompt import PromptInput
from lite_llama.app.widgets.side import SideView
from lite_llama.app.widgets.tokens import TokenText
from lite_llama.converter import Done, convert
from lite_llama.engine.images import read_image
from lite_llama.engine.request import GenerationRequest, Message, SamplingParams


async def test_the_demo_model_answers_stops_and_goes_on(demo_model, paths, until):
    paths.models.mkdir(parents=True)
    (paths.models / "demo").symlink_to(demo_model)
    paths.settings.write_text('temperature = 0.0\nmax_gen_len = 2000\ndevice = "cpu"\n')
    app = LiteLlamaApp(paths)
    controller = app.controller
    try:
        async with app.run_test() as pilot:
            prompt = app.query_one(PromptInput)
            prompt.text = "What is the capital of France?"
            await pilot.press("enter")  # before the model is there
            await until(pilot, lambda: controller.loader.model, 120)
            await until(pilot, lambda: not controller.replying, 120)
            answer = controller.last_reply
            assert answer is not None
            assert answer.figures is not None
            assert "Paris" in answer.text
            assert answer.status == "complete"
            assert answer.figures.decode_tokens_per_s > 0
            # The prompt at least; the count is the tokenizer's.
            prompt_tokens = answer.figures.prompt_tokens
            await until(pilot, lambda: meter(app)[0] >= prompt_tokens, 20)

            prompt.text = "Write a long story about a llama."
            await pilot.press("enter")
            await until(pilot, lambda: len(controller.conversation.turns) == 4, 20)
            part = controller.last_reply
            assert part is not None
            await until(pilot, lambda: len(part.text) > 10, 60)
            await pilot.press("escape")
            await until(pilot, lambda: not controller.replying, 20)
            assert part.status == "stopped"
            before = part.text
            await pilot.press("ctrl+g")
            await until(pilot, lambda: len(part.text) > len(before) + 10, 60)
            assert part.text.startswith(before)
    finally:
        if controller.loader.engine is not None:
            controller.loader.engine.close()


async def look_at_tokens(app, pilot, until):
    """Open the token view of the last reply; the scores of its tokens."""
    await pilot.press("f12")
    await until(pilot, lambda: isinstance(app.screen, TokensScreen))
    await until(pilot, lambda: app.screen.query_one(OptionList).option_count, 60)
    return app.screen.query_one(TokenText).tokens


async def test_another_token_is_chosen_and_the_reply_goes_on_from_it(demo_model, paths, until):
    paths.models.mkdir(parents=True)
    (paths.models / "demo").symlink_to(demo_model)
    paths.settings.write_text('temperature = 0.0\nmax_gen_len = 40\ndevice = "cpu"\n')
    async with running(paths) as (app, pilot):
        conversation = app.controller.conversation
        await until(pilot, lambda: app.controller.loader.model, 120)
        first = await ask(app, pilot, until, "What is the capital of France?")
        tokens = await look_at_tokens(app, pilot, until)
        assert [token.id for token in tokens] == list(first.token_ids)
        assert "".join(token.text for token in tokens) == f"{first.text}<|im_end|>"
        assert all(token.id == token.alternatives[0].id for token in tokens)  # greedy
        at = next(at for at, token in enumerate(tokens) if token.text == " Paris")
        other = tokens[at].alternatives[1]
        await pilot.press(*["right"] * at, "enter", "down", "enter")
        await until(pilot, lambda: conversation.turns[-1].id != first.id)
        await until(pilot, lambda: not app.controller.replying, 60)
        second = conversation.turns[-1]
        assert second.token_ids[: at + 1] == (*first.token_ids[:at], other.id)
        assert second.text.startswith(first.text.partition(" Paris")[0] + other.text)
        assert conversation.siblings(second) == [first, second]

        token = (await look_at_tokens(app, pilot, until))[at]
        assert token.id == other.id
        assert token.logprob == pytest.approx(other.logprob, abs=0.05)  # in bf16


async def test_one_prompt_is_answered_with_two_settings_at_once(demo_model_fp32, paths, until):
    paths.models.mkdir(parents=True)
    (paths.models / "demo").symlink_to(demo_model_fp32)  # whose rounding does not show in the text
    paths.settings.write_text(
        'max_gen_len = 80\ndevice = "cpu"\nseed = 1\n[presets.greedy]\ntemperature = 0.0\n'
        "[presets.hot]\ntemperature = 1.5\ntop_p = 1.0\n"
    )
    question = "Write a long story about a llama."
    async with running(paths) as (app, pilot):
        await until(pilot, lambda: app.controller.loader.model, 120)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.screen.query("SideView Select"))
        sides = list(app.screen.query(SideView))
        for side, preset in zip(sides, ("greedy", "hot"), strict=True):
            side.query(Select).last().value = preset
        engine, comparison = app.controller.loader.engine, app._comparison
        assert engine
        assert comparison
        most = 0

        def ended():
            nonlocal most
            most = max(most, engine.figures.running if engine.figures else 0)
            return not comparison.running

        app.screen.query_one(PromptInput).text = question
        await pilot.press("enter")
        await until(pilot, lambda: comparison._replies)
        await until(pilot, ended, 120)
        assert most == 2  # requests in one engine
        left, right = comparison._replies
        params = SamplingParams(temperature=0, max_new_tokens=80)
        alone = answer(engine, GenerationRequest((Message("user", question),), params), str, str)
        assert left.text == alone.text
        assert right.text not in ("", left.text)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: app.controller.last_reply)
        assert app.controller.last_reply
        assert app.controller.last_reply.text == left.text
        assert app.controller.conversation.overrides == {"temperature": 0.0}


@pytest.fixture(scope="session")
def llava(make_llava, tmp_path_factory):
    """A LLaVA of random weights, converted; an image takes 25 tokens."""
    directory = tmp_path_factory.mktemp("llava")
    *_, done = convert(str(make_llava(directory / "source")), directory / "models", directory / "downloads")
    assert isinstance(done, Done)
    return done.checkpoint.path


@asynccontextmanager
async def running(paths):
    """The app with the real engine and its model."""
    app = LiteLlamaApp(paths)
    try:
        async with app.run_test() as pilot:
            yield app, pilot
    finally:
        if app.controller.loader.engine is not None:
            app.controller.loader.engine.close()


async def ask(app, pilot, until, question):
    turns = len(app.controller.conversation.turns)
    app.query_one(PromptInput).text = question
    await pilot.press("enter")
    await until(pilot, lambda: len(app.controller.conversation.turns) == turns + 2)
    await until(pilot, lambda: not app.controller.replying, 120)
    reply = app.controller.last_reply
    assert reply.figures is not None, reply.note
    return reply


def check(engine, reply, *messages):
    """The reply is what the engine says to these messages, and not what it says without their image."""
    params = SamplingParams(temperature=0, max_new_tokens=16)
    assert reply.figures.prompt_tokens == engine.count_tokens(messages) > 25
    assert reply.text == answer(engine, GenerationRequest(messages, params), str, str).text
    blind = tuple(replace(message, images=()) for message in messages)
    assert reply.text != answer(engine, GenerationRequest(blind, params), str, str).text


async def test_a_dropped_image_is_seen_kept_and_seen_again(llava, paths, tmp_path, until):
    paths.models.mkdir(parents=True)
    (paths.models / "llava").symlink_to(llava)
    paths.settings.write_text('temperature = 0.0\nmax_gen_len = 16\ndevice = "cpu"\n')
    file = tmp_path / "a picture.png"
    pillow.linear_gradient("L").resize((90, 60)).save(file)
    question = Message("user", "What is this?", images=(read_image(file),))

    async with running(paths) as (app, pilot):
        await until(pilot, lambda: app.controller.loader.model, 120)
        app.query_one(PromptInput).post_message(events.Paste(f"'{file}'"))
        await until(pilot, lambda: app.query(AttachedChip))
        first = await ask(app, pilot, until, question.content)
        check(app.controller.loader.engine, first, question)

    file.unlink()
    async with running(paths) as (app, pilot):
        await until(pilot, lambda: app.controller.loader.model, 120)
        (summary,) = await app.controller.archive.summaries()
        await app.controller.open_conversation(summary.id)
        await until(pilot, lambda: app.query(UserMessage) and app.query_one(UserMessage).query(Chip))
        second = await ask(app, pilot, until, "Are you sure?")
        reply = Message("assistant", first.text)
        check(app.controller.loader.engine, second, question, reply, Message("user", "Are you sure?"))


def meter(app):
    """The two numbers of the context meter."""
    shown = str(app.query_one("#context").render())
    return [int(part.strip("━ ").replace(",", "")) for part in shown.split("/")]
