"""Messages of a browser: what is well formed passes, everything else is one clear error."""

import json

import pytest

from mbrl.errors import UserError
from mbrl.play.messages import COMMANDS, MAX_LETTERS, parse

GOOD = [
    {"command": "act", "action": [0, -1, 0.5], "held": True, "number": 3},
    {"command": "play", "on": False},
    {"command": "step"},
    {"command": "speed", "value": 30},
    {"command": "temperature", "value": 0.5},
    {"command": "reset", "goal": None},
    {"command": "reset", "goal": 4},
    {"command": "rewind", "index": 0},
    {"command": "start", "source": "replay", "episode": 1, "step": 2},
]
BAD = [
    "", "{", "[]", "null", "1", '"step"', "{}", '{"command": 3}', '{"command": "__class__"}', '{"command": ["step"]}',
    '{"command": "step", "more": 1}', '{"command": "play"}', '{"command": "play", "on": 1}',
    '{"command": "act", "action": [2], "held": true, "number": 0}',
    '{"command": "act", "action": [NaN], "held": true, "number": 0}',
    '{"command": "act", "action": [Infinity], "held": true, "number": 0}',
    '{"command": "act", "action": [1e999], "held": true, "number": 0}',
    '{"command": "act", "action": [true], "held": true, "number": 0}',
    '{"command": "act", "action": "left", "held": true, "number": 0}',
    '{"command": "act", "action": {"0": 1}, "held": true, "number": 0}',
    '{"command": "act", "action": [0], "held": true, "number": -1}',
    '{"command": "speed", "value": 0}', '{"command": "speed", "value": 1e9}', '{"command": "speed", "value": null}',
    '{"command": "rewind", "index": 1.5}', '{"command": "rewind", "index": -1}', '{"command": "rewind", "index": "1"}',
    '{"command": "rewind", "index": 99999999999999999999}', '{"command": "rewind", "index": true}',
    '{"command": "drive", "driver": 1}', json.dumps({"command": "drive", "driver": "x" * 300}),
    "[" * 3000, '{"command": "step"' + " " * MAX_LETTERS + "}", '{"command": "rewind", "index": ' + "9" * 4000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("message", GOOD, ids=str)
def test_commands_are_read(message: dict[str, object]) -> None:
    command = parse(json.dumps(message))
    assert {"command": command.name, **command.values} == message
    assert set(command.values) == set(COMMANDS[command.name])


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:50])
def test_anything_else_is_one_clear_error(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
