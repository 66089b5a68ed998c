"""Every part on a pretended GPU: no devices are mixed, and no update waits for the GPU more often than it must."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_module

from mbrl import training
from mbrl.agents import planning
from mbrl.agents.agent import Agent
from mbrl.device import available_devices, find_device, gpu_of, lacking_kernels, pick_device
from mbrl.errors import UserError
from mbrl.run_folder.parts import OptimizersPart
from tests.parts_on_a_device import PARTS
from tests.pretended_device import GPU, pretended_device
from tests.run_folders import rows
from worldmodel.exact_products import exact_products
from worldmodel.ivideogpt.training import fuse_on_gpu

# What one call asks of the GPU, measured, after a first call: (synchronisations, copies to the GPU). The check that
# losses are finite is one synchronisation. The others are copies to the CPU, sizes that depend on data (of a fit, which
# needs them once whatever its length, and twice a check), a counter that other processes share, and TorchRL's checks of
# a reset. No number may grow: lower it here where it falls.
MEASURED = {
    "SAC: update": (1, 0),
    "SAC: imitation": (1, 0),
    "SAC: critics alone": (1, 0),
    "SAC: its clone": (0, 0),
    "DrQ-v2: update": (1, 0),
    "DrQ-v2: imitation": (1, 0),
    "DrQ-v2: critics alone": (1, 0),
    "DrQ-v2: its clone": (0, 0),
    "DrQ-v2: update, with sampling": (1, 1),
    "DrQ-v2: update, with sampling on the CPU": (1, 9),
    "actor-critic: update": (1, 0),
    "actor-critic: imitation": (1, 0),
    "cloning from state": (1, 0),
    "cloning from pixels": (1, 0),
    "DreamerV3 from state: update, with sampling": (1, 1),
    "DreamerV3 from pixels: update, with sampling": (1, 1),
    "TD-MPC2 from state: update": (2, 0),
    "TD-MPC2 from state: a plan": (2, 0),
    "ensemble: fit of 10 updates": (15, 3),
    "ensemble: 2 rollouts of 2 steps, cut and weighed": (11, 1),
    "iVideoGPT: tokenizer step": (1, 0),
    "iVideoGPT: transformer step": (1, 0),
    "iVideoGPT: 2 rollouts of 2 steps": (9, 1),
    "iVideoGPT: error on an episode": (3, 8),
    "a plan by rewards": (3, 0),
    "a plan towards a goal": (3, 0),
    "pretraining: tokenizer step": (1, 1),
    "pretraining: transformer step": (1, 1),
    "prediction: 2 segments, scored": (58, 42),
}


# 6 s, and 1 to 2 s each; of the others, a part that is much the same is tried in each run of the suite
SLOW = {
    "prediction: 2 segments, scored",
    "a plan towards a goal",
    "pretraining: transformer step",
    "DreamerV3 from state: update, with sampling",
}


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PARTS])
def test_no_part_mixes_devices_or_waits_more_often_than_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "device", GPU)
    monkeypatch.setattr(planning, "goal_image", lambda _, side: torch.zeros(3, side, side, dtype=torch.uint8))
    with pretended_device() as counts:
        call = PARTS[name](GPU)
        call()
        synchronisations, to_gpu = counts.synchronisations, counts.to_gpu
        counts.waited.clear()
        call()
    found = (counts.synchronisations - synchronisations, counts.to_gpu - to_gpu)
    assert found == MEASURED[name], f"it waited at {dict(counts.waited)}"


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine has a GPU of 1 GiB, as far as settings are checked; torch's settings of products stay the same."""
    monkeypatch.setattr("mbrl.device.available_devices", lambda: ["cpu:0", "cuda:0"])
    monkeypatch.setattr("mbrl.settings.memory.free_memory", lambda device: 2**30)
    monkeypatch.setattr("mbrl.device.lacking_kernels", lambda gpu: None)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.fp32_precision, convolutions.benchmark
    yield
    products.fp32_precision, convolutions.benchmark = before


@pytest.mark.slow  # 7 s
@pytest.mark.usefixtures("one_gpu")
def test_a_run_on_the_gpu_goes_on_after_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["agent=mbpo", "env=toy", "experiment=smoke", "device=cuda:0", "total_env_steps=80", "video=false"]
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("train", [*settings, f"run_dir={tmp_path}"])
    update = Agent.update

    def stop(agent: Agent, replay: Any, agent_steps: int, env_steps: int, *rest: Any) -> Any:
        if env_steps > 40:
            raise ArithmeticError("stopped")
        return update(agent, replay, agent_steps, env_steps, *rest)

    with monkeypatch.context() as patch, pretended_device(), pytest.raises(ArithmeticError):
        patch.setattr(Agent, "update", stop)
        training.run(config)
    with pretended_device():
        training.run(config)
    metrics = rows(tmp_path)
    assert [row["env_steps"] for row in metrics] == sorted(row["env_steps"] for row in metrics)
    assert any("policy/critic_loss" in row for row in metrics if row["env_steps"] == 80)


def test_a_pretended_gpu_refuses_what_cuda_refuses() -> None:
    with pretended_device() as counts:
        there, here = torch.randn(3, device=GPU), torch.randn(3)
        assert there.device == GPU and here.device.type == "cpu" and (there + torch.tensor(2.0)).is_cuda
        whole = here.long()
        for mix in (lambda: there + here, lambda: torch.stack([there[0], here[0]]), lambda: whole[there.long() * 0]):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(TypeError, match=r"\.cpu\(\)"):
            there.numpy()
        assert counts.synchronisations == counts.to_gpu == 0
        assert there[torch.tensor([0])].device == GPU and counts.to_gpu == 1
        assert (there.cpu() + here).device.type == "cpu" and here.to(GPU).device == GPU
        assert (counts.synchronisations, counts.to_gpu) == (1, 2)


@pytest.mark.parametrize(
    ("call", "times"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.bincount(x.long().abs()), 2),
        (lambda x: x.repeat_interleave(x.long().abs()), 1),
        (lambda x: x.clone().copy_(x), 0),
        (lambda x: x[torch.arange(2, device=x.device)], 0),
        (lambda x: torch.where(x > 0, x, 0.0).softmax(0), 0),
    ],
)
def test_what_waits_for_the_gpu_is_counted(call: Any, times: int) -> None:
    with pretended_device() as counts:
        x = torch.randn(4, device=GPU)
        call(x)
    assert counts.synchronisations == times and counts.kernels > 0


def test_a_pretended_graph_repeats_operators_and_not_what_python_reckons() -> None:
    with pretended_device():
        total, step, calls = torch.zeros(2, device=GPU), torch.ones(2, device=GPU), []

        def work() -> torch.Tensor:
            calls.append(1)
            total.add_(step * len(calls))
            return total.unsqueeze(0).mean(0) + torch.rand(2, device=GPU)

        graph = torch.cuda.CUDAGraph()
        torch.manual_seed(0)
        with torch.cuda.graph(graph):
            result = work()
        assert total.tolist() == [0, 0]
        step.fill_(10)
        for expected in (10, 20):
            graph.replay()
            assert total.tolist() == [expected] * 2 and len(calls) == 1
        drawn = result - total
        torch.manual_seed(0)
        torch.rand(2, device=GPU)
        torch.testing.assert_close(drawn, torch.rand(2, device=GPU))


def test_gradients_and_optimisers_stay_on_the_gpu() -> None:
    with pretended_device():
        layer = torch.nn.Linear(3, 2).to(GPU)
        optimizer = torch.optim.AdamW(layer.parameters())
        optimizer.register_step_pre_hook(fuse_on_gpu)
        layer(torch.randn(5, 3, device=GPU)).square().mean().backward()
        optimizer.step()
        state = optimizer.state[layer.weight]
        assert {value.device for value in (layer.weight, layer.weight.grad, *state.values())} == {GPU}
    assert optimizer.param_groups[0]["fused"] is True


def test_an_optimiser_that_is_resumed_on_the_gpu_goes_on_as_it_began() -> None:
    def step(layer: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.ones(5, 3, device=GPU)).square().mean().backward()
        optimizer.step()

    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        layer = torch.nn.Linear(3, 2).to(GPU)
        optimizer = torch.optim.AdamW(layer.parameters())
        optimizer.register_step_pre_hook(fuse_on_gpu)
        return layer, optimizer

    with pretended_device():
        (whole, first), (resumed, second) = make(), make()
        step(whole, first)
        resumed.load_state_dict(whole.state_dict())
        saved = OptimizersPart({"all": first}).state_dict()["all"]
        on_disk = {number: {k: v.cpu() for k, v in moments.items()} for number, moments in saved["moments"].items()}
        OptimizersPart({"all": second}).load_state_dict({"all": {**saved, "moments": on_disk}})
        step(whole, first)
        step(resumed, second)
        assert second.param_groups[0]["fused"] is True
        assert {value.device for value in second.state[resumed.weight].values()} == {GPU}
        assert torch.equal(resumed.weight, whole.weight)


def test_an_optimiser_on_the_cpu_is_not_fused() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    fuse_on_gpu(optimizer)
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    named = list[torch.device]()
    monkeypatch.setattr("mbrl.device.available_devices", lambda: ["cpu:0", "cuda:0", "cuda:1"])
    monkeypatch.setattr("torch.cuda.set_device", named.append)
    for name in ("cpu", "cuda", "cuda:1"):
        pick_device(name)
    assert named == [torch.device("cuda:1")]


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_rounds_factors_but_not_where_products_must_be_exact() -> None:
    products = torch.backends.cuda.matmul
    pick_device("cuda:0")
    assert products.fp32_precision == "tf32"
    with pytest.raises(ArithmeticError), exact_products():
        assert products.fp32_precision == "ieee"
        raise ArithmeticError
    assert products.fp32_precision == "tf32"


def test_a_gpu_is_found_without_taking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbrl.device.available_devices", lambda: ["cpu:0", "cuda:0", "cuda:1"])
    monkeypatch.setattr("torch.cuda.set_device", None)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    found = [gpu_of(name) for name in ("auto", "cuda", "cuda:1", "cuda:7", "cpu", "nonsense")]
    assert found == [0, 0, 1, None, None, None]


def test_gpus_whose_driver_is_too_old_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # the driver counts them, whatever torch needs
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert available_devices() == ["cpu:0"]
    with pytest.raises(
        UserError, match="device=cuda:1 is not allowed: it must be auto, or a device of this machine: cpu"
    ):
        pick_device("cuda:1")


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("mine", "built", "age"),
    [
        ((7, 0), WHEEL, "an older"),  # V100
        ((7, 5), WHEEL, None),
        ((8, 9), WHEEL, None),
        ((10, 0), WHEEL, "a newer"),
        ((12, 1), WHEEL, None),
        ((13, 0), WHEEL, None),  # compiled when it is first used
        ((8, 0), ["sm_86"], "an older"),
        ((9, 0), ["sm_90a"], None),
        ((9, 0), [], None),  # nothing is known
    ],
)
def test_a_gpu_whose_generation_torch_has_no_kernels_for_is_refused(
    mine: tuple[int, int], built: list[str], age: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda gpu: mine)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda gpu: "Tesla V100")
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: built)
    if age is None:
        assert lacking_kernels(0) is None and find_device("auto").type == "cuda"
        return
    said = (
        rf"device=cuda cannot be used: torch .* none for Tesla V100 \(sm_{mine[0]}{mine[1]}\): .* {age} version of CUDA"
    )
    with pytest.raises(UserError, match=f"{said}; or set device=cpu$"):
        pick_device("auto")
