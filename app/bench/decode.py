"""Decode rate and time to first token of equal requests, with transformers beside us."""

from __future__ import annotations

from typing import Any

from . import rivals
from .report import DECODE_RATE, FIRST_TOKEN, Column, Panel, Report, Row, copy_facts, engine_facts, rate
from .roofline import copy_bandwidth, step_traffic
from .subject import Subject, check_fits, free_memory
from .timing import Generate, Tell, Timing, time_decode
from .workload import Job, equal_jobs, run

US = "lite_llama"


def ours(engine: Any, prompts: list[list[int]]) -> Generate:
    """Generates for the prompts on an engine, all requests at once."""

    def generate(count: int) -> list[list[int]]:
        finished = run(engine, [Job(prompt, count) for prompt in prompts])
        return [list(event.token_ids) for event in finished]

    return generate


def measure(
    subject: Subject,
    *,
    batches: list[int],
    prompt_tokens: int,
    new_tokens: int,
    compare: tuple[str, ...],
    compare_batches: list[int],
    repeats: int,
    tell: Tell,
) -> Report:
    """Decode `batches` of random prompts greedily for exactly `new_tokens` tokens each.

    Both sides get the same weights and prompts and are timed the same way: the wall clock around a whole
    generation of one token (the time to first token) and of all tokens; the decode rate is the other
    tokens over the difference. End-of-turn tokens are ignored on both sides and the tokens counted.
    `compare_batches`: those that the rivals generate as well; none: all of them.

    Raises UserError when the model cannot be loaded or the requests do not fit.
    """
    from ...engine.device import resolve_device

    copy = copy_bandwidth(resolve_device(subject.device))
    config = subject.config
    prompts = {
        batch: [job.prompt for job in equal_jobs(config.vocab_size, batch, prompt_tokens, new_tokens)]
        for batch in batches
    }
    tell(f"Loading {subject.name}")
    engine = subject.load(prefix_cache=False, speculate=False, max_sequences=max(64, *batches))
    for batch in batches:
        check_fits(engine.info, batch, prompt_tokens + new_tokens)
    facts = engine_facts(
        "decode",
        subject,
        engine,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        **copy_facts(copy),
    )
    itemsize = engine.runner.model.embed_tokens.weight.itemsize

    def row(name: str, batch: int, timing: Timing) -> Row:
        # The first token comes from the prompt; a later one reads the KV of all tokens before it and its own.
        context = prompt_tokens + new_tokens / 2
        traffic = step_traffic(config, itemsize, batch, context, timing.step_s, copy)
        return {"engine": name, "batch": batch, **timing.as_dict(), **traffic}

    rows, replies = [], {}
    for batch in batches:
        tell(f"{US}, batch {batch}")
        timing = time_decode(ours(engine, prompts[batch]), batch, new_tokens, repeats)
        replies[batch] = timing.tokens
        rows.append(row(US, batch, timing))
    weights = rivals.shared_weights(engine, config) if compare else {}
    del engine  # its KV cache goes, its weights stay
    for name in compare:
        for batch in compare_batches or batches:
            free_memory()
            tell(f"{name}, batch {batch}")
            rival = rivals.Rival(name, subject.raw_config, weights)
            generate = rival.generator(prompts[batch])
            timing = time_decode(generate, batch, new_tokens, repeats, warm_ups=rival.warm_ups)
            agreement = rival.agreement(prompts[batch], replies[batch], timing.tokens)
            rows.append(row(name, batch, timing) | rival.describe() | {"agreement": agreement})
            del rival
    rows.sort(key=lambda row: row["batch"])
    return Report(facts, rows, _COLUMNS, _panels(rows))


def _same(row: Row) -> str:
    """How far the replies are equal, at least and at most, over the batch."""
    if "agreement" not in row:
        return ""
    equal = row["agreement"]["leading_equal_tokens"]
    count = row["generated_tokens"][0]
    return f"{min(equal)} of {count}" if min(equal) == max(equal) else f"{min(equal)}-{max(equal)} of {count}"


ENGINE = Column("Engine", lambda row: row["engine"])
SAME_TOKENS = Column("Tokens as ours", _same)
_COLUMNS = (
    ENGINE,
    Column("Batch", lambda row: str(row["batch"])),
    FIRST_TOKEN,
    DECODE_RATE,
    Column("GB/s", lambda row: rate(row["gb_per_s"])),
    Column("% of copy", lambda row: f"{row['percent_of_copy']:.0f}"),
    SAME_TOKENS,
)


def _panels(rows: list[Row]) -> tuple[Panel, ...]:
    panels = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        here = [row for row in rows if row["batch"] == batch]
        values = [row["decode_tokens_per_s"] for row in here]
        panels.append(Panel(f"Decode tokens/s, batch {batch}", [row["engine"] for row in here], {"": values}))
    return tuple(panels)
