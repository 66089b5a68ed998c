"""Protocols by name: their settings, who may change them, and what is refused in one line."""

from pathlib import Path

import pytest
from omegaconf import DictConfig

from mbrl.compose import check_overrides, composed, composed_jobs
from mbrl.errors import UserError


def protocol_of(config: DictConfig) -> tuple:
    env, evaluation = config.env, config.eval
    episode = (env.episode_length, env.action_repeat, env.goals, env.success_bonus, env.mirrored)
    return (config.protocol.name, *episode, evaluation.episodes, evaluation.success)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("default", 200, 2, "fresh", 0.0, False, 20, "any")),
        (["protocol=tdmpc2"], ("tdmpc2", 200, 2, "fresh", 0.0, False, 10, "last")),
        (["protocol=dreamerv3", "env=mt10"], ("dreamerv3", 200, 2, "fresh", 0.0, False, 10, "last")),
        (["protocol=ivideogpt"], ("ivideogpt", 200, 2, "fresh", 10.0, True, 20, "any")),
        (["protocol=ivideogpt", "env.quality=full"], ("ivideogpt", 200, 2, "fresh", 10.0, True, 20, "any")),
        (["protocol=default", "eval.success=last"], ("default", 200, 2, "fresh", 0.0, False, 20, "last")),
        # a study does not change a protocol, also where it has settings of its own for it
        (["experiment=smoke", "protocol=tdmpc2"], ("tdmpc2", 200, 2, "fresh", 0.0, False, 10, "last")),
    ],
)
def test_a_protocol_sets_episodes_and_evaluation(arguments: list[str], expected: tuple) -> None:
    assert protocol_of(composed(arguments)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["protocol=tdmpc"], "no protocol named 'tdmpc'; nearest: tdmpc2"),
        (["protocol=null"], "protocol=null is not allowed: choose one of default, dreamerv3, ivideogpt, tdmpc2"),
        (["protocol=tdmpc2,ivideo"], "no protocol named 'ivideo'; nearest: ivideogpt"),
        (["protocol.name=tdmpc2"], "eval.episodes is 20, and protocol=tdmpc2 means 10"),
        (["protocol.name=../agent/sac"], "protocol.name=../agent/sac chooses nothing"),
        (["protocol.name=foo"], "protocol.name=foo chooses nothing, it only records the choice: give protocol=NAME"),
        (
            ["protocol=tdmpc2", "eval.episodes=3"],
            "eval.episodes is 3, and protocol=tdmpc2 means 10: leave eval.episodes",
        ),
        (["protocol=tdmpc2,default", "eval.success=last,any"], "eval.success is any, and protocol=tdmpc2 means last"),
        (["protocol=ivideogpt", "env.camera=corner2"], "env.camera is corner2, and protocol=ivideogpt means corner"),
        (
            ["protocol=tdmpc2", "env=toy"],
            r"protocol=tdmpc2 sets env.goals, which this environment \(toy\) does not have",
        ),
    ],
)
def test_what_is_no_protocol_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_overrides(arguments)
    assert "\n" not in str(caught.value)


def test_every_job_of_a_sweep_has_the_settings_of_its_protocol() -> None:
    with pytest.raises(UserError, match=r"eval\.episodes is 20, and protocol=tdmpc2 means 10"):
        composed_jobs(["protocol=default,tdmpc2", "eval.episodes=10,20"])
    assert len(composed_jobs(["protocol=default,tdmpc2", "seed=0,1"])) == 4


def test_a_protocol_of_ones_own_is_held_too(tmp_path: Path) -> None:
    (tmp_path / "protocol").mkdir()
    own = "# @package _global_\nprotocol: {name: lab}\nenv: {episode_length: 40}\n"
    own += "eval: {every: '${env.episode_length}'}\n"
    (tmp_path / "protocol" / "lab.yaml").write_text(own)
    config = composed(["protocol=lab", "env=toy"], config_dir=tmp_path)
    assert (config.protocol.name, config.env.episode_length, config.eval.every) == ("lab", 40, 40)
    with pytest.raises(UserError, match=r"env\.episode_length is 30, and protocol=lab means 40"):
        composed(["protocol=lab", "env=toy", "env.episode_length=30"], config_dir=tmp_path)
