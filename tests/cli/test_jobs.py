"""The jobs of a sweep: those that a study brings, and how many go at a time."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from mbrl.cli import jobs
from mbrl.cli.jobs import GIB, Machine, at_a_time, chooses_jobs, hydra_settings, runs_here, take_gpu, with_study_sweep
from mbrl.compose import composed, composed_jobs
from tests.test_training import TOY

LOCAL = OmegaConf.create({"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"})


def test_a_study_brings_its_sweep() -> None:
    lines = with_study_sweep(["experiment=ivideogpt_paper"])
    assert "seed=0,1,2,3,4" in lines
    swept = composed_jobs([line for line in lines if not line.startswith("seed=")])
    assert len({config.run_dir for _, config in swept}) == len(swept) == 3 * 6
    assert {config.agent.name for _, config in swept} == {"drqv2", "mbpo_ivideogpt", "dreamerv3"}


def test_a_value_on_the_command_line_replaces_that_of_the_study() -> None:
    lines = with_study_sweep(["experiment=gpu", "agent=drqv2", "seed=5,6"])
    assert lines == ["experiment=gpu", "agent=drqv2", "seed=5,6"]
    assert with_study_sweep(["agent=sac,mbpo", "seed=0"]) == ["agent=sac,mbpo", "seed=0"], "no study, no sweep"


def test_the_number_of_jobs_is_chosen_unless_it_is_given() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert chooses_jobs(hydra_settings(["launch=local", "seed=0,1"]).launcher)
    assert not chooses_jobs(hydra_settings(["launch=local", "hydra.launcher.n_jobs=3", "seed=0,1"]).launcher)
    assert not chooses_jobs(hydra_settings(["seed=0,1"]).launcher)


@pytest.mark.parametrize(
    ("launcher", "here"),
    [
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", True),
        (LOCAL._target_, True),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", False),
        ("hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", False),
    ],
)
def test_jobs_of_slurm_and_ray_run_elsewhere(launcher: str, here: bool) -> None:
    assert runs_here(OmegaConf.create({"_target_": launcher})) is here


@pytest.mark.parametrize(
    ("machine", "device", "number", "reason"),
    [
        (Machine(6, 100 * GIB), "cpu", 3, "6 cores, 2 for each"),
        (Machine(16, 9 * GIB), "cpu", 4, "9.0 GiB of free memory, 2.0 for each"),
        (Machine(1, 1 * GIB), "cpu", 1, "1 cores, 2 for each"),
        (Machine(64, 100 * GIB), "cpu", 10, "10 jobs"),
        (Machine(64, 100 * GIB, (80 * GIB,)), "auto", 4, "1 GPUs with 80.0 GiB free, 2.0 for each"),
        (Machine(64, 100 * GIB, (80 * GIB, 3 * GIB)), "auto", 5, "2 GPUs with 83.0 GiB free, 2.0 for each"),
        (Machine(64, 100 * GIB, (80 * GIB, 3 * GIB)), "cuda:1", 1, "1 GPUs with 3.0 GiB free, 2.0 for each"),
        (Machine(64, 100 * GIB, (80 * GIB,)), "cpu", 10, "10 jobs"),
    ],
)
def test_as_many_jobs_as_there_is_room_for(
    machine: Machine, device: str, number: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "memory_of", lambda config: 2.0 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(machine.gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(machine.gpus))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    configs = [OmegaConf.create({"threads": 2, "device": device, "seed": seed}) for seed in range(10)]
    assert at_a_time(configs, machine) == (number, reason)


def test_a_large_model_takes_more_memory() -> None:
    state = jobs.memory_of(composed(["agent=sac", *TOY]))
    pixels = jobs.memory_of(composed(["agent=mbpo_ivideogpt", *TOY, "env.resolution=64"]))
    base = jobs.memory_of(
        composed(["agent=mbpo_ivideogpt", "worldmodel@agent.world_model=ivideogpt_base", *TOY, "env.resolution=64"])
    )
    assert 1.0 * GIB < state < 1.1 * GIB and 2.0 * GIB < pixels < 4 * GIB
    assert 14.5e9 < base < 20e9, "a step of the tokenizer takes 14.5 GB"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = []
    for job in range(3):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-7a")
        take_gpu(job, LOCAL, "auto")
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    take_gpu(1, LOCAL, "cuda")
    assert taken == ["4", "GPU-7a", "4"] and os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    take_gpu(1, LOCAL, "cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3", "there is one"


def test_a_gpu_that_is_named_is_the_one_of_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    for job in range(3):
        take_gpu(job, LOCAL, "cuda:1")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
