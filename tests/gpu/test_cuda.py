"""What must hold on a GPU. Everything here is skipped without one: `python -m pytest -m gpu tests/gpu`."""

import copy
import signal
import subprocess
import sys
import time
import warnings
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torchrl.data import Bounded, Composite

import mbrl
from mbrl.agents import planning
from mbrl.agents.cuda_graphs import WARM_UP, CapturedUpdates
from mbrl.bench import _models as models
from mbrl.bench import dreamer, encoders, policies
from mbrl.bench.replay import filled_buffer
from mbrl.run_folder.paths import CHECKPOINTS
from policies.planner import CEM
from policies.random import RandomPolicy
from tests.kill_and_resume import differences
from tests.parts_on_a_device import PARTS, dreamer_and_replay, filled_replay, latent_planner
from tests.run_folders import rows
from tests.test_device import MEASURED
from worldmodel.ivideogpt.rollout.decoding import Sampling
from worldmodel.ivideogpt.rollout.graphs import FrameGraphs, predict_frame

pytestmark = pytest.mark.gpu
GPU = "cuda:0"
MBRL = [sys.executable, "-m", "mbrl"]
NOT_TRAINED = {"random", "scripted"}
AGENTS = sorted({Path(str(file)).stem for file in (files("configs") / "agent").iterdir()} - NOT_TRAINED)
ACTIONS = Bounded(-1.0, 1.0, (4,))


def command(*arguments: str) -> None:
    done = subprocess.run([*MBRL, *arguments], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-1500:]


def kill_after_a_checkpoint(arguments: list[str], run_folder: Path) -> None:
    """Start a run and kill it once it has a checkpoint; a run that ends before is an error."""
    with (run_folder.parent / "log").open("w") as log, subprocess.Popen(arguments, stderr=log, stdout=log) as process:
        while process.poll() is None and not list((run_folder / CHECKPOINTS).glob("*/*")):
            time.sleep(0.01)
        process.kill()
    text = (run_folder.parent / "log").read_text()
    assert process.returncode == -signal.SIGKILL, text[-1500:]


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.float().cpu(), theirs.float().cpu(), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_greedy_imagination_is_the_same_on_both_devices() -> None:
    model = models.build()
    model.precision.resume("float32")
    model.rollouts.sampling = Sampling(temperature=0.0)
    context, actions = models.starts(model, 4, 3)
    there = copy.deepcopy(model).to(GPU).predict(context.to(GPU), actions.to(GPU))
    here = model.predict(context, actions)
    assert (here["pixels"].int() - there["pixels"].cpu().int()).abs().float().mean() < 1.0
    assert_close(here["reward"], there["reward"], 1e-2)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_frames_from_cuda_graphs_are_the_eager_ones(temperature: float) -> None:
    model = models.build(parallel=True).to(GPU)
    model.rollouts.sampling = Sampling(temperature=temperature)
    context, actions = (given.to(GPU) for given in models.starts(model, 4, 3))
    graphs = FrameGraphs()
    for _ in range(2):  # with other weights the second time
        found = []
        for model.rollouts.predict in (predict_frame, graphs):
            torch.manual_seed(0)
            state = model.fork(model.start(context), 2)
            tokens = []
            for action in actions.repeat_interleave(2, 0).unbind(1):
                state, frame = model.rollouts.advance(state, action)
                tokens.append(frame.tokens)
            found.append(torch.stack(tokens))
        assert (found[0] == found[1]).float().mean() > 0.99
        for parameter in model.transformer.parameters():
            parameter.mul_(1.1)


def test_dreamerv3_in_bfloat16_follows_float32() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        config = dreamer.compose_for("pixels")
        config.agent.policy.world_model.precision = precision
        torch.manual_seed(0)
        update, _ = dreamer.learner_update(config, Composite(pixels=dreamer.OBSERVATIONS["pixels"]), torch.device(GPU))
        losses.append(float(update()["model_reconstruction_loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize("key", ["state", "pixels"])
def test_dreamerv3_learns_the_same_from_cuda_graphs(key: str) -> None:
    losses = []
    for captured in (False, True):
        torch.manual_seed(0)
        learner, replay = dreamer_and_replay(key, torch.device(GPU), captured)
        losses.append([float(learner.update(replay, 0.0)["model_reconstruction_loss"]) for _ in range(WARM_UP + 5)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_tdmpc2_learns_the_same_from_cuda_graphs() -> None:
    losses = []
    for captured in (False, True):
        torch.manual_seed(0)
        policy, replay = latent_planner(), filled_replay(torch.device(GPU))
        policy.to(GPU)
        update = CapturedUpdates(policy) if captured else policy.update
        losses.append([float(update(replay.sequences(3, 4))["value_loss"]) for _ in range(WARM_UP + 5)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_tokens_are_the_same_on_both_devices() -> None:
    tokenizer = models.build().tokenizer.eval()
    frames = torch.rand(2, 6, 3, 64, 64)
    there = copy.deepcopy(tokenizer).to(GPU).tokenize(frames.to(GPU)).cpu()
    assert (tokenizer.tokenize(frames) == there).float().mean() > 0.99


@pytest.mark.parametrize("placement", ["cuda", "cpu"])
def test_the_same_batches_are_drawn_for_both_devices(placement: str, tmp_path: Path) -> None:
    batches = []
    for folder, *where in (("there", placement, torch.device(GPU)), ("here", "cpu", torch.device("cpu"))):
        torch.manual_seed(0)
        buffer = filled_buffer(tmp_path / folder, *where)
        batches.append(buffer.transitions(64).to(GPU))
    for key, value in batches[0].items(True, True):
        torch.testing.assert_close(value, batches[1][key], rtol=1e-6, atol=0)  # powers of the discount are rounded


@pytest.mark.parametrize("name", ["drqv2", "drqv2_cpu"])
def test_updates_leave_finite_weights_and_metrics_on_the_gpu(name: str) -> None:
    policy, batch = encoders.build(name).to(GPU), encoders.random_batch(8).to(GPU)
    for _ in range(3):
        metrics = policy.update(batch)
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())
    assert {value.device.type for value in metrics.values()} == {"cuda"}


@pytest.mark.parametrize("name", ["drqv2_cpu", "sac", "sac_bro", "sac_simba"])
def test_updates_from_cuda_graphs_are_the_eager_ones(name: str) -> None:
    losses = []
    for captured in (False, True):
        torch.manual_seed(0)
        if name == "drqv2_cpu":
            policy, batches = encoders.build(name), [encoders.random_batch(64) for _ in range(WARM_UP + 5)]
        else:
            policy, states = policies.build(name, ACTIONS), policies.filled_replay(torch.device("cpu"))
            batches = [states.transitions(64) for _ in range(WARM_UP + 5)]
        policy.to(GPU)
        update = CapturedUpdates(policy) if captured else policy.update
        losses.append([])
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            losses[-1].append(float(update(batch.to(GPU))["critic_loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("name", [name for name in PARTS if MEASURED[name][0] == 1])
def test_an_update_waits_for_the_gpu_once_as_on_the_pretended_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "device", torch.device(GPU))
    call = PARTS[name](torch.device(GPU))
    call()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waited = [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
    assert len(waited) <= 1, waited


def test_a_plan_towards_a_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "goal_image", lambda _, side: torch.zeros(3, side, side, dtype=torch.uint8))
    frames = Composite(frames=Bounded(0, 255, (9, 64, 64), dtype=torch.uint8))
    search = CEM(horizon=2, candidates=4, elites=2, iterations=1)
    specs = {"observation_spec": frames, "action_spec": ACTIONS}
    prior = RandomPolicy(frames, ACTIONS)
    policy = planning.PlanningPolicy(models.build().to(GPU), search, prior, **specs, gamma=0.99, goal="goal.npz")
    assert policy.to(GPU).actor.imagination.goal.device.type == "cuda"


def test_a_model_that_stays_on_the_cpu_takes_the_precision_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.ivideogpt.precision.has_bfloat16_kernels", lambda: False)
    assert models.build().dtype == torch.float32
    assert models.build().to(GPU).dtype == torch.bfloat16


@pytest.mark.parametrize("agent", AGENTS)
def test_a_killed_run_of_every_agent_goes_on(agent: str, tmp_path: Path) -> None:
    settings = ["experiment=smoke", f"agent={agent}", f"device={GPU}", "video=false", f"run_dir={tmp_path}/run"]
    if agent == "bc":
        command("demos", "window-close", "--episodes", "2", "--output", f"{tmp_path}/demos")
        settings += ["env.task=window-close", f"replay.demos={tmp_path}/demos"]
    kill_after_a_checkpoint([*MBRL, "train", *settings], tmp_path / "run")
    run = mbrl.train(settings)
    assert run.env_steps == 120
    assert len(run.evaluate(episodes=1).success) == 1
    assert run.policy.policy.device.type == "cuda"


def test_workers_act_with_the_policy_on_the_gpu(tmp_path: Path) -> None:
    settings = ["experiment=smoke", "agent=drqv2", f"device={GPU}", "video=false", "collect.workers=2"]
    command("train", *settings, f"run_dir={tmp_path}/run")


def test_a_world_model_is_pretrained(tmp_path: Path) -> None:
    command("collect", "window-close", "--episodes", "4", "--output", f"{tmp_path}/data")
    short = ["tokenizer.steps=3", "transformer.steps=3", "worldmodel.tokenizer.codebooks.moving_average.warmup=1"]
    quiet = ["validation.every=0", "video.every=0", "workers=0", f"device={GPU}"]
    command("pretrain", f"data={{{tmp_path}/data: 1.0}}", f"output={tmp_path}/nano", *quiet, *short)
    assert list((tmp_path / "nano" / "transformer").glob("*.safetensors"))


@pytest.mark.parametrize("agent", ["drqv2", "mbpo_ivideogpt", "dreamerv3", "tdmpc2"])
def test_a_deterministic_run_gives_the_same_bits_twice(agent: str, tmp_path: Path) -> None:
    settings = ["experiment=smoke", f"agent={agent}", f"device={GPU}", "video=false", "deterministic=true"]
    for name in ("one", "other"):
        command("train", *settings, f"run_dir={tmp_path}/{name}")
    assert rows(tmp_path / "one") == rows(tmp_path / "other")


def test_a_killed_deterministic_run_resumes_to_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    settings = ["experiment=smoke", "agent=drqv2", f"device={GPU}", "video=false", "deterministic=true"]
    longer = [*settings, "total_env_steps=240"]  # than the time until the kill
    command("train", *longer, f"run_dir={tmp_path}/whole")
    kill_after_a_checkpoint([*MBRL, "train", *longer, f"run_dir={tmp_path}/killed"], tmp_path / "killed")
    command("train", *longer, f"run_dir={tmp_path}/killed")
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
