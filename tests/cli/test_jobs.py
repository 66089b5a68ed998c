"""The jobs of a sweep: those that a study brings, and how many go at a time."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mbrl.cli import jobs
from mbrl.cli.jobs import (
    GIB,
    Machine,
    at_a_time,
    chooses_jobs,
    deal,
    dealing,
    gpus_in_turn,
    hydra_settings,
    run_on_its_gpu,
    runs_here,
    take_gpu,
    with_study_sweep,
)
from mbrl.cli.sweep import run_job
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
    configs = [OmegaConf.create({"threads": 2, "device": device, "seed": seed}) for seed in range(10)]
    monkeypatch.setattr("mbrl.device.lacking_kernels", lambda gpu: None)
    monkeypatch.setattr(torch.cuda, "set_device", None)  # No GPU is taken.
    assert at_a_time(configs, machine) == (number, reason, [min(4, int(free / GIB / 2)) for free in machine.gpus])


def test_a_large_model_takes_more_memory() -> None:
    state = jobs.memory_of(composed(["agent=sac", *TOY]))
    pixels = jobs.memory_of(composed(["agent=mbpo_ivideogpt", *TOY, "env.resolution=64"]))
    base = jobs.memory_of(
        composed(["agent=mbpo_ivideogpt", "worldmodel@agent.world_model=ivideogpt_base", *TOY, "env.resolution=64"])
    )
    assert 1.0 * GIB < state < 1.1 * GIB and 2.0 * GIB < pixels < 4 * GIB
    assert 14.5e9 < base < 20e9, "a step of the tokenizer takes 14.5 GB"


@pytest.mark.parametrize(
    ("room", "number", "gpus"),
    [
        ([4, 4], 3, [0, 1, 0]),
        ([0, 4], 4, [1, 1, 1, 1]),  # no job where there is no room
        ([1, 4], 5, [0, 1, 1, 1, 1]),
        ([0, 0], 3, [0, 1, 0]),  # in turn where the user asks for more
        ([], 2, []),
    ],
)
def test_the_gpus_that_are_counted_are_those_that_are_dealt(room: list[int], number: int, gpus: list[int]) -> None:
    assert deal(room, number) == gpus


def test_a_number_of_jobs_that_is_given_takes_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus_in_turn(OmegaConf.merge(LOCAL, {"n_jobs": 3})) == [0, 1, 0]
    assert gpus_in_turn(OmegaConf.create({"_target_": "BasicLauncher", "n_jobs": 3})) == []


fork = multiprocessing.get_context("fork")


def hold_a_gpu(device: str, sender: Connection, receiver: Connection) -> None:
    take_gpu(device)
    take_gpu(device)  # of its next job
    sender.send(os.environ.get("CUDA_VISIBLE_DEVICES"))
    receiver.poll(20.0)


@contextmanager
def process_with_a_gpu(device: str = "auto") -> Iterator[str]:
    """As joblib starts and ends them; yields what the process sees of the GPUs."""
    (answer, sender), (receiver, end) = fork.Pipe(duplex=False), fork.Pipe(duplex=False)
    process = fork.Process(target=hold_a_gpu, args=(device, sender, receiver))
    process.start()
    try:
        yield answer.recv()
    finally:
        end.send(None)
        process.join()


def test_each_process_takes_a_gpu_that_no_other_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-7a")
    with dealing([1, 0, 1]), process_with_a_gpu() as first, ExitStack() as others:
        with process_with_a_gpu() as second:
            assert (first, second) == ("GPU-7a", "4")
            assert others.enter_context(process_with_a_gpu()) == "GPU-7a"
        assert others.enter_context(process_with_a_gpu()) == second, "what a process had is free when it ends"
        assert others.enter_context(process_with_a_gpu()) == "4, GPU-7a", "all are taken"
        assert others.enter_context(process_with_a_gpu("cuda:1")) == "4, GPU-7a", "a GPU that is named stays visible"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with dealing([1]), process_with_a_gpu() as only:
        assert only == "1", "GPU 0 has no room"


def test_where_there_is_one_gpu_none_is_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with dealing([0, 0]):
        assert jobs.SLOTS not in os.environ


def test_free_memory_of_gpus_is_asked_for_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """In exclusive mode a context of this process would keep the jobs from the GPU, and another one's keeps it away."""

    def in_use(device: torch.device) -> int:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(jobs, "process_apart", lambda: nullcontext(lambda *call: asked.append(call) or 3.0))
    assert Machine.here().gpus == (3.0, 3.0)
    assert asked == [(jobs.free_on_gpu, 0), (jobs.free_on_gpu, 1)]
    monkeypatch.setattr(jobs, "free_memory", in_use)
    assert jobs.free_on_gpu(0) == 0.0


def test_a_job_that_is_done_takes_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr("mbrl.cli.jobs.take_gpu", taken.append)
    config = OmegaConf.create({"run_dir": str(tmp_path), "device": "auto", "total_env_steps": 100})
    run = partial(run_on_its_gpu, lambda config: None)
    manifest = tmp_path / "checkpoints/checkpoint-000000000100/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    (tmp_path / "curve.png").touch()
    run_job(config, run, alone=True)
    assert taken == []
    run_job(OmegaConf.merge(config, {"total_env_steps": 200}), run, alone=True)
    assert taken == ["auto"]
