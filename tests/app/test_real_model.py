"""The app from its keys down to the weights: the real engine runs the real demo model."""

from lite_llama.app.tui import LiteLlamaApp
from lite_llama.app.widgets.prompt import PromptInput


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
            await until(pilot, lambda: controller.model, 120)
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
        if controller.engine is not None:
            controller.engine.close()


def meter(app):
    """The two numbers of the context meter."""
    shown = str(app.query_one("#context").render())
    return [int(part.strip("━ ").replace(",", "")) for part in shown.split("/")]
