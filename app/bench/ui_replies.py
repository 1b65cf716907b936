"""The replies that `bench ui` streams: what is hardest to show while it is still being written."""

from __future__ import annotations

END = "∎"
"""The last character of a reply, and in no other place: once it is on the screen, all of it was shown."""
TOKEN_CHARACTERS = 4
TABLE_ROWS = 80
PROSE_CHARACTERS = 6_000
KB = 1_000

_FUNCTION = '''\
def merge_{number}(left: list[int], right: list[int]) -> list[int]:
    """Merge two sorted lists into one, the smaller head first."""
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:  # equal ones stay in order
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


'''
_SECTION = """\
### Step {number}

To find the roots of $a x^2 + b_{{{number}}} x + c = 0$, **complete the square** and take care of the *sign*:

- call `solve(a, b, c)` with `a != 0`, or the division fails
- the discriminant \\(b^2 - 4ac\\) tells how many roots are real
  1. positive: two of them
  2. zero: one, counted twice
- see [the proof](https://example.org/proof/{number}) for why nothing is lost

$$x_{{1,2}} = \\frac{{-b \\pm \\sqrt{{b^2 - 4ac}}}}{{2a}}$$

> A root that is found is checked by putting it back into the equation.

The sum of the roots is $-b/a$ and their product $c/a$, which is `Vieta`'s rule; with rounding errors the
larger root is computed first and the other one from the product.

"""


def code(characters: int) -> str:
    """A fence of Python of that length."""
    functions = characters // len(_FUNCTION) + 1
    text = "".join(_FUNCTION.format(number=number) for number in range(functions))
    return f"```python\n{text[:characters]}\n```\n\n"


def table() -> str:
    """A table of 80 rows and five columns."""
    rows = [
        f"| {row} | planet-{row:03d} | {row * 7919 % 1000 / 10:.1f} AU | "
        f"`0x{row * 2654435761 % 2**32:08x}` | {'rocky, no air' if row % 3 else 'a **gas** giant'} |"
        for row in range(1, TABLE_ROWS + 1)
    ]
    head = ["| No | Name | Distance | Id | Remark |", "|---:|:-----|---------:|----|--------|"]
    return "\n".join([*head, *rows, "", ""])


def prose() -> str:
    """Headings, lists in lists, quotes, inline code and formulas."""
    sections = PROSE_CHARACTERS // len(_SECTION) + 1
    return "".join(_SECTION.format(number=number) for number in range(1, sections + 1))


REPLIES = {
    "code 8 KB": code(8 * KB),
    "code 40 KB": code(40 * KB),
    "table": table(),
    "prose": prose(),
}


def turn(number: int) -> str:
    """The reply to one question of a long conversation, with its number at the end."""
    return f"{_SECTION.format(number=number)}{code(400)}{END}{number}."


def tokens(text: str) -> list[str]:
    """The pieces that a reply comes in."""
    return [text[start : start + TOKEN_CHARACTERS] for start in range(0, len(text), TOKEN_CHARACTERS)]
