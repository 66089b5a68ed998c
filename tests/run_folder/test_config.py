"""A run folder's configuration: whose it is, and that it is plain settings and no code."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mbrl.errors import UserError
from mbrl.run_folder.config import WRITTEN, claim_run_folder, load_config, load_settings, read_config, require_whole


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


def test_a_folder_of_other_files_is_refused_and_one_whose_job_has_begun_is_not(tmp_path):
    config = OmegaConf.create({"seed": 1})
    for name in (".lock", "log.txt", "replay"):
        (tmp_path / "begun" / name).mkdir(parents=True)
    claim_run_folder(tmp_path / "begun", config)
    (tmp_path / "code.py").touch()
    with pytest.raises(UserError, match=r"other files \(begun, code.py\) and is no run folder: .* run_dir=\.\.\."):
        claim_run_folder(tmp_path, config)
    assert not (tmp_path / "config.yaml").exists()


def test_folder_belongs_to_one_config_but_for_how_it_is_watched(tmp_path):
    config = OmegaConf.create({"seed": 1, "eval": {"every": 10, "episodes": 20}, "agent": {"lr": 0.1}})
    claim_run_folder(tmp_path, config)
    (tmp_path / "metrics.jsonl").touch()
    claim_run_folder(tmp_path, OmegaConf.merge(config, {"eval": {"every": 99}}))
    assert load_config(tmp_path).eval.every == 99
    with pytest.raises(ValueError, match=r"agent.lr: 0.1 there, 0.2 here"):
        claim_run_folder(tmp_path, OmegaConf.merge(config, {"agent": {"lr": 0.2}}))
    with pytest.raises(ValueError, match=r"eval.episodes: 20 there, 50 here"):  # one curve, one protocol
        claim_run_folder(tmp_path, OmegaConf.merge(config, {"eval": {"episodes": 50}}))


def test_a_run_of_an_earlier_version_goes_on_with_what_it_ran_with(tmp_path):
    old = {"seed": 1, "eval": {"every": 10}}
    claim_run_folder(tmp_path, OmegaConf.create(old))
    (tmp_path / "metrics.jsonl").touch()
    assert load_settings(tmp_path)["eval.success"] == "any" and load_settings(tmp_path)["protocol.name"] == "default"
    now = OmegaConf.create({"seed": 1, "eval": {"every": 10, "success": "any"}, "protocol": {"name": "default"}})
    claim_run_folder(tmp_path, now)
    with pytest.raises(ValueError, match=r"eval.success: any there, last here"):
        claim_run_folder(tmp_path, OmegaConf.merge(now, {"eval": {"success": "last"}}))
    claim_run_folder(tmp_path, now)
    with pytest.raises(ValueError, match=r"protocol.name: default there, tdmpc2 here"):
        claim_run_folder(tmp_path, OmegaConf.merge(now, {"protocol": {"name": "tdmpc2"}}))


def test_a_size_is_compared_by_what_it_sets(tmp_path: Path) -> None:
    old, now = ({"agent": {"width": 256, **size}} for size in ({}, {"size": "1M"}))
    claim_run_folder(tmp_path, OmegaConf.create(old))
    (tmp_path / "metrics.jsonl").touch()
    claim_run_folder(tmp_path, OmegaConf.create(now))
    with pytest.raises(ValueError, match=r"config \(agent.width: 256 there, 512 here\)"):
        claim_run_folder(tmp_path, OmegaConf.create({"agent": {"width": 512, "size": "5M"}}))


def test_what_is_no_run_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        load_config(tmp_path)


def test_values_come_back_as_they_were_written(tmp_path):
    values = {"a": 1e-5, "b": 1e20, "c": "1e5", "d": None, "e": [1, 2.5, "x"], "f": "2026-01-01", "g": True, "h": "no"}
    claim_run_folder(tmp_path, OmegaConf.create(values))
    assert OmegaConf.to_container(load_config(tmp_path)) == values


BOMB = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.getcwd []\n", "line 1 has a tag or an anchor"),
        ("x: 1\na: !!python/name:os.system\n", "line 2 has a tag or an anchor"),
        (BOMB, "line 1 has a tag or an anchor"),
        ("a: ${oc.env:HOME}\n", "it has interpolations"),
        ("[" * 500_000, "nested more than 64 deep"),
        ("a: [1\n", "cannot be read"),
        ("- 1\n- 2\n", "it holds no settings by name"),
        ("a: " + "x" * 2**21, "larger than"),
        ("", "it holds no settings by name"),
    ],
)
def test_what_is_more_than_plain_settings_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_config(write(tmp_path, text) / "config.yaml")
    assert "config.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["os.getcwd", "builtins.eval", "mbrlx.Agent", "torch.load", "null", "[1]"])
def test_classes_of_others_are_refused_by_name(tmp_path, name):
    folder = write(tmp_path, f"agent:\n  policy:\n    list:\n    - deep:\n        _target_: {name}\n")
    with pytest.raises(ValueError, match=r"agent\.policy\.list\[0\]\.deep\._target_ names .*give --config-dir"):
        load_config(folder)


@pytest.mark.parametrize("name", ["runs.downloaded.evil:X-v0", "mbrl.tour:X-v0"])
@pytest.mark.parametrize("place", ["env", "agent.world_model.env", "agent.parts[0].env"])
def test_packages_of_an_environments_id_are_refused_at_any_depth(tmp_path: Path, place: str, name: str) -> None:
    env = OmegaConf.create({"_target_": "mbrl.envs.registered.make_env", "id": name})
    config = OmegaConf.create({"env": {}, "agent": {"world_model": {}, "parts": [{}]}})
    OmegaConf.update(config, place, env)
    folder = write(tmp_path, OmegaConf.to_yaml(config))
    with pytest.raises(UserError, match=re.escape(f"{place}.id names {name}, which is no part of this project")):
        load_config(folder)
    assert load_config(folder, {name}) == config


def test_classes_that_the_user_names_are_allowed(tmp_path):
    folder = write(tmp_path, "agent: {policy: {_target_: mine.Policy}, optimizer: {_target_: torch.optim.Adam}}\n")
    with pytest.raises(ValueError, match=r"agent\.policy\._target_ names mine\.Policy"):
        load_config(folder)
    assert load_config(folder, {"mine.Policy"}).agent.policy["_target_"] == "mine.Policy"


def test_a_configuration_that_was_cut_off_is_told(tmp_path: Path) -> None:
    config = OmegaConf.create()
    for key in WRITTEN:
        with pytest.raises(ValueError, match=rf"config\.yaml lacks {key}: it is torn"):
            require_whole(config, tmp_path)
        OmegaConf.update(config, key, 1, force_add=True)
    require_whole(config, tmp_path)


def test_settings_of_earlier_versions_are_dropped_where_they_did_nothing(tmp_path: Path) -> None:
    earlier = {
        "model_error": {"gate": None, "every": 9},
        "imagination": {"recent_starts": 0.0},
        "cloning": {"proposals": False, "anchor": True},
        "model_error.gate": None,
        "world_model": {"ensemble": 1, "uncertainty": True, "pretrained": None},
        "own": {"world_model": {"_target_": "mine.Model", "ensemble": 1}},
    }
    text = OmegaConf.to_yaml({"agent": earlier, "eval": {"every": 1}})
    assert read_config(write(tmp_path, text) / "config.yaml").agent == {
        "model_error": {"every": 9}, "imagination": {}, "cloning": {"anchor": True}, "model_error.gate": None,
        "world_model": {"pretrained": None}, "own": {"world_model": {"_target_": "mine.Model", "ensemble": 1}},
    }  # fmt: skip
    assert (
        read_config(write(tmp_path, text.replace("0.0", "0.5")) / "config.yaml").agent.imagination.recent_starts == 0.5
    )


def test_a_setting_that_is_gone_matters_where_it_was_in_use(tmp_path: Path) -> None:
    now = OmegaConf.create({"agent": {"rate": 0.1}})
    for name, value in (("unused", None), ("used", 0.5)):
        claim_run_folder(tmp_path / name, OmegaConf.merge(now, {"agent": {"cut_above": {"entropy": value}}}))
        (tmp_path / name / "metrics.jsonl").touch()
    claim_run_folder(tmp_path / "unused", now)
    with pytest.raises(ValueError, match=r"agent.cut_above.entropy: 0.5 there, absent here"):
        claim_run_folder(tmp_path / "used", now)
    with pytest.raises(ValueError, match=r"agent.new: absent there, None here"):
        claim_run_folder(tmp_path / "unused", OmegaConf.merge(now, {"agent": {"new": None}}))


def test_what_decides_the_speed_alone_may_differ_in_any_part(tmp_path: Path) -> None:
    config = OmegaConf.create({"cuda_graphs": False, "agent": {"policy": {"cuda_graphs": False, "rate": 0.1}}})
    claim_run_folder(tmp_path, config)
    (tmp_path / "metrics.jsonl").touch()
    captured = {"cuda_graphs": True, "agent": {"policy": {"cuda_graphs": True}}}
    claim_run_folder(tmp_path, OmegaConf.merge(config, captured))
    with pytest.raises(ValueError, match=r"env\.threads: absent there, 2 here"):  # not the run's own threads
        claim_run_folder(tmp_path, OmegaConf.merge(config, {"env": {"threads": 2}}))
    with pytest.raises(ValueError, match=r"config \(agent\.policy\.rate: 0\.1 there, 0\.2 here\)"):
        claim_run_folder(tmp_path, OmegaConf.merge(config, captured, {"agent": {"policy": {"rate": 0.2}}}))
