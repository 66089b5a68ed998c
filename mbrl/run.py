"""The Python interface: open a run folder and work with its parts.

    run = mbrl.load("runs/mbpo/hammer/seed0")
    run.curve                                       # success over env steps; reads one small file
    run.evaluate(episodes=10).summary()             # success and return of the policy
    run.make_env().rollout(100, run.policy)         # TorchRL's own rollout
    run.imagine(rollouts=4, horizon=5)              # the policy in the world model

B rollouts, H imagined steps, C context frames, A action, R resolution in pixels.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl.errors import UserError

if TYPE_CHECKING:  # `load(folder).curve` does not import torch, which takes seconds.
    from omegaconf import DictConfig
    from tensordict import TensorDict, TensorDictBase
    from torch import Tensor
    from torchrl.envs import EnvBase

    from mbrl.collecting.acting import Acting
    from mbrl.collecting.evaluation import Evaluation
    from mbrl.replay.replay import Replay
    from mbrl.run_folder.parts import Part
    from policies.base import Policy
    from worldmodel.base import WorldModel

HORIZON = 15  # imagined steps if no horizon is given and the world model can predict as many


def load(run_folder: str | Path, config_dir: str | Path | None = None, checkpoint: int | None = None) -> Run:
    """Open a run folder for reading. Nothing in it is changed.

    Args:
        run_folder: such as `runs/mbpo/hammer/seed0`.
        config_dir: a folder of your own configurations. The run may then name the classes in these files, besides
            those of this project.
        checkpoint: env steps of the checkpoint to load; None for the newest complete one.

    Returns:
        The run. Its parts are built when they are first used.

    Raises:
        FileNotFoundError: the folder is no run folder.
        UserError: its configuration cannot be read, or names a class that is not allowed.
    """
    run = Run(Path(run_folder), None if config_dir is None else Path(config_dir), checkpoint)
    _ = run.config
    return run


class Run:
    """A run folder, opened for reading. Every part is built and loaded when it is first used, and then kept.

    Args:
        folder, config_dir, checkpoint: see `load`.
        named: names of classes and packages that the run may have besides.
    """

    def __init__(
        self, folder: Path, config_dir: Path | None = None, checkpoint: int | None = None, named: Collection[str] = ()
    ) -> None:
        self.folder, self._config_dir, self._checkpoint, self._named = folder, config_dir, checkpoint, named

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def config(self) -> DictConfig:
        """Every setting, resolved."""
        from mbrl.run_folder.config import load_config

        if self._config_dir is None:
            return load_config(self.folder, self._named)
        from mbrl.targets import names_in

        return load_config(self.folder, {*self._named, *names_in(self._config_dir)})

    @property
    def curve(self) -> Any:
        """A pandas DataFrame with one row for each evaluation: `env_steps`, and `success` in [0, 1].

        A run with several tasks also has `success/TASK` for each task; `success` is their mean.
        """
        import pandas

        from mbrl.results.curves import SUBTASK
        from mbrl.results.read_curves import read_curves

        mean, *tasks = read_curves([self.folder / "eval.csv"])
        columns = {"env_steps": mean.steps.astype(int), "success": mean.success}
        columns |= {f"success/{task.task.rpartition(SUBTASK)[2]}": task.success for task in tasks}
        return pandas.DataFrame(columns)

    @property
    def env_steps(self) -> int:
        """Env steps at the checkpoint that is loaded."""
        if self._checkpoint is None:
            _ = self.policy
        assert self._checkpoint is not None
        return self._checkpoint

    def make_env(self, seed: int | None = None, **settings: Any) -> EnvBase:
        """Make the environment of the run's evaluations, which has no success bonus.

        Args:
            seed: seed of starts and goals; None for the seed of the run's evaluations.
            settings: arguments of the environment that replace the run's, such as `pixels=True` or `task="reach"`.

        Returns:
            A TorchRL environment; `rollout(100, run.policy)` runs the policy in it. Close it after use.
        """
        from mbrl.build import env_factory
        from mbrl.envs.gym import with_recurrent_state

        config = self._whole_config
        make = env_factory(config, evaluation=True)
        env = make(seed=config.eval.seed if seed is None else seed, **settings)
        return with_recurrent_state(env, self._acting[0].carried)

    @cached_property
    def policy(self) -> Acting:
        """The acting policy: the policy, or the planner where the agent has one. See `mbrl.collecting.acting.Acting`.

        `run.policy(tensordict)` sets `action` in a TensorDict; `run.policy({"state": state})` returns the action.
        """
        from mbrl.collecting.acting import Acting

        acting, _, _ = self._acting
        with closing(self._plain_env()) as env:
            return Acting(acting, env.observation_spec)

    @cached_property
    def world_model(self) -> WorldModel | None:
        """The world model in eval mode, on the run's device; None for an agent that learns none."""
        from mbrl.build import build_world_model
        from mbrl.device import fork_rng
        from mbrl.run_folder.parts import ModulePart
        from worldmodel.base import WorldModel

        if self._whole_config.agent.get("planner") is None:
            with closing(self._plain_env()) as env, fork_rng():
                model = build_world_model(self.config, env)
            if model is not None:
                self._load("world_model", ModulePart(model))
                return model.eval()
        _, policy, planned = self._built
        # DreamerV3's policy holds its world model.
        inside = planned if planned is not None else getattr(policy, "world_model", None)
        if not isinstance(inside, WorldModel):
            return None
        _ = self._acting  # Loads the weights.
        return inside.eval()

    @cached_property
    def replay(self) -> Replay:
        """The replay at the checkpoint, without demonstrations: `transitions(B)`, `sequences(B, T)`, `steps(*keys)`.

        Its files are mapped privately, so that changes do not reach the run folder.
        """
        from mbrl.build import build_replay

        with closing(self._plain_env()) as env:
            replay = build_replay(self.config, self.folder / "replay", env, self._acting[1], read_only=True)
        self._load("replay", replay)
        return replay

    def imagine(
        self,
        rollouts: int = 8,
        horizon: int | None = None,
        *,
        context: TensorDictBase | None = None,
        actions: Tensor | None = None,
        seed: int = 0,
    ) -> TensorDict:
        """Roll the policy out in the world model.

        Args:
            rollouts: B, rollouts in parallel. With a context, B is that of the context.
            horizon: H, steps of each rollout, 1 to the world model's `max_horizon`; None for the smaller of 15 and
                that.
            context: real steps [B, T] to start from, oldest first, with T at least C and the frame stack: `action`
                float32 [B, T, A] and what the model starts from, `pixels` or `initial` uint8 [B, T, 3, R, R] or `state`
                float32 [B, T, S]. None draws real starts from the replay.
            actions: float32 [B, H, A] in [-1, 1], which replace the actions of the policy.
            seed: seed of the starts and of the sampling in the model.

        Returns:
            [B, H] on the CPU, in the layout of TorchRL's rollouts: the observations and `action` float32 [B, H, A] of
            each step; and under "next" the observations, `reward` float32 [B, H, 1] in the environment's units, and
            `truncated` that follow. Step 0 is the real state that the rollout starts from.

        Raises:
            UserError: the agent learns no world model, or the horizon or the context does not fit it.
        """
        import torch

        from mbrl.collecting.imagining import imagine, starts_from
        from mbrl.device import fork_rng

        if self.world_model is None:
            raise UserError(f"{self.folder} is a run of agent {self.config.agent.name!r}, which learns no world model")
        length = min(HORIZON, self.world_model.max_horizon) if horizon is None else horizon
        if actions is not None:
            length = actions.shape[1]
        policy, starts = self.policy, starts_from(self.replay, self.world_model) if context is None else context
        with closing(self._plain_env()) as env, fork_rng():
            torch.manual_seed(seed)
            return imagine(self.world_model, policy, env, starts, rollouts, length, actions)

    def evaluate(
        self, episodes: int | None = None, seed: int | None = None, video: str | Path | None = None
    ) -> Evaluation:
        """Play episodes on a fixed list of goals, without exploration.

        Args:
            episodes: number of episodes, of each task if the run has several; None for that of the run's evaluations.
            seed: seed of the list of goals; None for that of the run's evaluations.
            video: .mp4 or .gif file to write with the real frames of the first four episodes; None for no video.

        Returns:
            The outcome of each episode; `summary()` gives their means, with `success` as `eval.success` says.

        Raises:
            UserError: the video's name has another suffix.
        """
        from mbrl.build import env_factory
        from mbrl.collecting.evaluation import film
        from mbrl.collecting.run_evaluator import run_evaluator
        from mbrl.run_folder.videos import require_video_name

        if video is not None:
            require_video_name(Path(video))
        acting = self._acting[0]
        with closing(run_evaluator(self._whole_config, episodes, seed, values=False)) as evaluator:
            if video is not None:
                film(Path(video), env_factory(self.config, evaluation=True), evaluator, acting)
            return evaluator(acting)

    @cached_property
    def _built(self) -> tuple[Policy, Policy, WorldModel | None]:
        """The acting policy, the learning policy, and the world model of a planner, with random weights."""
        from mbrl.build import build_acting
        from mbrl.device import fork_rng

        with closing(self._plain_env()) as env, fork_rng():  # building seeds the global generator
            return build_acting(self.config, env)

    @cached_property
    def _acting(self) -> tuple[Policy, Policy, WorldModel | None]:
        """Those of `_built`, with the weights of the checkpoint."""
        from mbrl.run_folder.parts import ModulePart

        acting, policy, model = self._built
        self._load("policy", ModulePart(policy))
        if model is not None:
            self._load("world_model", ModulePart(model))
        return acting.eval(), policy, model

    def _plain_env(self) -> EnvBase:
        """The environment of training, which gives the specs."""
        from mbrl.build import env_factory

        return env_factory(self._whole_config)(seed=self.config.seed)

    @cached_property
    def _whole_config(self) -> DictConfig:
        """The settings, checked for building from them: the file may be cut off, or anyone's."""
        from mbrl.checks.train import check_written

        return check_written(self.config, self.folder)

    def _load(self, name: str, part: Part) -> None:
        """Load a part from the run's checkpoint.

        If no checkpoint was chosen, the newest complete one is, for this part and all later ones.

        Args:
            name: name of the part in checkpoints.
            part: receives the state.
        """
        from mbrl.run_folder.checkpoint import Checkpoints
        from mbrl.run_folder.paths import CHECKPOINTS

        checkpoints = Checkpoints(self.folder / CHECKPOINTS, {name: part})
        if self._checkpoint is not None:
            checkpoints.load(self._checkpoint)
        elif not checkpoints.load_latest():
            hint = f"train it first (mbrl train run_dir={self.folder})"
            raise FileNotFoundError(f"{self.folder} holds no checkpoint: {hint}")
        self._checkpoint = checkpoints.loaded
