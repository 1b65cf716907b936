"""Questions that a person may ask about scenes of shapes, and the answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .scenes import COLOURS, PLACES, SHAPES, Scene, Shape

NO_IMAGE = "I see no image. Attach one and ask again."
OFF_TOPIC = "I only know shapes, their colours and their places."
NOTHING = "I see no shapes."
NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class Question:
    """A question about the scenes that were shown so far; where it is about one, about the last of them."""

    kind: str
    text: str
    answer: Callable[[Sequence[Scene]], str]
    """Of at least one scene, or two for those of PAIR_KINDS."""


def random_question(rng: random.Random, scenes: Sequence[Scene], kinds: Sequence[str]) -> Question:
    """A question of one of `kinds`, mostly one about something that is there."""
    kind = rng.choice(kinds)
    text, answer = _ASK[kind](rng, scenes)
    return Question(kind, _as_typed(rng, text), answer)


def small_talk(rng: random.Random) -> tuple[str, str]:
    """What a person says beside the point, and the reply."""
    saying, reply = rng.choice(_SMALL_TALK)
    if saying is _NONSENSE:
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(rng.randint(1, 6))]
        saying = " ".join(words)
    return _as_typed(rng, saying), reply


def a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listed(parts: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def plural(noun: str) -> str:
    return f"{noun}{'es' if noun.endswith('s') else 's'}"


def _counted(nouns: Sequence[str]) -> str:
    """Two circles and a star, in the order of their first mention; nothing of nothing."""
    counts = Counter(nouns)
    return listed([a(noun) if n == 1 else f"{NUMBERS[n]} {plural(noun)}" for noun, n in counts.items()])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _as_typed(rng: random.Random, text: str) -> str:
    """As people write who are in a hurry, now and then."""
    if rng.random() < 0.2:
        text = text.replace("colour", "color")
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text


def _name(shape: Shape) -> str:
    return f"{shape.colour} {shape.kind}"


@dataclass(frozen=True)
class _Sort:
    """What shapes are asked for: by kind, by colour or by both."""

    colour: str | None
    kind: str | None

    @property
    def one(self) -> str:
        return " ".join(part for part in (self.colour, self.kind or "shape") if part)

    @property
    def many(self) -> str:
        return plural(self.one)

    def of(self, scene: Scene) -> list[Shape]:
        return [s for s in scene.shapes if self.colour in (None, s.colour) and self.kind in (None, s.kind)]

    @classmethod
    def draw(cls, rng: random.Random, scene: Scene, *, present: float = 0.8) -> _Sort:
        """One of a shape that is there, by chance `present`; else any."""
        if scene.shapes and rng.random() < present:
            shape = rng.choice(scene.shapes)
            colour, kind = shape.colour, shape.kind
        else:
            colour, kind = rng.choice(COLOURS), rng.choice(SHAPES)
        return rng.choice((cls(colour, None), cls(None, kind), cls(colour, kind)))


_Asked = tuple[str, Callable[[Sequence[Scene]], str]]


def _shape(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    text = rng.choice(
        (
            "What shape is this?",
            "What shape is it?",
            "Which shape is this?",
            "What shape do you see?",
            "Which shapes do you see?",
            "What shapes are there?",
            "Name the shape.",
            "What kind of shape is in the image?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        found = [shape.kind for shape in scenes[-1].shapes]
        return f"{'It is' if len(found) == 1 else 'I see'} {_counted(found)}." if found else NOTHING

    return text, answer


def _this_colour(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    text = rng.choice(
        (
            "What colour is this?",
            "What colour is it?",
            "Which colour does it have?",
            "What colour is the shape?",
            "Which colours do you see?",
            "What colours are there?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        shapes = scenes[-1].shapes
        found = listed(list(dict.fromkeys(shape.colour for shape in shapes)))
        return f"{'It is' if len(shapes) == 1 else 'I see'} {found}." if shapes else NOTHING

    return text, answer


def _shape_of_colour(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    colour = _Sort.draw(rng, scenes[-1]).colour or rng.choice(COLOURS)
    text = rng.choice(
        (
            f"What shape is the {colour} one?",
            f"What shape is the {colour} thing?",
            f"Which shape is {colour}?",
            f"What is {colour}?",
            f"What is the {colour} thing?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        found = [shape.kind for shape in _Sort(colour, None).of(scenes[-1])]
        if not found:
            return f"Nothing is {colour}."
        return f"{'It is' if len(found) == 1 else 'They are'} {_counted(found)}."

    return text, answer


def _colour_of_shape(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    sort = _Sort(None, _Sort.draw(rng, scenes[-1]).kind or rng.choice(SHAPES))
    text = rng.choice(
        (
            f"What colour is the {sort.one}?",
            f"Which colour does the {sort.one} have?",
            f"What is the colour of the {sort.one}?",
            f"Tell me the colour of the {sort.one}.",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        found = [shape.colour for shape in sort.of(scenes[-1])]
        if not found:
            return f"There is no {sort.one}."
        if len(found) == 1:
            return f"The {sort.one} is {found[0]}."
        return f"The {sort.many} are {listed(found)}."

    return text, answer


def _count(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    some = rng.choice(("shapes", "objects", "things", "figures"))
    text = rng.choice(
        (
            f"How many {some} are there?",
            f"How many {some} do you see?",
            f"How many {some} are in the image?",
            f"Count the {some}.",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        return _there_are(_Sort(None, None), len(scenes[-1].shapes))

    return text, answer


def _count_sort(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    sort = _Sort.draw(rng, scenes[-1])
    text = rng.choice(
        (
            f"How many {sort.many} are there?",
            f"How many {sort.many} do you see?",
            f"How many {sort.many}?",
            f"Count the {sort.many}.",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        return _there_are(sort, len(sort.of(scenes[-1])))

    return text, answer


def _there_are(sort: _Sort, count: int) -> str:
    if count == 1:
        return f"There is one {sort.one}."
    return f"There are {NUMBERS[count]} {sort.many}."


def _place(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    sort = _Sort.draw(rng, scenes[-1], present=0.9)
    text = rng.choice(
        (
            f"Where is the {sort.one}?",
            f"Where do you see the {sort.one}?",
            f"Where in the image is the {sort.one}?",
            f"Find the {sort.one}.",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        found = [PLACES[shape.cell] for shape in sort.of(scenes[-1])]
        if not found:
            return f"There is no {sort.one}."
        if len(found) == 1:
            return f"The {sort.one} is {found[0]}."
        return f"The {sort.many} are {listed(found)}."

    return text, answer


def _at_place(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    shapes = scenes[-1].shapes
    cell = rng.choice(shapes).cell if shapes and rng.random() < 0.8 else rng.randrange(len(PLACES))
    place = PLACES[cell]
    text = rng.choice((f"What is {place}?", f"What do you see {place}?", f"What is {place} of the image?"))

    def answer(scenes: Sequence[Scene]) -> str:
        found = [_name(shape) for shape in scenes[-1].shapes if shape.cell == cell]
        return _sentence(f"{a(found[0])} is {place}") if found else f"Nothing is {place}."

    return text, answer


def _exists(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    sort = _Sort.draw(rng, scenes[-1], present=0.5)
    text = rng.choice(
        (
            f"Is there {a(sort.one)}?",
            f"Do you see {a(sort.one)}?",
            f"Can you see {a(sort.one)}?",
            f"Is there {a(sort.one)} in the image?",
            f"Are there any {sort.many}?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        found = sort.of(scenes[-1])
        if not found:
            return f"No, there is no {sort.one}."
        return "Yes, t" + _there_are(sort, len(found))[1:]

    return text, answer


def _describe(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    text = rng.choice(
        (
            "Describe the image.",
            "Describe this image.",
            "Describe the picture.",
            "What do you see?",
            "What is in this image?",
            "What is in the image?",
            "What does the image show?",
            "What is this?",
            "Tell me what you see.",
        )
    )
    return text, lambda scenes: _description(scenes[-1])


def _description(scene: Scene) -> str:
    found = [f"{a(_name(shape))} {PLACES[shape.cell]}" for shape in scene.shapes]
    return f"I see {listed(found)}." if found else NOTHING


def _which_has(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    sort = _Sort.draw(rng, rng.choice(scenes), present=0.9)
    text = rng.choice(
        (
            f"Which image has {a(sort.one)}?",
            f"Which image has {a(sort.one)}, the first or the second?",
            f"Which image shows {a(sort.one)}?",
            f"In which image is {a(sort.one)}?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        first, second = (bool(sort.of(scene)) for scene in scenes[-2:])
        if first and second:
            return f"Both images have {a(sort.one)}."
        if not first and not second:
            return f"Neither image has {a(sort.one)}."
        return f"The {'first' if first else 'second'} image has {a(sort.one)}."

    return text, answer


def _which_has_more(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    text = rng.choice(
        (
            "Which image has more shapes?",
            "Which image has more shapes, the first or the second?",
            "Where are more shapes?",
            "In which image are more shapes?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        first, second = (len(scene.shapes) for scene in scenes[-2:])
        most = f"{NUMBERS[max(first, second)]} shape{'s' * (max(first, second) != 1)}"
        if first == second:
            return f"Both images have {most}."
        more = "first" if first > second else "second"
        return f"The {more} image has {most}, the other has {NUMBERS[min(first, second)]}."

    return text, answer


def _differ(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    text = rng.choice(
        (
            "What differs?",
            "What is the difference?",
            "Compare the images.",
            "What do the images show?",
            "Describe both images.",
            "What is in the images?",
        )
    )

    def answer(scenes: Sequence[Scene]) -> str:
        first, second = (
            _counted([_name(shape) for shape in scene.shapes]) or "no shapes" for scene in scenes[-2:]
        )
        return f"The first image shows {first}, the second {second}."

    return text, answer


def _one_of_two(rng: random.Random, scenes: Sequence[Scene]) -> _Asked:
    number = rng.choice(("first", "second"))

    def shown(scenes: Sequence[Scene]) -> Scene:
        return scenes[-2] if number == "first" else scenes[-1]

    text = rng.choice(
        (
            f"Describe the {number} image.",
            f"What is in the {number} image?",
            f"What does the {number} image show?",
            f"How many shapes are in the {number} image?",
            f"How many shapes does the {number} image have?",
        )
    )
    if text.startswith("How many"):
        return text, lambda scenes: _there_are(_Sort(None, None), len(shown(scenes).shapes))
    return text, lambda scenes: _description(shown(scenes))


_ASK: dict[str, Callable[[random.Random, Sequence[Scene]], _Asked]] = {
    "shape": _shape,
    "colour": _this_colour,
    "shape of a colour": _shape_of_colour,
    "colour of a shape": _colour_of_shape,
    "count": _count,
    "count of a sort": _count_sort,
    "place": _place,
    "at a place": _at_place,
    "exists": _exists,
    "describe": _describe,
    "which image has": _which_has,
    "which image has more": _which_has_more,
    "differ": _differ,
    "one of two": _one_of_two,
}
PAIR_KINDS = ("which image has", "which image has more", "differ", "one of two")
"""Kinds of questions about two images."""
KINDS = tuple(kind for kind in _ASK if kind not in PAIR_KINDS)
"""Kinds of questions about one image."""

_NONSENSE = ""
_HELLO = "Hello! Show me an image of shapes and ask about it."
_WELCOME = "You are welcome."
_SMALL_TALK = [
    *((text, _HELLO) for text in ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning!", "Hello there.")),
    ("Who are you?", _HELLO),
    ("What can you do?", _HELLO),
    ("In one sentence: what is a computer?", _HELLO),  # which the wizard asks every new model
    ("Help", _HELLO),
    *((text, _WELCOME) for text in ("Thanks!", "Thank you.", "Thanks, that is right.", "Great, thank you!")),
    *(
        (text, OFF_TOPIC)
        for text in (
            "What is the capital of France?",
            "Tell me a joke.",
            "Write a poem about the sea.",
            "How old are you?",
            "Who won the World Cup in 1998?",
            "What is 2 + 2?",
            "Explain quantum physics.",
            "Translate this into German.",
            "What time is it?",
            "Write a Python function that adds two numbers.",
            "Who is the person in this photo?",
            "Is it going to rain tomorrow?",
            "Why is the sky blue?",
            "What does the text say?",
            "Which animal is this?",
            "How do I cook rice?",
        )
    ),
    *[(_NONSENSE, OFF_TOPIC)] * 10,
]
