"""`mbrl predict` on the replay of a run: known answers of a perfect model and of one that ignores actions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mbrl
from mbrl.cli import main as cli
from mbrl.errors import UserError
from mbrl.prediction import fresh
from mbrl.prediction.fresh import train_model
from mbrl.prediction.models import LoadedModel
from mbrl.prediction.predict import predict, rank
from mbrl.prediction.ranking import NO_DIFFERENCE
from mbrl.prediction.replays import Chosen, HeldOut, held_out_numbers, seen_episodes
from tests.fakes import CountingWorldModel

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("recorded")]  # whole runs, one of which many tests read

RECORDED = [
    "env=toy", "env.resolution=32", "env.episode_length=20", "env.snapshots=true", "total_env_steps=160",
    "checkpoint_every=80", "eval.every=160", "eval.episodes=1", "collect.frames_per_batch=10", "video=false",
    "threads=1", "agent.learning_starts=20", "agent.batch_size=8", "agent=drqv2", "agent.updates_per_step=0.1",
]  # fmt: skip
QUICK: dict[str, Any] = {"segments": 12, "videos": 0, "probe": False, "horizon": 4}
TINY = [
    "agent=mbpo_ivideogpt", "experiment=smoke", "agent.world_model.tokenizer.resolution=32",
    "agent.model_updates_per_step=0.2", "agent.world_model.conditioning.actions=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline run of eight episodes, with snapshots."""
    folder = tmp_path_factory.mktemp("recorded") / "baseline"
    return mbrl.train([*RECORDED, f"run_dir={folder}"]).folder


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_a_perfect_model_has_no_error_and_ranks_all_plans_right(recorded: Path, tmp_path: Path) -> None:
    chosen = Chosen(after=4, episodes=4, starts=6, train=["agent=mbpo_simulator"])
    rows, left_out = predict(tmp_path / "perfect", recorded, tmp_path / "out", **QUICK, chosen=chosen)
    values = {row.name: row for row in rows}
    for kind in ("random", "policy"):
        for ending in ("", "_mean"):
            found = values[f"plan_rank_{kind}{ending}"]
            assert found.value == pytest.approx(1.0) and found.standard_error == pytest.approx(0.0, abs=1e-6)
    assert left_out["plan_rank_greedy"] == "the model has no temperature"
    for ending in ("", "_observed"):
        assert values[f"reward_correlation{ending}"].value == pytest.approx(1.0)
        assert values[f"reward_mean{ending}"].value == pytest.approx(values["reward_true"].value)
    assert values["reward_error"].value == values["reward_error_observed"].value == 0.0
    assert values["reward_error_low"].value == 0.0 and values["reward_steps"].value == 48
    assert values["psnr_moving"].value == torch.inf and values["psnr_moving_still"].value < 20
    settings = json.loads((tmp_path / "out" / "table.json").read_text())["settings"]
    assert (settings["first_episode"], settings["episodes"]) == (4, 4)


def test_a_model_that_ignores_actions_does_not_rank_plans(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[object] = ["--episodes", 4, "--horizon", 2, "--segments", 1, "--videos", 0, "--no-probe"]
    options += ["--starts", 12, "--after", 4, "--train", *TINY]
    code, out, err = command(capsys, tmp_path / "model", recorded, *options)
    assert code == 0, err
    reason = f"{NO_DIFFERENCE} in the model"
    assert f"left out: plan_rank_random_greedy ({reason})" in out and "plan_rank_policy_greedy" in out
    shown = [line for line in out.splitlines() if line.startswith("random actions")]
    assert len(shown) == 1 and shown[0].count("±") == 2 and shown[0].endswith("–")
    with (tmp_path / "model" / "predict" / "table.csv").open() as stream:
        numbers = {(line["measure"], line["step"]): float(line["value"]) for line in csv.DictReader(stream)}
    for name in ("plan_rank_random", "plan_rank_random_mean", "plan_rank_policy"):
        assert abs(numbers[name, "all"]) < 4 * numbers[name, "standard error"] < 0.5, name
    # the model that was trained is there, and is neither trained again nor measured on what it has seen
    monkeypatch.setattr(fresh, "_trained", lambda *_: pytest.fail("trained again"))
    run = mbrl.load(recorded)
    train_model(tmp_path / "model", run, 4, TINY)
    seen = seen_episodes(tmp_path / "model", run)
    assert held_out_numbers(run, seen, Chosen(episodes=3)) == range(4, 7), "the next are the default"
    with pytest.raises(UserError, match=r"was trained on the first 4 episodes of .*: --after must be 4 or more"):
        held_out_numbers(run, seen, Chosen(after=3))
    with pytest.raises(UserError, match=r"belongs to another config \(agent.model_batch_size: 2 there, 3 here\)"):
        train_model(tmp_path / "model", run, 4, [*TINY, "agent.model_batch_size=3"])


def test_a_run_is_measured_on_what_followed_the_checkpoint_before_its_newest(recorded: Path, tmp_path: Path) -> None:
    chosen = Chosen(episodes=4, starts=2)
    with pytest.raises(UserError, match="is a run of agent 'drqv2', which learns no world model"):
        predict(recorded, recorded, tmp_path / "out", **QUICK, chosen=chosen)
    run = mbrl.load(recorded)
    with pytest.raises(UserError, match=r"5 episodes after the first 4 need 9, and the replay of .* holds 8: lower"):
        predict(recorded, recorded, tmp_path / "out", **QUICK, chosen=Chosen(episodes=5))
    assert held_out_numbers(run, 0, Chosen(episodes=3)) == range(5, 8), "the newest, for a model of other data"
    assert held_out_numbers(run, 4, Chosen(episodes=3)) == range(4, 7), "the next, for one that saw four"
    assert held_out_numbers(run, 4, Chosen(after=5, episodes=2)) == range(5, 7)


def test_without_snapshots_plans_are_left_out(recorded: Path) -> None:
    run = mbrl.load(recorded)
    run.config.env.snapshots = False
    rows, left_out = rank(LoadedModel(CountingWorldModel()), HeldOut([], run), starts=2, seed=0, batch_size=4)
    assert rows == [] and "has no snapshots: record a run with env.snapshots=true" in left_out["ranking of plans"]
    _, left_out = rank(LoadedModel(CountingWorldModel()), HeldOut([]), starts=2, seed=0, batch_size=4)
    assert "it needs a run as DATA" in left_out["ranking of plans"]


def test_every_mistake_is_one_line(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["--train", "agent=mbpo_ivideogpt", "experiment=smoke"]
    side = "agent.world_model.tokenizer.resolution=32"
    (tmp_path / "folder").mkdir()
    mistakes: dict[tuple[object, ...], str] = {
        (recorded, "--after", 9, *train): "10 episodes after the first 9 need 19, and the replay of",
        (recorded, "--episodes", 2, *train): "--train needs --after N, the number of episodes to train on: 1 to 8",
        (recorded, "--after", 4, "--episodes", 2, *train): "set tokenizer.resolution=32",
        (recorded, "--after", 4, "--episodes", 2, *train, side, "env.task=reach"): "env is that of",
        (recorded, "--after", 4, "--episodes", 2, *train, side, "agent.nothing=1"): "no setting named 'agent.nothing'",
        (recorded, "--after", 1, "--episodes", 2, *train, side, "agent.learning_starts=60"): "would not be trained",
        (recorded, "--after", 4, "--episodes", 2, "--train", "agent=drqv2"): "agent=drqv2 trains no world model",
        (recorded, "--after", 4, "--episodes", 2, "--train", "agent=mbpo"): "this world model predicts states",
        (recorded, "--after", 4, "--episodes", 2, "--train", "agent=mpc_ivideogpt"): "agent=mpc_ivideogpt plans",
        (recorded, "--after", -1): "argument --after: '-1' is not allowed: it must be a whole number in [0,",
        (recorded, "--starts", 0): "argument --starts: '0' is not allowed: it must be a whole number in [1,",
        (tmp_path / "folder", "--after", 4): "--after needs a run's folder as DATA, whose replay is read",
        (tmp_path / "folder", *train): "--train needs a run's folder as DATA, whose replay is read",
    }
    for arguments, message in mistakes.items():
        code, _, err = command(capsys, tmp_path / "model", *arguments)
        assert code == 2 and message in err.splitlines()[-1], (arguments, err)
        assert not (tmp_path / "model" / "checkpoints").exists()
