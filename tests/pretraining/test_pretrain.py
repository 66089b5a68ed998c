"""Pretraining end to end on tiny data: the folder it leaves, a kill -9 that costs nothing, fine-tuning, processes."""

import json
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from mbrl.data.episodes import write_entries
from mbrl.data.mixture import Mixture
from mbrl.errors import UserError
from mbrl.pretraining.build import build_model, own_device, weight_by_folder
from mbrl.pretraining.phase import Phase
from mbrl.pretraining.pretrain import build_phase, check, run
from mbrl.run_folder.paths import checkpoint_folders
from tests.command import Command, Done, run_command
from tests.pretraining.conftest import SIDE

LENGTH = 5
TINY = [
    "threads=1", "workers=0", "device=cpu", "batch_size=4", "log_every=2", "checkpoint_every=3", "augment=null",
    "validation.every=4", "validation.batches=1", "validation.batch_size=2", "validation.share=0.4", "video.every=0",
    "tokenizer.steps=7", "tokenizer.warmup=2", "transformer.steps=7", "transformer.warmup=2",
    f"worldmodel.segment_length={LENGTH}", f"worldmodel.tokenizer.resolution={SIDE}",
    "worldmodel.tokenizer.autoencoder.block_out_channels=[16]", "worldmodel.tokenizer.autoencoder.latent_channels=4",
    "worldmodel.tokenizer.codebooks.code_dim=4", "worldmodel.tokenizer.codebooks.context_codes=16",
    "worldmodel.tokenizer.codebooks.dynamics_codes=16", "worldmodel.tokenizer.codebooks.moving_average.warmup=2",
    "worldmodel.tokenizer.static_scene.background_batches=2", "worldmodel.tokenizer.cross_attention.dropout=0.1",
    "worldmodel.transformer.width=32", "worldmodel.transformer.layers=1", "worldmodel.transformer.heads=2",
    "worldmodel.transformer.mlp_width=32", "worldmodel.transformer.attention_dropout=0.1",
]  # fmt: skip
# as published: nothing that depends on more than one row; gradients are what SGD with a rate of 1 subtracts
GRADIENTS = [
    "tokenizer.steps=1", "transformer.steps=1", "validation.every=0", "worldmodel.precision=float32",
    "tokenizer.learning_rate=1", "tokenizer.warmup=0", "tokenizer.clip_norm=1e9", "tokenizer.weight_decay=0",
    "transformer.learning_rate=1", "transformer.warmup=0", "transformer.clip_norm=1e9", "transformer.weight_decay=0",
    "worldmodel.optimizers.tokenizer._target_=torch.optim.SGD",
    "worldmodel.optimizers.transformer._target_=torch.optim.SGD",
    "worldmodel.tokenizer.cross_attention.dropout=0", "worldmodel.transformer.attention_dropout=0",
    "worldmodel.training.tokenizer_frames=null", "worldmodel.training.token_noise=0",
    "worldmodel.tokenizer.loss.motion_weight=0",
    "worldmodel.tokenizer.codebooks.moving_average=null",
]  # fmt: skip


def of_pretrained(test: Any) -> Any:
    """Mark a test of the pretrained folder: one process of pytest-xdist runs them all, and pretrains it once."""
    return pytest.mark.process(pytest.mark.xdist_group("pretrained")(test))


def overrides(data: Path, output: Path, *more: str) -> list[str]:
    return [f"data={{{data}: 1.0}}", f"output={output}", *TINY, *more]


def pretrain(data: Path, output: Path, *more: str) -> Path:
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("pretrain", overrides(data, output, *more))
    assert run(config) == output
    return output


def test_wrapped_models_are_freed_before_the_process_group_ends(data, tmp_path, monkeypatch):
    """Otherwise DistributedDataParallel destroys it with the GIL held, and one process in some tens never ended."""
    phases, alive = [], []

    def noted(*arguments: Any) -> Phase:
        phase = build_phase(*arguments)
        phases.append(weakref.ref(phase))
        return phase

    monkeypatch.setattr("mbrl.pretraining.pretrain.build_phase", noted)
    monkeypatch.setattr(Accelerator, "end_training", lambda self: alive.extend([phase() for phase in phases]))
    pretrain(data, tmp_path, "tokenizer.steps=3", "transformer.steps=1", "validation.every=0")
    assert alive == [None, None]


def run_with_torchrun(arguments: list[str]) -> Done:
    """Two processes, as the README starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mbrl"]
    done = subprocess.run([*command, "pretrain", *arguments], capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run_two_processes(arguments: list[str]) -> Done:
    """Two processes with the variables that torchrun sets, without the time that it takes."""
    for _ in range(3):
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
        ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        first, second = [Command("pretrain", *arguments, environment=rank) for rank in ranks]
        ended = first.wait()
        if "EADDRINUSE" not in ended.stderr:
            break
        second.kill()  # Another process has taken the port since: this one waits for an answer from it.
    other = second.wait()
    return Done(max(ended.returncode, other.returncode), ended.stdout + other.stdout, ended.stderr + other.stderr)


def rows(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock and the machine."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    machine = ("wall_time", "time/", "memory/")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(machine)} for line in lines]


def weights(output: Path) -> dict[str, Tensor]:
    files = ("tokenizer/diffusion_pytorch_model", "transformer/model")
    return {f"{f} {k}": v for f in files for k, v in load_file(output / f"{f}.safetensors").items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory) -> Path:
    return pretrain(data, tmp_path_factory.mktemp("pretrained") / "model", "video.every=5", "video.segments=2")


@of_pretrained
def test_the_folder_holds_weights_metrics_and_videos(pretrained):
    for name in ("config.yaml", "metrics.jsonl", "videos/tokenizer-0000005.mp4", "videos/transformer-0000007.png"):
        assert (pretrained / name).stat().st_size > 0, name
    assert list((pretrained / "tensorboard").glob("events*"))
    assert not [*pretrained.rglob("*.pkl"), *pretrained.rglob("*.pt"), *pretrained.rglob("*.bin")]
    steps = {key: [row["step"] for row in rows(pretrained) if key in row] for key in rows(pretrained)[-1]}
    logged = [row["step"] for row in rows(pretrained) if "tokenizer/loss" in row]
    assert logged == [2, 4, 6, 7], "each second step and the last"
    assert steps["validation/transformer/loss"] == [7 + 4, 7 + 7], "steps are counted over both phases"
    assert any("transformer/reward_loss" in row for row in rows(pretrained))
    assert json.loads((pretrained / "metrics.jsonl").read_text().splitlines()[0])["memory/peak_gib"] > 0.1


@pytest.mark.process
@pytest.mark.parametrize("frame", [pytest.param("initial", marks=pytest.mark.slow), "goal"])  # 2 s each
def test_a_model_that_is_conditioned_on_a_frame_is_pretrained(frame, data, tmp_path):
    steps = ("tokenizer.steps=3", "transformer.steps=3", "validation.every=3", "video.every=3", "video.segments=1")
    output = pretrain(data, tmp_path / "model", f"worldmodel.conditioning.{frame}=true", *steps)
    assert [row["step"] for row in rows(output) if "validation/transformer/loss" in row] == [6]
    assert {path.name for path in output.glob("videos/*.mp4")} == {"tokenizer-0000003.mp4", "transformer-0000003.mp4"}


@of_pretrained
def test_a_world_model_starts_from_the_weights(pretrained, data, tmp_path):
    with initialize_config_module("configs", version_base="1.3"):
        few = "worldmodel.training.tokenizer_updates=1"  # fewer than a codebook's warm-up, which is over
        config = compose("pretrain", overrides(data, tmp_path, f"worldmodel.pretrained={pretrained}", few))
    segments = Mixture({str(data): 1.0}, batch_size=2, segment_length=LENGTH, resolution=SIDE, seed=1)
    model = build_model(config, segments)
    assert all(
        torch.equal(v, weights(pretrained)[f"transformer/model {k}"]) for k, v in model.transformer.state_dict().items()
    )
    batch = segments[0]
    assert model.predict(batch[:, :2], batch["action"][:, 1:3])["pixels"].shape == (2, 2, 3, SIDE, SIDE)


@of_pretrained
def test_a_finished_run_is_not_run_again(pretrained, data):
    before = rows(pretrained), weights(pretrained)
    pretrain(data, pretrained, "video.every=5", "video.segments=2")
    assert rows(pretrained) == before[0] and same(weights(pretrained), before[1])


@of_pretrained
def test_watching_leaves_training_as_it_was(pretrained, data, tmp_path):
    more = ("validation.every=100", "log_every=1", "checkpoint_every=100")
    assert same(weights(pretrain(data, tmp_path / "other", *more)), weights(pretrained))


@pytest.mark.process
@pytest.mark.slow  # 7 s; test_phase.py resumes from a checkpoint in each run of the suite
def test_a_killed_run_goes_on_to_the_bit(data, tmp_path):
    more = ["tokenizer.accumulate=2", "tokenizer.ema_decay=0.5", "transformer.ema_decay=0.5", "tokenizer.steps=12"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for phase in ("tokenizer", "transformer"):
        process = Command("pretrain", *overrides(data, killed, *more))
        deadline, saved = time.monotonic() + 200, killed / "checkpoints" / phase
        while not checkpoint_folders(saved) and process.running and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.kill() == -signal.SIGKILL, "the run ended before it was killed"
    done = run_command("pretrain", *overrides(data, killed, *more))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(killed)
    pretrain(data, whole, *more)
    assert rows(killed) == rows(whole)
    assert same(weights(killed), weights(whole))


@of_pretrained
def test_fine_tuning_leaves_the_tokenizer_alone(pretrained, data, tmp_path):
    more = (f"worldmodel.pretrained={pretrained}", "tokenizer.steps=0", "transformer.learning_rate=0.01")
    before, after = weights(pretrained), weights(pretrain(data, tmp_path / "tuned", *more))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("transformer/") for name in changed)


@pytest.mark.process
def test_data_without_actions_and_rewards(data, tmp_path, caplog):
    for number in range(8):
        episode = load_file(data / f"episode-{number:05d}.safetensors")
        (tmp_path / "films").mkdir(exist_ok=True)
        write_entries(tmp_path / "films" / f"{number}.safetensors", {"pixels": episode["pixels"]})
    with pytest.raises(ValueError, match=r"set worldmodel\.conditioning\.actions=false"):
        pretrain(tmp_path / "films", tmp_path / "model")
    assert not (tmp_path / "model").exists(), "a mistake must not take the folder"
    pretrain(tmp_path / "films", tmp_path / "model", "worldmodel.conditioning.actions=false", "video.every=7")
    assert "a reward head stays untrained" in caplog.text
    assert not any("transformer/reward_loss" in row for row in rows(tmp_path / "model"))
    assert (tmp_path / "model" / "videos" / "transformer-0000007.mp4").exists()


@of_pretrained
def test_folder_of_another_config_is_refused(pretrained, data):
    with pytest.raises(ValueError, match=r"another config \(batch_size: 4 there, 2 here\): choose .* with output="):
        pretrain(data, pretrained, "batch_size=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=null", "data is missing"),
        ("batch_size=0", r"^batch_size=0 is not allowed: it must be a whole number in \[1, "),
        ("tokenizer.accumulate=0", r"^tokenizer\.accumulate=0 is not allowed: it must be a whole number in \[1, "),
        ("transformer.ema_decay=1", r"^transformer\.ema_decay=1 is not allowed: it must be a number in \[0, 1\)"),
        ("tokenizer.steps=2", r"tokenizer.steps \(2\) must be more than .*codebooks.moving_average.warmup \(2\)"),
        ("validation.share=0", r"^validation\.share=0 is not allowed: it must be a number in \(0, 1\)"),
        ("validation.share=0.001", "falls into the validation split"),
    ],
)
def test_impossible_settings(data, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        pretrain(data, tmp_path, override)


def test_a_weight_must_be_a_number():
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("pretrain", ["data={some/folder: much}"])
    with pytest.raises(ValueError, match="the weight of some/folder is 'much'"):
        run(config)


@pytest.mark.process
@pytest.mark.parametrize(
    ("accumulate", "start"),
    [
        (2, run_two_processes),
        pytest.param(1, run_two_processes, marks=pytest.mark.slow),
        pytest.param(2, run_with_torchrun, marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_gradients_of_one(data, tmp_path, accumulate, start):
    more = [*GRADIENTS, f"tokenizer.accumulate={accumulate}", f"transformer.accumulate={accumulate}"]
    one = weights(pretrain(data, tmp_path / "one", *more))
    done = start(overrides(data, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(tmp_path / "two") and done.stdout.count(str(tmp_path)) == 1
    two = weights(tmp_path / "two")
    frozen = ("tokenizer.learning_rate=0", "transformer.learning_rate=0")
    before = weights(pretrain(data, tmp_path / "before", *more, *frozen))
    assert one.keys() == two.keys()
    measured = 0
    trained = {name: value for name, value in one.items() if value.is_floating_point()}  # the others count
    for name, value in trained.items():
        gradient, noise = (before[name] - value).norm(), 1e-6 * value.norm()
        assert (two[name] - value).norm() <= 1e-3 * gradient + noise, name
        measured += bool(gradient > 100 * noise)
    assert measured > 0.8 * len(trained), "too few weights have a gradient that a float can tell"


def test_folders_of_any_name_are_given_in_a_list(tmp_path: Path) -> None:
    odd = '/a b,c={d}: "e"[0]'
    given = OmegaConf.create([{"folder": odd, "weight": 0.5}, {"folder": "x", "weight": 1}])
    assert weight_by_folder(given) == {odd: 0.5, "x": 1}
    for wrong, said in (
        ([], "data is missing"),
        (["x"], "a list holds"),
        ([{"folder": "x"}], "a list holds"),
        ([{"folder": "x", "weight": "much"}], "the weight of x is 'much'"),
        ([{"folder": "x", "weight": 1}, {"folder": "x", "weight": 2}], "a folder twice"),
    ):
        with pytest.raises(UserError, match=said):
            weight_by_folder(OmegaConf.create(wrong))


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first question on: asking GPU 0 for its memory opens a context there."""
    asked, taken = list[torch.device](), list[torch.device]()
    monkeypatch.setattr("mbrl.device.available_devices", lambda: ["cpu:0", "cuda:0", "cuda:1"])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("mbrl.device.lacking_kernels", lambda gpu: None)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("mbrl.pretraining.pretrain.require_memory", lambda what, size, device: asked.append(device))
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("pretrain", overrides(Path("data"), Path("out"), "device=cuda:0"))
    for rank, gpu in (("1", 1), ("2", 0), (None, 0)):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        check(config)
        assert {*asked, *taken} == {torch.device("cuda", gpu)}
        asked.clear(), taken.clear()
    assert own_device(OmegaConf.merge(config, {"device": "cpu"})).type == "cpu"
