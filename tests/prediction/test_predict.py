"""`mbrl predict` end to end on tiny models: what it writes, what it says, and one line for each mistake."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from mbrl.build import build_agent, build_checkpoints, build_policy, build_replay, env_factory
from mbrl.cli import main as cli
from mbrl.errors import UserError
from mbrl.prediction import predict as module
from mbrl.prediction.predict import (
    LoadedModel,
    check_data,
    check_horizon,
    check_predicts_frames,
    load_model,
    predict,
    reward_of_success,
)
from mbrl.run_folder.config import claim_run_folder
from mbrl.run_folder.parts import RandomStates
from tests.demonstrations import write_episodes
from tests.fakes import CountingWorldModel
from tests.prediction.test_scores import SIDE, Steering, episodes
from tests.worldmodel.ivideogpt.test_model import make
from worldmodel.ivideogpt.segments import Conditioning
from worldmodel.ivideogpt.transformer.transformer import VideoTransformer

pytestmark = pytest.mark.process  # whole commands and runs

small = partial(VideoTransformer, width=32, layers=2, heads=2, mlp_width=64)
TINY = ["experiment=smoke", "env=toy", "env.episode_length=20", "env.resolution=64"]


@pytest.fixture
def steered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a world model with known answers where a run folder would be read."""

    def put(**options: Any) -> None:
        model = Steering()
        for name, value in options.items():
            setattr(model, name, value)
        monkeypatch.setattr(module, "load_model", lambda path, goal, config_dir: LoadedModel(model))

    put()
    return put


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_episodes(tmp_path / "data", episodes())
    return tmp_path / "data"


def test_it_writes_videos_tables_and_a_picture(steered: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows, left_out = predict(tmp_path, data, out, horizon=4, segments=6, samples=2, videos=2)
    videos = {f"segment-0{number}.{kind}" for number in range(2) for kind in ("mp4", "png")}
    assert {path.name for path in out.iterdir()} == {"horizon.png", "table.csv", "table.json"} | videos
    table = json.loads((out / "table.json").read_text())
    assert table["measures"].keys() == {row.name for row in rows} and table["left_out"] == left_out
    assert table["settings"]["segments"] == 6 and table["settings"]["horizon"] == 4
    assert len(table["measures"]["psnr"]["by_step"]) == 4
    video = iio.imread(out / "segment-00.mp4")
    assert video.shape[0] == 2 + 4  # context and horizon
    orange = video[:, 1, video.shape[2] // 2].astype(int)  # the middle picture's border
    assert (orange[:2].sum(-1) < 60).all() and (orange[2:, 0] > 180).all()


def test_as_far_as_the_model_goes_where_no_horizon_is_given(steered: Any, data: Path, tmp_path: Path) -> None:
    rows, _ = predict(tmp_path, data, tmp_path / "out", segments=2, videos=0)
    assert len(next(row for row in rows if row.name == "mse").curve or []) == Steering.max_horizon
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_lpips_and_fvd_where_their_weights_are_given(
    steered: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pale:
        def to(self, device: torch.device) -> "Pale":
            return self

        def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
            return (prediction - target).abs().mean((1, 2, 3))

        def features(self, videos: Tensor) -> Tensor:
            assert videos.shape[1] == 2 + 8
            return videos.float().mean((2, 3, 4)) / 255

    monkeypatch.setattr(module, "load_lpips", lambda paths: Pale())
    monkeypatch.setattr(module.I3D, "from_file", lambda path: Pale())
    given = {"lpips": [Path("a")], "fvd": Path("b"), "horizon": 8, "segments": 4, "videos": 0}
    rows, left_out = predict(tmp_path, data, tmp_path / "out", **given)
    values = {row.name: row.value for row in rows}
    assert values["lpips"] == 0.0 and values["lpips_still"] > 0
    assert values["fvd"] == pytest.approx(2 * 0.2**2, rel=1e-3)  # the two context frames, reconstructed 51 too bright
    assert "lpips" not in left_out and "fvd" not in left_out


def test_gripper_is_read_off_frames_where_the_state_tells(
    steered: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_UPDATES", 10)
    shown = episodes()
    for records in shown:
        state = torch.zeros(len(records), 39)
        state[:, :3] = records["pixels"][:, 0, 0, :1].float() / 255  # brightness in metres
        records["state"] = state
    write_episodes(tmp_path / "shown", shown)
    options = {"horizon": 3, "segments": 8, "videos": 0}
    rows, left_out = predict(tmp_path, tmp_path / "shown", tmp_path / "out", **options)
    values = {row.name: row.value for row in rows}
    assert values["gripper_cm"] == pytest.approx(values["gripper_cm_real"])  # a perfect model's frames are real
    assert values["gripper_cm"] > 0
    assert "gripper" not in left_out
    without, left_out = predict(tmp_path, tmp_path / "shown", tmp_path / "out", probe=False, **options)
    assert left_out["gripper"] == "--no-probe was given"
    assert [row for row in rows if not row.name.startswith("gripper")] == without
    assert json.loads((tmp_path / "out" / "table.json").read_text())["left_out"] == left_out
    write_episodes(tmp_path / "one", shown[:1])
    assert "gripper" in predict(tmp_path, tmp_path / "one", tmp_path / "out", **options)[1]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A run as training leaves it, of random weights, and its world model's weights."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with initialize_config_module("configs", version_base="1.3"):
        config = compose("train", [f"run_dir={folder}", *TINY])
    env = env_factory(config)(seed=0)
    policy = build_policy(config, env)
    replay = build_replay(config, folder / "replay", env, policy)
    agent = build_agent(config, env, policy, replay)
    assert agent.world_model is not None
    with torch.no_grad():
        for parameter in agent.world_model.parameters():
            parameter.mul_(1.01)
    claim_run_folder(folder, config)
    build_checkpoints(folder, agent, replay, {"env_steps": 0}, RandomStates()).save(1)
    env.close()
    return folder, dict(agent.world_model.named_parameters())


def toy_episodes(count: int, side: int = 64, steps: int = 20) -> list[TensorDict]:
    return [
        TensorDict(
            pixels=torch.randint(0, 256, (steps + 1, 3, side, side), dtype=torch.uint8),
            action=torch.rand(steps + 1, 2) * 2 - 1,
            reward=torch.rand(steps + 1, 1),
            **{flag: torch.zeros(steps + 1, 1, dtype=torch.bool) for flag in ("success", "terminated", "truncated")},
            batch_size=[steps + 1],
        )
        for _ in range(count)
    ]


def test_a_run_folder_gives_its_newest_world_model(run_folder: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = run_folder
    loaded = load_model(folder)
    assert (loaded.model.resolution, loaded.model.action_dim, loaded.success_bonus) == (64, 2, 0.0)
    found = dict(loaded.model.named_parameters())
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert not loaded.model.training


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_the_command_prints_a_table_and_what_was_left_out(
    run_folder: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run_folder
    write_episodes(tmp_path / "data", toy_episodes(2))
    options = ["--horizon", 2, "--segments", 3, "--samples", 2, "--videos", 1]
    code, out, _ = command(capsys, folder, tmp_path / "data", *options)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["measure", "all", "steps", "step", "1", "step", "2"]
    for name in ("psnr", "psnr_best", "psnr_gap_shuffled", "reward_error", "dynamics_codes_perplexity"):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert "left out: gripper (it needs two episodes with Meta-World's state)" in lines
    assert lines[-1] == str(folder / "predict") and (folder / "predict" / "segment-00.mp4").is_file()
    options = ["--horizon", 1, "--segments", 1, "--videos", 0, "--output", tmp_path / "out"]
    code, out, _ = command(capsys, folder, tmp_path / "data", *options)
    assert code == 0 and "left out: controllability, shuffled (there is only one segment)" in out


def test_every_mistake_is_one_line(
    steered: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_episodes(tmp_path / "small", toy_episodes(1, side=8))
    write_episodes(tmp_path / "short", toy_episodes(1, side=SIDE, steps=4))
    mistakes = {
        (data, "--samples", "0"): "argument --samples: '0' is not allowed: it must be a whole number in [1,",
        (data, "--videos", "-1"): "argument --videos: '-1' is not allowed: it must be a whole number in [0,",
        (data, "--horizon", "11"): "--horizon must be 1 to 10, the longest of this model, not 11",
        (data, "--horizon", "0"): "argument --horizon: '0' is not allowed: it must be a whole number in [1,",
        (tmp_path / "none",): "does not exist",
        (tmp_path / "small",): "has frames of 8x8, and the model is made for 16x16",
        (tmp_path / "short", "--horizon", "5"): "the horizon can be at most 3",
        (data, "--fvd", "none.pt"): "no file none.pt to read weights from",
        (data, "--fvd", "none.pt", "--horizon", "3"): "--fvd needs videos of 9 frames or more",
        (data, "--lpips", "none.pt"): "no file none.pt to read weights from",
    }
    for arguments, message in mistakes.items():
        code, _, err = command(capsys, tmp_path, *arguments)
        assert code == 2 and message in err.splitlines()[-1], (arguments, err)
    steered(action_dim=4)
    assert "has actions of width 2, and the model is made for 4" in command(capsys, tmp_path, data)[2]


def test_episodes_without_actions_serve_a_model_without_them_alone() -> None:
    silent = [records.exclude("action") for records in episodes(1)]
    model = Steering()
    with pytest.raises(ValueError, match="an episode has no actions, and this model needs them"):
        check_data(model, silent, Path("data"))
    with pytest.raises(ValueError, match="an episode has no pixels"):
        check_data(model, [episodes(1)[0].exclude("pixels")], Path("data"))
    model.action_dim = 0
    check_data(model, silent, Path("data"))


def test_the_reward_of_a_success_is_that_of_the_data() -> None:
    shown = episodes()  # a step's reward is its number, and from 8 on it is a success
    assert reward_of_success(shown, bonus=0.0) == 7.5
    assert reward_of_success(shown, bonus=10.0) == (7 + 18) / 2
    assert reward_of_success([records[:6] for records in shown], bonus=0.0) is None
    assert reward_of_success([shown[0], shown[1].exclude("reward")], bonus=0.0) is None


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_folder_of_weights_predicts_what_its_files_hold(conditioned: bool, tmp_path: Path) -> None:
    saved = make(
        conditioning=Conditioning(actions=conditioned),
        parts={"transformer": partial(small, reward_heads=int(conditioned))},
    )
    saved.save_pretrained(tmp_path / "weights")
    model = load_model(tmp_path / "weights").model
    assert (model.resolution, model.action_dim, model.max_horizon) == (SIDE, 2 if conditioned else 0, 14)
    write_episodes(tmp_path / "data", toy_episodes(2, side=SIDE))
    options = {"horizon": 3, "segments": 2, "videos": 1}
    rows, left_out = predict(tmp_path / "weights", tmp_path / "data", tmp_path / "out", **options)
    names = {row.name for row in rows}
    assert ("reward_error" in names, "psnr_zero" in names) == (conditioned, conditioned)
    assert ("reward error" in left_out, "controllability" in left_out) == (not conditioned, not conditioned)
    (tmp_path / "weights" / "transformer" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="transformer"):
        load_model(tmp_path / "weights")


def test_weights_and_data_without_actions(tmp_path: Path) -> None:
    make(conditioning=Conditioning(actions=False)).save_pretrained(tmp_path / "weights")
    silent = [episode.select("pixels") for episode in toy_episodes(2, side=SIDE)]
    (tmp_path / "data").mkdir()
    for number, episode in enumerate(silent):
        save_file({"pixels": episode["pixels"].contiguous()}, tmp_path / "data" / f"{number}.safetensors")
    rows, left_out = predict(tmp_path / "weights", tmp_path / "data", tmp_path / "out", horizon=3, segments=2, videos=1)
    assert {"psnr", "ssim"} <= {row.name for row in rows} and "controllability" in left_out
    assert (tmp_path / "out" / "segment-00.mp4").is_file()


def test_weights_say_whether_they_want_a_goal(tmp_path: Path) -> None:
    make(conditioning=Conditioning(goal=True)).save_pretrained(tmp_path / "own")
    model = load_model(tmp_path / "own").model
    assert model.goal_conditioned and model.context_length == 1
    config = tmp_path / "own" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"goal_conditioned": true,', ""))  # as published
    assert not load_model(tmp_path / "own").model.goal_conditioned
    assert load_model(tmp_path / "own", goal=True).model.goal_conditioned


def test_weights_say_whether_their_context_is_the_initial_frame(tmp_path: Path) -> None:
    make(conditioning=Conditioning(initial=True)).save_pretrained(tmp_path)
    assert load_model(tmp_path).model.context_keys == ("initial",)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"initial_conditioned": true,', ""))  # as earlier versions saved it
    assert load_model(tmp_path).model.context_keys == ()


def test_folders_without_a_world_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        load_model(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("worldmodel: {}\n")
    with pytest.raises(FileNotFoundError, match="holds no weights yet"):
        load_model(tmp_path / "begun")
    run = tmp_path / "run"
    with initialize_config_module("configs", version_base="1.3"):
        claim_run_folder(run, compose("train", [f"run_dir={run}", "agent=drqv2", "env=toy"]))
    with pytest.raises(ValueError, match="is a run, whose settings say it: leave --goal out"):
        load_model(run, goal=True)
    with pytest.raises(ValueError, match="a run of agent 'drqv2', which learns no world model"):
        load_model(run)


class OfStates(CountingWorldModel):
    observations = ("state",)


class OfSnapshots(CountingWorldModel):
    context_keys = ("snapshot",)


def test_models_that_recorded_frames_cannot_measure_are_refused() -> None:
    check_predicts_frames(CountingWorldModel(), Path("run"))
    with pytest.raises(UserError, match="run: this world model predicts states"):
        check_predicts_frames(OfStates(), Path("run"))
    model = OfSnapshots()
    model.resolution = SIDE
    with pytest.raises(
        UserError, match="data: this world model starts from the snapshot of a step, which its episodes"
    ):
        check_data(model, episodes(), Path("data"))


def test_the_default_horizon_is_what_model_and_episodes_allow() -> None:
    model = CountingWorldModel()  # 2 frames of context, up to 10 steps
    assert check_horizon(model, None, fvd=False, frames=101) == 10
    assert check_horizon(model, None, fvd=False, frames=8) == 6
    assert check_horizon(model, 7, fvd=False, frames=8) == 7, "an explicit one is refused by the data, not shortened"
