"""transformers beside us: the same weights, the same tokens, the same clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...models.config import ModelConfig
from ...models.errors import UserError
from ...models.weights import is_ignored, source_name, targets
from .timing import Generate

if TYPE_CHECKING:
    from torch import Tensor

    from ...engine.engine import Engine

EAGER, COMPILED = "transformers", "transformers-compiled"
RIVALS = (EAGER, COMPILED)


def parse(names: str) -> tuple[str, ...]:
    """Rivals from a comma-separated list, or `none`. Raises UserError for an unknown one."""
    if names == "none":
        return ()
    chosen = tuple(name.strip() for name in names.split(","))
    if unknown := [name for name in chosen if name not in RIVALS]:
        raise UserError(f"Cannot compare with {unknown[0]!r}: choose {', '.join(RIVALS)} or none.")
    return chosen


def shared_weights(engine: Engine, config: ModelConfig) -> dict[str, Tensor]:
    """The engine's weights under Hugging Face's names, as views: no second copy of the model is made."""
    state = engine.runner.model.state_dict()
    shared: dict[str, Tensor] = {}
    for target in targets(config):
        parts = state[target.name.removeprefix("model.")].split(
            [source.shape[0] for source in target.sources]
        )
        for source, part in zip(target.sources, parts, strict=True):
            shared[source.name] = part.view(source.shape)
    if config.tie_word_embeddings:
        shared["lm_head.weight"] = shared["model.embed_tokens.weight"]
    return shared


class Rival:
    """transformers' own model of a config, on weights that it is given."""

    def __init__(self, name: str, raw_config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """`name` is one of RIVALS; nothing is compiled yet."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        self.name = name
        self.warm_ups = 2 if name == COMPILED else 1
        """Generations before the clock counts: one compiles, the next captures CUDA graphs again."""
        torch.compiler.reset()  # what was compiled for another batch must not count as a recompilation
        embedding = weights["model.embed_tokens.weight"]
        config = AutoConfig.for_model(**raw_config)
        kind = AutoModelForImageTextToText if "vision_config" in raw_config else AutoModelForCausalLM
        with torch.device("meta"):
            model: Any = kind.from_config(config, dtype=embedding.dtype)
        for path, module in list(model.named_modules()):
            # Tables of frequencies and positions are no weights, so they are still on the meta device: make
            # the modules that have them anew.
            if list(module.buffers(recurse=False)):
                model.set_submodule(path, type(module)(module.config).to(embedding.device))
        model.load_state_dict(_named_as_in(model, weights, raw_config), strict=True, assign=True)
        model.tie_weights()
        self.model = model.eval().requires_grad_(False)
        self.model.generation_config = self._generation_config()

    def _generation_config(self) -> Any:
        """Greedy, no end of turn; the compiled rival as transformers documents it: generate() itself runs
        the prompt eagerly on a static cache and compiles the decode step."""
        from transformers import CompileConfig, GenerationConfig

        config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
        if self.name == COMPILED:
            config.cache_implementation = "static"
            how = CompileConfig(mode="reduce-overhead", dynamic=False)
            how._compile_all_devices = True  # pyright: ignore[reportAttributeAccessIssue] - the CPU too
            config.compile_config = how
        return config

    def describe(self) -> dict[str, Any]:
        """What it runs, for the JSON file."""
        config = self.model.generation_config
        compiled = self.name == COMPILED
        return {
            "attention": self.model.config._attn_implementation,
            "cache": "static" if compiled else "dynamic",
            "torch_compile": {"mode": config.compile_config.mode, "dynamic": False} if compiled else None,
        }

    def generator(self, prompts: list[list[int]], **images: Tensor) -> Generate:
        """Generates for prompts of one length; raises UserError if it was to compile and did not.

        `images` are what the model takes beside tokens.
        """
        import torch

        ids = torch.tensor(prompts, device=self.model.device)
        mask = torch.ones_like(ids)
        # generate() itself only switches gradients off; inference mode is a little faster when eager.
        mode = torch.inference_mode if self.name == EAGER else torch.no_grad

        def generate(count: int) -> list[list[int]]:
            with mode():
                output = self.model.generate(ids, attention_mask=mask, max_new_tokens=count, **images)
                tokens = output[:, ids.shape[1] :].tolist()
            if self.name == COMPILED and not hasattr(self.model, "_compiled_call"):
                raise UserError("transformers did not compile: compare with transformers alone.")
            return tokens

        return generate

    def logprobs(self, tokens: list[int]) -> list[float]:
        """Log probabilities of all tokens but the first, each after those before it; softmax in fp32."""
        import torch

        ids = torch.tensor([tokens], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(ids, use_cache=False).logits[0, :-1].float()
            return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Of the images [N, 3, S, S] -> the embeddings of all their tokens [N * tokens, H]."""
        import torch

        with torch.inference_mode():
            return torch.cat(tuple(self.model.get_image_features(pixel_values).pooler_output))

    def agreement(
        self, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]], **images: Tensor
    ) -> dict[str, Any]:
        """How far both sides computed the same.

        Once a near tie falls the other way, two greedy replies have nothing more to do with each other.
        So our replies are also shown to transformers' model, which says of each token whether it would
        have chosen it after the same beginning, and how far below its first choice the token was (logits).
        """
        import torch

        chosen, total, gap = 0, 0, 0.0
        for prompt, reply in zip(prompts, ours, strict=True):
            ids = torch.tensor([prompt + reply[:-1]], device=self.model.device)
            with torch.inference_mode():
                output = self.model(ids, use_cache=False, logits_to_keep=len(reply), **images)
            logits = output.logits[0].float()
            picked = logits.gather(1, torch.tensor(reply, device=logits.device)[:, None])[:, 0]
            below = logits.amax(dim=1) - picked
            chosen += int((below == 0).sum())
            total += len(reply)
            gap = max(gap, below.max().item())
        return {
            "leading_equal_tokens": [_leading(a, b) for a, b in zip(ours, theirs, strict=True)],
            "our_tokens_that_are_its_first_choice": chosen,
            "of_tokens": total,
            "largest_logit_gap": gap,
        }


def _named_as_in(model: Any, weights: dict[str, Tensor], raw_config: dict[str, Any]) -> dict[str, Tensor]:
    """`weights` by the names of transformers' model, with zeros for layers that it has and nothing reads."""
    import torch

    config, embedding = ModelConfig.from_dict(raw_config), weights["model.embed_tokens.weight"]
    names = {source_name(name): name for name in model.state_dict()}
    named = {names[source]: weight for source, weight in weights.items()}
    for source, name in names.items():
        if source not in weights and is_ignored(source, config):
            shape = model.get_parameter(name).shape
            named[name] = torch.zeros(shape, dtype=embedding.dtype, device=embedding.device)
    return named


def _leading(a: list[int], b: list[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
