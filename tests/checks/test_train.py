"""What does not fit into an episode is refused before anything is built."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import mbrl
from mbrl.checks.train import check, warn_of_unused_weights
from mbrl.errors import UserError

SHORT = ["agent=dreamer_ivideogpt", "env.episode_length=28", "collect.frames_per_batch=14", "agent.segment_length=12"]


def test_segments_of_real_steps_are_no_longer_than_an_episode() -> None:
    with initialize_config_module("configs", version_base="1.3"):
        short = compose("train", SHORT)
        without = compose("train", [*SHORT, "agent.policy.replay_value_weight=0"])
    with pytest.raises(
        UserError, match=r"agent\.policy\.replay_rows \(16\) is longer than the 15 frames of an episode"
    ):
        check(short)
    check(without)


def test_the_replay_stacks_as_many_frames_as_the_environment() -> None:
    with initialize_config_module("configs", version_base="1.3"):
        apart, alike = (
            compose("train", ["env=toy", "agent=drqv2", f"{key}.frame_stack=1"]) for key in ("replay", "env")
        )
    with pytest.raises(UserError, match=r"^replay\.frame_stack \(1\) must be env\.frame_stack \(3\): leave it out"):
        check(apart)
    check(alike)


def test_workers_of_ray_do_not_act_with_a_policy_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["env=toy", "agent=sac", "collect.frames_per_batch=20", "collect.backend=ray"]
    with initialize_config_module("configs", version_base="1.3"):
        several = compose("train", [*chosen, "collect.workers=2"])
    monkeypatch.setattr("mbrl.checks.train.find_device", lambda name: torch.device("cuda:1"))
    with pytest.raises(UserError, match=r"device is cuda:1: set device=cpu or collect\.backend=process$"):
        check(several)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["agent=dreamerv3", "worldmodel.pretrained=weights"], True),
        (["agent=dreamerv3"], False),
        (["agent=mbpo_ivideogpt", "worldmodel.pretrained=weights", "agent.real_ratio=1"], False),
        (["agent=mbpo_learned_frames", "experiment=few_steps"], False),
    ],
)
def test_weights_that_no_part_of_the_agent_starts_from_are_told(
    settings: list[str], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with initialize_config_module("configs", version_base="1.3"):
        warn_of_unused_weights(compose("train", settings))
    assert ("pretrained=weights is not used: no part of agent dreamerv3" in caplog.text) == told == bool(caplog.text)


def test_several_tasks_and_gymnasium_are_not_named_after_one_task_of_metaworld(tmp_path: Path) -> None:
    gym = ["env=gym", "env.id=Pendulum-v1", f"run_dir={tmp_path}"]
    with initialize_config_module("configs", version_base="1.3"):
        several = compose("train", ["env=mt10", "agent=sac", f"run_dir={tmp_path}", "env.task=hammer-v3"])
        named = [compose("train", [*gym, f"env.task={task}"]) for task in ("hammer", "swing-up")]
        study = compose("train", [*gym, "experiment=quickstart"])
    with pytest.raises(UserError, match=r"^env\.task=hammer-v3 would only name this run.*env\.task=several, or"):
        check(several)
    with pytest.raises(UserError, match=r"^env\.task=hammer would only name this run.*env\.task=Pendulum-v1, or"):
        check(named[0])
    check(named[1])
    check(study)
    assert study.env.task == "Pendulum-v1", "a study leaves an environment its own name"
    (tmp_path / "metrics.jsonl").touch()
    check(named[0])  # a run that has begun goes on


def test_a_run_of_a_device_that_is_not_here_is_read_on_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("train", ["env=toy", "agent=sac", "device=cuda:99", f"run_dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):  # the policy is built by then
        mbrl.load(tmp_path).evaluate()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: this machine has no device=cuda:99, which the run was trained on: device=auto"
    ]
    with pytest.raises(UserError, match=r"^device=cuda:99 is not allowed"):
        check(config)  # a run that is trained keeps its device
