"""Trains the demo model from nothing: some minutes on a data-centre GPU.

The batches, the first weights and the order of all depend on --seed alone; a GPU's sums may still round
differently from run to run. With --minutes the learning rate falls with the clock where that is ahead of the
steps, so that training ends in time.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from . import checkpoint
from .checkpoint import IMAGE_SIZE, MEAN, SIDE, STD, WIDTH
from .conversations import IGNORED, Batch, Conversations
from .scenes import COLOURS, SHAPES, Table, draw, shrink

PEAK_RATE, LAST_RATE = 2e-3, 2e-5
WARM_UP = 400
PATCH_WEIGHT = 0.3
DRAWN = (128, 192, 256)
"""Sizes that training draws in, before the pictures are shrunk to the model's size."""
HELD_OUT_DRAWN = 240


class PatchReader(nn.Module):
    """Reads the shape and the colour at each patch from an image's features, to teach the tower early.

    It is no part of the model: without it the tower learns the same from the answers alone, but later.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, len(SHAPES) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)

    def forward(self, features: Tensor, scenes: Table) -> Tensor:
        """Features [N * patches, width] of the scenes' pictures -> loss."""
        kinds, colours = patch_labels(scenes, features.device)
        return F.cross_entropy(self.kind(features), kinds.flatten()) + F.cross_entropy(
            self.colour(features), colours.flatten()
        )


def patch_labels(scenes: Table, device: torch.device) -> tuple[Tensor, Tensor]:
    """The kind and the colour at each patch, int64 [N, SIDE, SIDE]; 0 where there is no shape."""
    middles = (torch.arange(SIDE, device=device) + 0.5) / SIDE
    owners = torch.from_numpy(scenes.owners).to(device)
    x, y, radius = torch.from_numpy(scenes.shapes[:, :3]).to(device).T[..., None, None]
    covered = torch.hypot(middles - x, middles[:, None] - y) < radius
    found = []
    for classes in (scenes.kinds, scenes.colours):
        labels = torch.zeros(len(scenes.backgrounds), SIDE, SIDE, dtype=torch.long, device=device)
        labels.index_add_(0, owners, covered * (torch.from_numpy(classes).to(device) + 1)[:, None, None])
        found.append(labels)
    return found[0], found[1]


def pixels(scenes: Table, size: int, generator: torch.Generator) -> Tensor:
    """The scenes as the image processor makes them of pictures of `size`: [N, 3, S, S]."""
    pictures = shrink(draw(scenes, size, generator), IMAGE_SIZE)
    mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (MEAN, STD))
    return (pictures - mean) / std


def forward(
    model: LlavaForConditionalGeneration, batch: Batch, size: int, generator: torch.Generator
) -> tuple[Any, Tensor]:
    """The model's output for a batch, and the batch's labels. Padding is on the right, where nobody looks."""
    device = generator.device
    ids, labels = (torch.from_numpy(values).to(device).long() for values in (batch.ids, batch.labels))
    return model(input_ids=ids, pixel_values=pixels(batch.scenes, size, generator)), labels


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


@torch.inference_mode()
def accuracy(
    model: LlavaForConditionalGeneration, held_out: list[Batch], device: torch.device
) -> tuple[float, dict[str, float]]:
    """Parts of the answers that greedy decoding would give right to the last token: of all, and by kind.

    With the weights rounded as they are saved, computed in fp32.
    """
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.bfloat16().to(tensor.dtype) for name, tensor in weights.items()})
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for number, batch in enumerate(held_out):
        generator = torch.Generator(device).manual_seed(number)
        out, labels = forward(model, batch, HELD_OUT_DRAWN, generator)
        wrong = (out.logits[:, :-1].argmax(-1) != labels[:, 1:]) & (labels[:, 1:] != IGNORED)
        wrong_turns = set(torch.from_numpy(batch.turns)[:, 1:][wrong.cpu()].tolist())
        asked.update(batch.kinds)
        right.update(kind for turn, kind in enumerate(batch.kinds) if turn not in wrong_turns)
    model.load_state_dict(weights)
    return right.total() / asked.total(), {kind: right[kind] / asked[kind] for kind in sorted(asked)}


def rate(step: int, progress: float) -> float:
    """Learning rate: a linear warm-up, then half a cosine over the whole training."""
    cosine = LAST_RATE + (PEAK_RATE - LAST_RATE) * (1 + math.cos(math.pi * min(progress, 1))) / 2
    return cosine * min(1, (step + 1) / WARM_UP)


def _unchanged(batch: Any) -> Any:
    """For the loader, which would turn arrays into tensors and send them through shared memory."""
    return batch


def train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    model: Any
    if options.start:
        tokenizer = Tokenizer.from_file(str(options.start / "tokenizer.json"))
        model = LlavaForConditionalGeneration.from_pretrained(options.start, dtype=torch.float32)
    else:
        tokenizer = checkpoint.make_tokenizer()
        model = LlavaForConditionalGeneration(checkpoint.make_config())
    model.to(device)
    reader = PatchReader(WIDTH).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    def batches(seed: str, count: int, size: int) -> Conversations:
        return Conversations(tokenizer, seed=seed, batches=count, size=size, image_tokens=SIDE**2)

    # Another kind of seed than training's, whatever --seed is.
    held_out_data = batches("held out", options.held_out, 256)
    held_out = [held_out_data[number] for number in range(len(held_out_data))]
    loader = DataLoader(
        batches(f"train {options.seed}", options.steps, options.batch),
        batch_size=None,
        num_workers=options.workers,
        collate_fn=_unchanged,
        prefetch_factor=4 if options.workers else None,
    )
    learned = [p for module in (model, reader) for p in module.parameters()]
    matrices = [p for p in learned if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    generator = torch.Generator(device).manual_seed(options.seed)
    started, best = time.monotonic(), -1.0
    losses = torch.zeros(2, device=device)
    for step, batch in enumerate(loader):
        clock = (time.monotonic() - started) / 60 / options.minutes
        progress = max(step / options.steps, clock)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, progress)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out, labels = forward(model, batch, DRAWN[step % len(DRAWN)], generator)
            seen = reader(out.image_hidden_states.flatten(0, -2), batch.scenes)
            loss = answer_loss(out.logits, labels)
        optimizer.zero_grad()
        (loss + PATCH_WEIGHT * seen).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses += torch.stack((loss.detach(), seen.detach()))

        is_last = step + 1 == options.steps or clock >= 1
        if (step + 1) % options.log == 0 or is_last:
            of_answers, of_patches = (losses / ((step % options.log) + 1)).tolist()
            losses.zero_()
            print(
                f"step {step + 1}: loss {of_answers:.4f}, of patches {of_patches:.4f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (step + 1) % options.check == 0 or is_last:
            score, by_kind = accuracy(model, held_out, device)
            print(f"  {score:.2%} of held-out answers right", flush=True)
            print("  " + ", ".join(f"{kind} {part:.1%}" for kind, part in by_kind.items()), flush=True)
            if score > best:
                best = score
                checkpoint.write(model, tokenizer, options.out)
        if is_last:
            break
    print(f"The best, {best:.2%}, is in {options.out}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--start", type=Path, help="go on from this checkpoint; give another --seed then")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="end by then, if not after --steps")
    parser.add_argument("--batch", type=int, default=512, help="conversations in a step")
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 1) - 2, 0))
    parser.add_argument("--held-out", type=int, default=4, help="batches of 256 conversations to check with")
    parser.add_argument("--log", type=int, default=200, help="steps between two lines")
    parser.add_argument("--check", type=int, default=1000, help="steps between two checks")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
