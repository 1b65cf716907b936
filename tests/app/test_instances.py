"""Several instances of the app on one database, each a process of its own."""

import asyncio
import signal
import sqlite3
import subprocess
import sys

import pytest

from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database

WRITER = """
import asyncio, sys
from pathlib import Path
from lite_llama.app.conversation import Conversation, Turn
from lite_llama.app.database import Database

async def main(path, name, rounds):
    database = await Database.open(Path(path))
    await database.recover()
    talk = Conversation(title=name, turns=[Turn("user", "q"), Turn("assistant", "", "streaming")])
    await database.save(talk, talk.turns)
    print("streaming", flush=True)
    for number in range(int(rounds)):
        talk.turns[1].text += f"{number} "
        await database.save(talk, talk.turns[1:])
    if int(rounds):
        talk.turns[1].status = "complete"
        await database.save(talk, talk.turns[1:])
        await database.close()
    else:
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def start(paths):
    """`start(name, rounds)`: another instance that writes a reply; with 0 rounds it never ends."""
    running = []

    def run(name, rounds):
        command = [sys.executable, "-c", WRITER, str(paths.database), name, str(rounds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def status(paths):
    with sqlite3.connect(paths.database) as database:
        return [row[0] for row in database.execute("SELECT status FROM messages WHERE role = 'assistant'")]


async def test_a_reply_of_another_running_instance_is_left_alone_until_that_is_killed(start, paths):
    other = start("other", 0)
    assert other.stdout.readline() == "streaming\n"
    ours = await Database.open(paths.database)
    assert await ours.recover() is None
    assert status(paths) == ["streaming"]
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert await ours.recover() is not None
    assert status(paths) == ["stopped"]
    await ours.close()
    assert list(paths.database.parent.glob("*.running-*")) == []


async def test_a_reply_that_this_instance_left_is_marked(paths):
    ours = await Database.open(paths.database)
    talk = Conversation(title="t", turns=[Turn("user", "q"), Turn("assistant", "half", "streaming")])
    await ours.save(talk, talk.turns)
    assert await ours.recover() == talk.id
    assert status(paths) == ["stopped"]
    await ours.close()


async def test_instances_that_start_and_write_at_once_do_no_harm(start, paths):
    processes = [start(f"writer {number}", 100) for number in range(3)]
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, timeout=60)
        assert (process.returncode, errors) == (0, "")
    database = await Database.open(paths.database)
    summaries = await database.summaries()
    assert sorted(summary.title for summary in summaries) == ["writer 0", "writer 1", "writer 2"]
    for summary in summaries:
        reply = (await database.load(summary.id)).turns[1]
        assert (reply.text.split(), reply.status) == ([str(n) for n in range(100)], "complete")
    await database.close()
