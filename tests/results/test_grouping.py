"""Runs are seeds of one experiment only where their settings say so."""

from pathlib import Path

import yaml

from mbrl.compose import CONFIGS
from mbrl.results.grouping import NAMED, SET_BY_NAME, distinct_names, names_by_study
from mbrl.run_folder.config import flatten

SETTINGS = {"env.goals": "fresh", "eval.episodes": 20, "agent.real_ratio": 0.5, "seed": 0, "env.task": "hammer"}


def test_seeds_and_tasks_of_one_experiment_keep_the_agents_name() -> None:
    settings = [SETTINGS, SETTINGS | {"seed": 1}, SETTINGS | {"env.task": "door-lock", "run_dir": "elsewhere"}]
    settings[2]["agent.policy.task"] = "door-lock"  # a script's
    assert distinct_names(["mbpo"] * 3, settings) == ["mbpo"] * 3


def test_agents_may_differ_from_each_other_in_their_own_settings() -> None:
    settings = [SETTINGS, SETTINGS | {"agent.real_ratio": 1.0}]
    assert distinct_names(["mbpo", "sac"], settings) == ["mbpo", "sac"]


def test_another_protocol_is_marked_on_every_agent() -> None:
    settings = [SETTINGS, SETTINGS | {"eval.episodes": 5}, None]
    assert distinct_names(["mbpo", "sac", "tdmpc2"], settings) == [
        "mbpo [eval.episodes=20]", "sac [eval.episodes=5]", "tdmpc2",
    ]  # fmt: skip


TDMPC2 = SETTINGS | {"protocol.name": "tdmpc2", "eval.success": "last", "eval.episodes": 10, "env.goals": "fresh"}
DEFAULT = SETTINGS | {"protocol.name": "default", "eval.success": "any"}


def test_a_protocol_by_name_stands_for_the_settings_that_follow_from_it() -> None:
    assert distinct_names(["mbpo", "sac"], [DEFAULT, TDMPC2]) == ["mbpo [protocol=default]", "sac [protocol=tdmpc2]"]
    assert distinct_names(["mbpo", "mbpo"], [TDMPC2, TDMPC2 | {"seed": 1}]) == ["mbpo", "mbpo"]
    several = [DEFAULT, DEFAULT | {"eval.episodes": 5}, TDMPC2]
    assert distinct_names(["mbpo"] * 3, several) == [
        "mbpo [protocol=default, eval.episodes=20]", "mbpo [protocol=default, eval.episodes=5]",
        "mbpo [protocol=tdmpc2, eval.episodes=10]",
    ]  # fmt: skip
    assert distinct_names(["mbpo"] * 2, [DEFAULT, TDMPC2 | {"agent.real_ratio": 1.0}]) == [
        "mbpo [protocol=default, real_ratio=0.5]", "mbpo [protocol=tdmpc2, real_ratio=1.0]",
    ]  # fmt: skip


def test_every_setting_of_a_protocol_follows_from_its_name() -> None:
    for file in (CONFIGS / "protocol").glob("*.yaml"):
        assert set(flatten(yaml.safe_load(file.read_text()))) - {NAMED} <= SET_BY_NAME, file.name


def test_success_at_the_last_step_is_another_protocol() -> None:
    names = distinct_names(["mbpo", "sac"], [DEFAULT, DEFAULT | {"eval.success": "last"}])
    assert names == ["mbpo [eval.success=any]", "sac [eval.success=last]"]


def test_a_setting_that_one_run_lacks_differs() -> None:
    settings = [SETTINGS, SETTINGS | {"agent.optimism": 2.0}]
    assert distinct_names(["mbpo", "mbpo"], settings) == ["mbpo [optimism=–]", "mbpo [optimism=2.0]"]


def test_a_size_is_compared_by_what_it_sets() -> None:
    settings = [SETTINGS | {"agent.width": 256} | size for size in ({}, {"agent.size": "1M"})]
    assert distinct_names(["tdmpc2"] * 2, settings) == ["tdmpc2"] * 2
    settings.append(SETTINGS | {"agent.width": 512, "agent.size": "5M"})
    assert distinct_names(["tdmpc2"] * 3, settings)[1:] == ["tdmpc2 [width=256]", "tdmpc2 [width=512]"]


def test_what_belongs_to_a_task_is_compared_within_it() -> None:
    demos = [SETTINGS | {"replay.demos": f"demos/{name}", "env.task": name} for name in ("hammer", "door-lock")]
    assert distinct_names(["bc + demos"] * 2, demos) == ["bc + demos"] * 2
    other = demos[0] | {"replay.demos": "demos/hammer-50-episodes-of-noise"}
    names = distinct_names(["bc + demos"] * 3, [*demos, other])
    assert len(set(names)) == 3 and all(len(name) < 60 for name in names)
    several = SETTINGS | {"env.task": "mt10", "env.tasks": ["reach", "push"], "env._target_": "elsewhere"}
    assert distinct_names(["sac"] * 2, [SETTINGS, several]) == ["sac"] * 2
    registered = [SETTINGS | {"env.id": name, "env.task": name} for name in ("Hopper-v5", "Walker2d-v5")]
    assert distinct_names(["sac"] * 2, registered) == ["sac"] * 2


def test_many_differences_still_tell_experiments_apart() -> None:
    settings = [SETTINGS | {f"agent.{letter}": value for letter in "abcd"} for value in (0, 1)]
    settings.append(settings[1] | {"agent.d": 2})
    names = distinct_names(["mbpo"] * 3, settings)
    assert len(set(names)) == 3 and all(len(name) < 50 for name in names)


def test_nested_settings_get_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}


def test_an_agent_that_has_the_environment_among_its_settings_is_one_agent_on_all_tasks() -> None:
    settings = [
        SETTINGS | {"env.task": task, "agent.world_model.env.task": task, "agent.world_model.simulator.env.seed": task}
        for task in ("hammer", "door-lock")
    ]
    assert distinct_names(["mbpo_simulator"] * 2, settings) == ["mbpo_simulator"] * 2


def test_curves_of_different_studies_are_no_seeds_of_one_agent() -> None:
    main, steps, copy = Path("/runs/reference"), Path("/runs/reference/steps"), Path("/copy/reference")
    assert names_by_study(["sac", "sac", "mbpo"], [None, main, main]) == ["sac", "sac [reference]", "mbpo"]
    assert names_by_study(["sac"] * 3, [steps, main, main]) == ["sac [steps]", "sac [reference]", "sac [reference]"]
    assert names_by_study(["sac", "sac"], [main, copy]) == ["sac [runs/reference]", "sac [copy/reference]"]
    assert names_by_study(["sac", "sac", "mbpo"], [main, main, steps]) == ["sac", "sac", "mbpo"]
    assert names_by_study(["sac", "sac"], [None, None]) == ["sac", "sac"]
