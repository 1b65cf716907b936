"""Conversations in files of other programs: JSON lines, Markdown, HTML.

JSON lines hold everything, all branches included, a conversation on each line. An HTML page shows the branch
that was shown and carries the same lines in it. Markdown holds the shown branch alone.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from pydantic import TypeAdapter

from ..engine.images import image_of
from ..models.errors import UserError
from .attachments import Attachment, attachment_of
from .conversation import Conversation, Turn
from .incoming import title_of
from .overrides import NAMES
from .settings import invalid
from .text import inert, one_line

FORMATS = (".jsonl", ".md", ".html")
_CONVERSATION = TypeAdapter(Conversation)
_YEAR_10000 = 253_402_300_800.0
"""In seconds since the epoch."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_DATA = re.compile(r'<script type="application/jsonl">\n(.*?)\n</script>', re.DOTALL)
_MARK = re.compile(r"^<!-- (user|assistant) -->\n", re.MULTILINE)
_PAGE = """\
<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 44rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }}
article {{ margin: 1rem 0; }}
.user {{ border-left: .25rem solid #b8863b; padding: .5rem 1rem; white-space: pre-wrap; }}
img {{ display: block; max-width: 100%; margin-bottom: .5rem; }}
pre {{ overflow-x: auto; padding: .75rem; border: 1px solid #8886; }}
table {{ border-collapse: collapse; }}
td, th {{ border: 1px solid #8886; padding: .25rem .5rem; }}
details, .note {{ color: #888; white-space: pre-wrap; }}
</style>
</head>
<body>
{body}
<script type="application/jsonl">
{data}
</script>
</body>
</html>
"""


def write(path: Path, conversations: Sequence[Conversation]) -> None:
    """Write the conversations in the format of the file's suffix.

    Raises UserError for another suffix, for a file that is there already, and when it cannot be written.
    """
    writers = {".jsonl": _to_jsonl, ".md": _to_markdown, ".html": _to_html}
    if (to_text := writers.get(path.suffix.lower())) is None:
        raise UserError(f"{path.name} has no known ending: name a file that ends in {', '.join(FORMATS)}.")
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent) as file:
            file.write(to_text(conversations))
            file.flush()
            os.link(file.name, path)  # fails where a file is there already
    except FileExistsError:
        raise UserError(f"{path} is there already: name another file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file.") from None


def read(path: Path) -> list[Conversation]:
    """The conversations of a file that `write` wrote, as new ones with ids of their own.

    Raises UserError when the file cannot be read or holds none.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its name.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: choose a file that was exported.") from None
    readers = {".jsonl": _from_jsonl, ".md": _from_markdown, ".html": _from_html}
    if (from_text := readers.get(path.suffix.lower())) is None:
        raise UserError(f"{path.name} has no known ending: choose a file that ends in {', '.join(FORMATS)}.")
    try:
        conversations = from_text(text)
    except (UserError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        # JSON that is no conversation goes wrong wherever it differs from one.
        raise UserError(f"{path} is damaged, or of another program: nothing was imported.") from None
    if not conversations:
        raise UserError(f"{path} holds no conversation.")
    return conversations


def file_name(conversation: Conversation) -> str:
    """A name for the file that a conversation is exported to, without a suffix."""
    words = re.sub(r"[^\w-]+", "-", inert(conversation.title)).strip("-")
    return words[:60] or "conversation"


def _to_jsonl(conversations: Iterable[Conversation]) -> str:
    return "".join(json.dumps(_as_dict(each), ensure_ascii=False) + "\n" for each in conversations)


def _as_dict(conversation: Conversation) -> dict[str, object]:
    left_out = {"turns": True, "queue": True, "all_turns": {"__all__": {"images"}}}
    values = _CONVERSATION.dump_python(conversation, mode="json", exclude=left_out)
    for stored, turn in zip(values["all_turns"], conversation.all_turns, strict=True):
        stored["images"] = [_image_as_dict(image) for image in turn.images]
    return {"format": 1, **values, "leaf_id": conversation.leaf_id}


def _image_as_dict(attachment: Attachment) -> dict[str, str]:
    """The content is empty where the image's copy is gone."""
    content = attachment.image.content if attachment.image else b""
    return {"name": attachment.name, "content": base64.b64encode(content).decode("ascii")}


def _image_from_dict(values: dict[str, str]) -> Attachment:
    """Raises UserError, ValueError or KeyError for what is no image."""
    return attachment_of(image_of(values["name"], base64.b64decode(values["content"], validate=True)))


def _from_jsonl(text: str) -> list[Conversation]:
    return [_from_dict(_parsed(line)) for line in text.split("\n") if line.strip()]


def _parsed(line: str) -> Any:
    """What the JSON stands for; lone surrogates, which no file and no database takes, are replaced.

    Raises ValueError, also for numbers that are infinite or none, and RecursionError.
    """
    plain = json.dumps(json.loads(line), ensure_ascii=False, allow_nan=False)
    return json.loads(_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", plain))


def _from_dict(values: Any) -> Conversation:
    """What goes wrong with values that are no conversation, `read` knows."""
    if values.pop("format") != 1:
        raise ValueError("another format")
    leaf_id = values.pop("leaf_id")
    values.pop("queue", None)  # not written, and nothing is to be sent that this user has not queued
    for stored in values["all_turns"]:
        stored["images"] = [_image_from_dict(image) for image in stored.get("images", ()) if image["content"]]
    read = _CONVERSATION.validate_python(values, strict=False)
    new: dict[str | None, str | None] = {None: None}
    for turn in read.all_turns:
        if turn.parent_id not in new or turn.id in new or turn.role == "system":
            raise ValueError("no tree")
        fresh = Turn(turn.role, turn.text)
        new[turn.id] = fresh.id
        turn.id, turn.parent_id = fresh.id, new[turn.parent_id]
        if turn.status == "streaming":
            turn.status = "stopped"
    if set(read.overrides) - set(NAMES) or invalid(read.overrides):
        raise ValueError("wrong settings")
    if not read.all_turns:
        raise ValueError("no turns")
    if not all(0 <= each.created < _YEAR_10000 for each in (read, *read.all_turns)):
        raise ValueError("no time that a clock could show")
    read.id = Conversation().id
    read.unread_id = new.get(read.unread_id)
    leaf = new.get(str(leaf_id))
    read.show(next((turn for turn in read.all_turns if turn.id == leaf), read.all_turns[-1]))
    return read


def _to_markdown(conversations: Iterable[Conversation]) -> str:
    return "\n".join(
        f"# {one_line(each.title)}\n\n"
        + "".join(f"<!-- {turn.role} -->\n## {_who(turn)}\n\n{_with_names(turn)}\n\n" for turn in each.turns)
        for each in conversations
    )


def _with_names(turn: Turn) -> str:
    """The text, below the names of its images."""
    return "\n\n".join([*(f"*{one_line(image.name)}*" for image in turn.images), turn.text])


def _from_markdown(text: str) -> list[Conversation]:
    conversations: list[Conversation] = []
    title, *parts = _MARK.split(text)
    for role, part in zip(parts[::2], parts[1::2], strict=True):
        said, *following = re.split(r"\n\n\n(?=# .*\n\n\Z)", part)
        if title:
            conversations.append(Conversation(title=title_of(title.strip().removeprefix("# "))))
        said = said.partition("\n\n")[2]  # after the heading
        conversations[-1].add(Turn("user" if role == "user" else "assistant", said.rstrip("\n")))
        title = "".join(following)
    return conversations


def _image_tag(attachment: Attachment) -> str:
    """The picture as it is on the screen: small, and decoded and encoded anew."""
    name = html.escape(one_line(attachment.name))
    if attachment.thumbnail is None:
        return f"<p>{name}</p>"
    content = io.BytesIO()
    attachment.thumbnail.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _to_html(conversations: Sequence[Conversation]) -> str:
    markdown = MarkdownIt("gfm-like", {"html": False})  # which leaves no tag and no script of a reply alive
    body = []
    for conversation in conversations:
        body.append(f"<h1>{html.escape(one_line(conversation.title))}</h1>")
        for turn in conversation.turns:
            if turn.role == "user":
                shown = "".join(_image_tag(image) for image in turn.images)
                body.append(f'<article class="user">{shown}{html.escape(inert(turn.text))}</article>')
                continue
            body.append('<article class="assistant">')
            if turn.thinking.text:
                thought = html.escape(inert(turn.thinking.text))
                body.append(f"<details><summary>Thinking</summary>{thought}</details>")
            body.append(markdown.render(inert(turn.text)))
            if turn.note:
                body.append(f'<p class="note">{html.escape(inert(turn.note))}</p>')
            body.append("</article>")
    title = one_line(conversations[0].title) if len(conversations) == 1 else "Conversations"
    data = _to_jsonl(conversations).strip("\n").replace("<", "\\u003c")  # no text can end the script
    return _PAGE.format(title=html.escape(title), body="\n".join(body), data=data)


def _from_html(text: str) -> list[Conversation]:
    found = _DATA.search(text)
    return _from_jsonl(found[1]) if found else []


def _who(turn: Turn) -> str:
    return "You" if turn.role == "user" else "Assistant"
