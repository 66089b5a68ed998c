"""The front door for Python: what `mbrl.load` and `mbrl.train` give, of every kind of agent."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tensordict import TensorDict

import mbrl
from mbrl.compose import check_overrides
from mbrl.errors import UserError
from mbrl.run_folder.provenance import read_starts
from mbrl.settings.overrides import override_of
from tests.command import run_command
from tests.demonstrations import write_toy
from tests.test_training import TOY

pytestmark = pytest.mark.process  # whole commands and runs

TINY = [
    "experiment=smoke", "env=toy", "env.episode_length=20", "total_env_steps=80", "agent.learning_starts=60",
    "video=false",
]  # fmt: skip
SMALL = [  # of iVideoGPT
    "env.resolution=32", "agent.world_model.tokenizer.resolution=32", "agent.world_model.transformer.width=32",
    "agent.world_model.transformer.layers=1", "agent.world_model.transformer.mlp_width=64",
    "agent.world_model.tokenizer.autoencoder.block_out_channels=[16]",
]  # fmt: skip
# agent -> world model, observation of the policy, and settings
AGENTS = {
    "sac": (None, "state", []),
    "mbpo": ("ProbabilisticEnsemble", "state", []),
    "mbpo_ivideogpt": ("IVideoGPT", "frames", SMALL),
    "dreamerv3": ("RSSM", "pixels", ["env.resolution=32"]),
    "tdmpc2": (None, "state", []),  # its model predicts no observations
    "mpc_ivideogpt": ("IVideoGPT", "frames", [*SMALL, "agent.planner.iterations=1"]),
}
SELDOM, SLOW = ("mpc_ivideogpt",), pytest.mark.slow  # 5 s; test_planning_run.py runs a planner each time


def of_agents(*agents: str) -> list[Any]:
    """Parameters for `trained`: one process of pytest-xdist runs the tests of an agent, and trains it once."""
    return [
        pytest.param(agent, marks=[pytest.mark.xdist_group(f"run of {agent}"), *([SLOW] if agent in SELDOM else [])])
        for agent in agents
    ]


@pytest.fixture(scope="module", params=of_agents(*AGENTS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> mbrl.Run:
    agent = request.param
    folder = tmp_path_factory.mktemp("front") / agent
    return mbrl.train([*TINY, *AGENTS[agent][2], f"agent={agent}", f"run_dir={folder}"])


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(folder.rglob("*")) if file.is_file()
    }


def test_a_run_is_all_its_parts_and_reading_changes_nothing(trained: mbrl.Run) -> None:
    agent, before = trained.config.agent.name, contents(trained.folder)
    run = mbrl.load(trained.folder)
    model, observation, _ = AGENTS[agent]
    assert run.curve.columns.tolist() == ["env_steps", "success"] and run.curve["env_steps"].tolist() == [80]
    assert run.env_steps == 80
    env = run.make_env()
    rollout = env.rollout(4, run.policy)
    assert rollout["action"].shape == (4, 2) and rollout["action"].abs().max() <= 1
    assert run.policy.observations == (observation,)
    run.policy.reset()
    alone = [run.policy({observation: step[observation].numpy()}) for step in rollout]
    env.close()
    if agent not in ("dreamerv3", "tdmpc2", "mpc_ivideogpt"):  # these draw latent states, or candidates
        torch.testing.assert_close(torch.stack(alone), rollout["action"])
    assert len(run.evaluate(episodes=2).success) == 2
    assert len(run.replay) == 80 and run.replay.transitions(3)["action"].shape == (3, 2)
    run.replay.online.records["reward"].zero_()
    if model is None:
        assert run.world_model is None
        with pytest.raises(UserError, match=f"run of agent '{agent}', which learns no world model"):
            run.imagine()
    else:
        assert type(run.world_model).__name__ == model
    assert contents(run.folder) == before


@pytest.mark.parametrize("trained", of_agents(*[agent for agent in AGENTS if AGENTS[agent][0]]), indirect=True)
def test_imagined_rollouts_have_the_documented_shapes(trained: mbrl.Run) -> None:
    run = trained
    assert run.world_model is not None
    key = run.world_model.observations[0]
    imagined = run.imagine(rollouts=3, horizon=2)
    assert imagined.batch_size == (3, 2) and imagined["action"].shape == (3, 2, 2)
    assert imagined["next", "reward"].shape == (3, 2, 1) and imagined["next", "reward"].dtype == torch.float32
    assert imagined[key].shape == imagined["next", key].shape == (3, 2, *imagined[key].shape[2:])
    assert not any(name in imagined.keys() for name in ("is_init", "latent", "plan_mean"))
    assert torch.equal(run.imagine(rollouts=3, horizon=2)["action"], imagined["action"]), "the same seed"
    context = run.replay.starts(2, 5)
    given = run.imagine(context=context, actions=torch.zeros(2, 3, 2))
    assert given.batch_size == (2, 3) and not given["action"].any()
    assert torch.equal(given[key][:, 0], context[key][:, -1]), "they start from the last real step"
    with pytest.raises(UserError, match=r"actions must be \[2, 3, 2\] here"):
        run.imagine(context=context, actions=torch.zeros(4, 3, 2))
    with pytest.raises(UserError, match=r"a context must be \[B, T\] with T of"):
        run.imagine(context=context[:, 0])


@pytest.mark.parametrize("trained", of_agents("mbpo", "mbpo_ivideogpt", "dreamerv3"), indirect=True)
def test_the_imagined_world_is_a_gymnasium_environment(trained: mbrl.Run) -> None:
    env = mbrl.imagined_env(trained.folder, horizon=3)
    check_env(env)
    shapes = {"state": (4,), "frames": (32, 32, 9), "pixels": (32, 32, 9)}
    assert env.observation_space.shape == shapes[AGENTS[trained.config.agent.name][1]]


@pytest.mark.parametrize("trained", of_agents("mbpo", "mbpo_ivideogpt"), indirect=True)
def test_an_agent_of_stable_baselines3_trains_in_it(trained: mbrl.Run) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="pip install stable-baselines3")
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    env = mbrl.imagined_env(trained, horizon=4)
    check_for_sb3(env)
    pixels = env.render_mode is not None
    agent = sb3.A2C("CnnPolicy" if pixels else "MlpPolicy", env, n_steps=4, seed=0, device="cpu")
    before = [weight.clone() for weight in agent.policy.parameters()]
    agent.learn(8)
    assert any(not torch.equal(*pair) for pair in zip(before, agent.policy.parameters(), strict=True))
    assert len(agent.ep_info_buffer) == 2 and {info["l"] for info in agent.ep_info_buffer} == {4}
    action, _ = agent.predict(env.reset(seed=1)[0])
    assert env.action_space.contains(action)


@pytest.mark.parametrize("trained", of_agents("dreamerv3"), indirect=True)
def test_a_policy_with_memory_goes_on_from_its_last_call(trained: mbrl.Run) -> None:
    policy, pixels = mbrl.load(trained.folder).policy, torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    torch.manual_seed(0)  # latent states are drawn
    first = policy({"pixels": pixels})
    torch.manual_seed(0)
    second = policy({"pixels": pixels})
    assert first.shape == (5, 2) and not torch.equal(first, second)
    policy.reset()
    torch.manual_seed(0)
    torch.testing.assert_close(policy({"pixels": pixels}), first)
    with pytest.raises(UserError, match="the policy needs pixels"):
        policy({"state": torch.zeros(4)})


def test_settings_by_name_and_a_finished_run_is_only_opened(tmp_path: Path) -> None:
    settings = {
        "env": "toy", "env.episode_length": 20, "agent": "random", "total_env_steps": 80, "checkpoint_every": 40,
        "collect.frames_per_batch": 10, "eval.episodes": 2, "run_dir": tmp_path / "a run", "wandb": None,
    }  # fmt: skip
    run = mbrl.train(settings)
    assert run.folder == tmp_path / "a run"
    started = read_starts(run.folder)[0]["command"]
    assert started.startswith("mbrl train env=toy ") and "agent=random" in started
    before = contents(run.folder)
    assert mbrl.train(settings).curve.equals(run.curve)
    assert contents(run.folder) == before
    with pytest.raises(UserError, match=r"no setting named 'env\.tsk'"):
        mbrl.train({"env.tsk": "reach"})
    assert len(mbrl.load(run.folder, checkpoint=40).policy.observations) == 0
    with pytest.raises(UserError, match="holds no checkpoint of 41 env steps; there are: 40, 80"):
        _ = mbrl.load(run.folder, checkpoint=41).policy


@pytest.mark.parametrize(
    "value", ["door-lock", "runs/a b/'c'", "null", "1e5", "", "ä=b,c", 3, 0.5, True, None, [1, "x y"], {"a": [0.1]}]
)
def test_any_value_reaches_the_configuration(value: Any) -> None:
    from mbrl.compose import composed

    line = override_of("+note", value)
    check_overrides(["agent=random", line])
    assert composed(["agent=random", line]).note == value


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), np.bool_(True), torch.tensor(3)])
def test_numbers_of_numpy_and_torch_are_written_as_pythons(value: Any) -> None:
    assert override_of("+note", value) == override_of("+note", value.item())


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        mbrl.load(tmp_path)
    (tmp_path / "config.yaml").write_text("worldmodel: {}\n")
    with pytest.raises(UserError, match="a folder of `mbrl pretrain`"):
        _ = mbrl.load(tmp_path).policy


def test_the_curve_costs_no_import_of_torch(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("agent: {name: sac}\nenv: {task: hammer}\n")
    (tmp_path / "eval.csv").write_text("step,success,seed\n0,0.0,0\n100,0.5,0\n")
    (tmp_path / "eval_tasks.csv").write_text("step,success,seed,task\n0,0.0,0,one\n100,1.0,0,one\n")
    script = (
        f"import sys, mbrl\nassert not {{'torch', 'hydra', 'pandas'}} & set(sys.modules)\n"
        f"curve = mbrl.load({str(tmp_path)!r}).curve\n"
        "assert curve['success'].tolist() == [0.0, 0.5] and curve['success/one'].tolist() == [0.0, 1.0]\n"
        "assert not {'torch', 'torchrl', 'hydra'} & set(sys.modules)\n"
        "assert not hasattr(mbrl, 'nonsense')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("pixels", ["true", "false"])
def test_a_run_is_filmed_with_pictures_of_its_own_or_without(tmp_path: Path, pixels: str) -> None:
    demos = write_toy(tmp_path / "demos", 2, episode_length=20, resolution=32)
    settings = [override for override in TOY if not override.startswith("agent.")]
    run = mbrl.train(
        [*settings, f"run_dir={tmp_path / 'run'}", "agent=bc", f"agent.pixels={pixels}", "agent.cloning.updates=2",
         f"replay.demos={demos}", "total_env_steps=20"]
    )  # fmt: skip
    with pytest.raises(UserError, match=r"film\.webm: its name must end in"):
        run.evaluate(video="film.webm")
    result = run.evaluate(episodes=2, seed=3, video=tmp_path / "film.gif").summary()
    assert result.keys() == {"success", "success_last", "return", "steps_to_success"}
    film = iio.imread(tmp_path / "film.gif")
    assert film.shape[1:] == (32, 32, 3)
    assert len({frame.tobytes() for frame in film}) > 1, "something moves"  # a still episode is one frame of a GIF
    again = mbrl.load(tmp_path / "run").evaluate(episodes=2, seed=3).summary()
    assert again == pytest.approx(result, nan_ok=True)


def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it, but for the length of the training."""
    short = {"total_env_steps": 100, "eval.every": 100, "eval.episodes": 2, "agent.learning_starts": 50}
    short |= {"agent.updates_per_step": 0.2, "agent.model_updates_first": 20}
    train = mbrl.train

    def training(settings: dict[str, Any]) -> mbrl.Run:
        return train({**settings, **short})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mbrl, "train", training, raising=False)
    names = runpy.run_module("mbrl.tour", run_name="__main__")
    assert isinstance(names["imagined"], TensorDict) and names["imagined"].batch_size == (64, 5)
    assert (tmp_path / "runs" / "tour" / "film.gif").stat().st_size > 0
    assert "error of the predicted state" in capsys.readouterr().out


def blocks(language: str) -> list[str]:
    """The code blocks of one language in mbrl/README.md."""
    readme = Path(mbrl.__file__).with_name("README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)


def test_the_code_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, *_ = blocks("python")  # the others read the reference results, and are an own agent
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["rollout"].batch_size == (20,) and names["action"].shape == (2,)
    assert names["batch"].batch_size == (8, 9)
    assert names["imagined"].batch_size == names["replayed"].batch_size == (8, 4)


@pytest.mark.slow  # 8 s; test_readmes.py reads every command, and test_own_agent.py runs the like
def test_the_commands_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (commands,), settings = blocks("bash"), blocks("yaml")[0]  # the second is a complete agent
    (tmp_path / "my_configs" / "agent").mkdir(parents=True)
    (tmp_path / "my_configs" / "agent" / "mine.yaml").write_text(settings)
    (tmp_path / "my_policy.py").write_text(blocks("python")[-1])
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "mbrl":
            done = run_command(*words[1:], environment={"PYTHONPATH": str(tmp_path)})
            assert done.returncode == 0, done.stderr
        else:
            assert words[0] == "export", "what it exports is in the environment above"
    assert all((tmp_path / "runs" / "smoke" / "mine" / "toy" / f"seed{seed}" / "curve.png").exists() for seed in (0, 1))
    assert "mine" in done.stdout
