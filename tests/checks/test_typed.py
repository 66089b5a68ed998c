"""Settings of whole configurations: each is typed where it stands, before anything is built or claimed."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mbrl.compose import composed
from mbrl.errors import UserError
from mbrl.pretraining.pretrain import check as check_pretraining
from mbrl.settings.values import SettingError
from mbrl.start import train_unless_finished
from mbrl.training import check

TOY = ["env=toy", "experiment=smoke"]


@pytest.mark.parametrize(
    ("agent", "setting", "allowed"),
    [
        ("sac", "agent.policy.learning_rate=-1", "a number in (0, 1]"),
        ("sac", "agent.policy.target_rate=0", "a number in (0, 1]"),
        ("sac", "agent.policy.actor_network.hidden_sizes=[256,0]", "a list, each a whole number in [1, 65536]"),
        ("sac", "agent.policy=null", "settings whose _target_ makes a Policy"),
        ("sac", "agent.batch_size=2.5", "a whole number in [1, 1e+12]"),
        ("sac", "agent.updates_per_step=null", "a number in [0, 1000000]"),
        ("sac", "agent.updates_per_step=-3", "a number in [0, 1000000]"),
        ("sac", "agent.batch_size=0", "a whole number in [1, 1e+12]"),
        ("sac", "agent.learning_starts=-1", "a whole number in [0, 1e+12]"),
        ("sac", "agent.gamma=1.5", "a number in (0, 1]"),
        ("sac", "agent.n_step=0", "a whole number in [1, 10000]"),
        ("sac", "replay.gamma=nan", "a number in (0, 1]"),
        ("sac", "replay.demo_share=2", "a number in [0, 1]"),
        ("sac", "agent.cloning.updates=-1", "a whole number in [0, 1e+12]"),
        ("sac", "agent.cloning.env_steps=0", "a whole number in [1, 1e+12]"),
        ("sac", "agent.cloning.weight=-1", "a number in [0, 1000000]"),
        ("sac", "agent.n_step=abc", "a whole number in [1, 10000]"),
        ("sac", "env.action_repeat=0", "a whole number in [1, 1e+12]"),
        ("sac", "replay.capacity=-1", "a whole number in [1, 1e+12]"),
        ("sac", "eval.seed=abc", "a whole number in [0, 4294967295]"),
        ("sac", "collect.backend=7", "process or ray"),
        ("sac", "threads=0", "a whole number in [1, 1024] or null"),
        ("sac", "wandb=true", "text or null"),
        ("mbpo", "agent.imagine_every=0", "a whole number in [1, 1e+12]"),
        ("mbpo", "agent.world_model.check_every=0", "a whole number in [1, 1e+12]"),
        ("mbpo", "agent.world_model.optimizer.lr=1e30", "a number in [0, 1]"),
        ("mbpo", "agent.imagination.cut_above.reward_std=abc", "a number in [0, 1000000] or null"),
        ("mbpo", "agent.real_ratio=1.5", "a number in [0, 1]"),
        ("mbpo_ivideogpt", "agent.model_batch_size=0", "a whole number in [1, 1e+12]"),
        ("mbpo", "agent.model_error.plans=0", "a whole number in [1, 1e+12]"),
        ("mbpo", "agent.model_error.horizon=0", "a whole number in [1, 10000]"),
        ("drqv2", "agent.policy.std_start=1e30", "a number in [0, 2]"),
        ("dreamerv3", "agent.policy.world_model.blocks=0", "a whole number in [1, 1000]"),
        ("tdmpc2", "agent.policy.behaviour.critics=1", "a whole number in [2, 1000]"),
        ("mpc_ivideogpt", "agent.planning.gamma=2", "a number in (0, 1]"),
        ("mpc_ivideogpt", "agent.planning.samples=0", "a whole number in [1, 1000000]"),
        ("mbpo_ivideogpt", "agent.world_model.tokenizer.loss.motion_scale=0", "a number in (0, 1000000]"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_as_it_is_typed(agent: str, setting: str, allowed: str) -> None:
    with pytest.raises(SettingError) as error:
        check(composed([*TOY, f"agent={agent}", setting]))
    assert str(error.value) == f"{setting.replace('1e30', '1e+30')} is not allowed: it must be {allowed}"


def test_a_wrong_value_is_told_where_it_was_typed_and_not_where_it_is_used() -> None:
    with pytest.raises(SettingError, match=r"^worldmodel\.precision=float8 is not allowed"):
        check(composed([*TOY, "agent=sac", "worldmodel.precision=float8"]))
    pretrained = ("tokenizer.learning_rate=-1", "batch_size=0", "validation.share=1", "worldmodel.segment_length=0")
    for setting in (*pretrained, "worldmodel.tokenizer.resolution=0"):
        with pytest.raises(SettingError, match=rf"^{re.escape(setting)} is not allowed"):
            check_pretraining(composed(["data={x: 1.0}", setting], "pretrain"))
    with pytest.raises(SettingError, match=r"^env\.frame_stack=0 is not allowed"):
        check(composed([*TOY, "agent=drqv2", "env.frame_stack=0"]))


def test_whole_numbers_become_integers_in_the_configuration() -> None:
    lines = ["replay.capacity=5e3", "total_env_steps=1e2", "agent.n_step=2.0", "collect.frames_per_batch=10.0"]
    config = composed([*TOY, "agent=sac", *lines])
    check(config)
    keys = ("replay.capacity", "total_env_steps", "agent.n_step", "replay.n_step", "collect.frames_per_batch")
    values = [OmegaConf.select(config, key) for key in keys]
    assert values == [5000, 100, 2, 2, 10] and {type(value) for value in values} == {int}


@pytest.mark.parametrize("device", ["cuda", "mps", "gpu", "null", "cpu:7", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.device.available_devices", lambda: ["cpu:0"])
    with pytest.raises(UserError, match=f"^device={device} is not allowed"):
        check(composed([*TOY, "agent=sac", f"device={device}"]))


@pytest.mark.parametrize(
    ("agent", "lines", "message"),
    [
        ("mbpo", ["~agent.imagination.rollouts"], "agent.imagination.rollouts is missing: it must be a whole number"),
        ("mbpo", ["agent.imagination=null"], "agent.imagination=null is not allowed: it must be settings by name"),
        ("mpc_ivideogpt", ["agent.planning=null"], "agent.planning=null is not allowed: it must be settings by name"),
        ("sac", ["~agent.batch_size"], "agent.batch_size is missing: it must be a whole number"),
        ("sac", ["~replay.capacity"], "replay.capacity is missing: it must be a whole number"),
        ("sac", ["~eval.every"], "eval.every is missing: it must be a whole number"),
        ("sac", ["+collect.seed=3"], "collect.seed: there is no such setting"),
        ("sac", ["+collect.first_episode=3"], "collect.first_episode: there is no such setting"),
        (
            "mbpo",
            ["+agent.imagination.episode_steps=null"],
            "agent.imagination.episode_steps: there is no such setting",
        ),
        ("mbpo", ["+agent.imagination.resolution=null"], "agent.imagination.resolution: there is no such setting"),
        ("mbpo", ["+agent.model_error.world_model={_target_: x.Y}"], "agent.model_error.world_model: there is no such"),
        ("mpc_ivideogpt", ["+agent.planning.prior={_target_: x.Y}"], "agent.planning.prior: there is no such setting"),
        ("sac", ["+eval.foo=3"], "eval.foo: there is no such setting"),
    ],
)
def test_a_setting_that_is_missing_or_unknown_is_told(agent: str, lines: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        check(composed([*TOY, f"agent={agent}", *lines]))
    assert str(error.value).startswith(message)


def test_null_for_a_group_names_what_can_be_chosen() -> None:
    with pytest.raises(UserError, match=r"^env=null is not allowed: choose one of .*toy"):
        composed(["env=null"])


@pytest.mark.parametrize("place", ["env", "agent", "agent.policy", "replay"])
def test_what_does_not_belong_at_its_place_is_never_called(place: str) -> None:
    with pytest.raises(UserError, match=rf"^{place}\._target_: os\.getcwd is no class or function of os"):
        check(composed([*TOY, "agent=sac", f"{place}._target_=os.getcwd"]))
    with pytest.raises(UserError, match=rf"^{place}\._target_: torch\.optim\.Adam makes no"):
        check(composed([*TOY, "agent=sac", f"{place}._target_=torch.optim.Adam"]))


@pytest.mark.parametrize(
    "setting", ["agent.batch_size=1e9", "agent.policy.actor_network.hidden_sizes=[65536,65536,65536]"]
)
def test_a_size_beyond_memory_claims_no_folder(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**30)
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"needs \d+\.\d GiB of memory, and \d+\.\d GiB are free"):
        train_unless_finished(composed([*TOY, "agent=sac", setting, f"run_dir={run}"]))
    assert not run.exists()


def test_a_setting_without_a_default_is_named_with_an_example() -> None:
    with pytest.raises(UserError, match=r"^env\.id has no default: give it, as in env\.id=Pendulum-v1$"):
        check(composed(["env=gym", "agent=sac"]))
    check(composed(["env=gym", "env.id=Pendulum-v1", "agent=sac"]))
    config = composed(["data={x: 1.0}"], "pretrain")
    config.tokenizer.learning_rate = "???"  # the optimizer of the world model refers to it
    with pytest.raises(UserError, match=r"^tokenizer\.learning_rate has no default: "):
        check_pretraining(config)
