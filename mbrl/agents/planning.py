"""Model-predictive control: a policy that plans in a world model.

B decisions in parallel, N candidates, M proposals, C context frames, K frame stack, H horizon, A action, R resolution.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded

from mbrl.agents.plan_following import PlanFollower
from mbrl.agents.plan_imagination import PlanImagination
from mbrl.data.episodes import INITIAL, initial_frames, read_episode, read_episodes
from mbrl.data.published import read_published
from mbrl.errors import UserError
from policies.base import Plan, Planner, Policy
from policies.ranges import Candidates, CandidatesOrZero, Horizon, PositiveShare
from worldmodel.base import WorldModel


class PlanningPolicy(Policy):
    """Acts by planning in a world model. The world model and the prior learn separately.

    Args:
        world_model: predicts the outcome of candidate plans.
        planner: searches for the best plan.
        prior: the policy whose proposals are among the candidates.
        observation_spec: has `frames` uint8 [3K, R, R], K >= C.
        action_spec: [A] in [-1, 1].
        gamma: discount of one agent step in the score of a plan, the sum of imagined rewards.
        replan_every: agent steps that a plan is followed before the next is made, 1 to the planner's horizon.
        proposals: M of the N candidates are rollouts of the prior, exploring, in the world model.
        samples: imagined rollouts per candidate; its score is their mean. Use 1 for a deterministic model.
        goal: an episode file, or a folder with one, whose last frame is the goal. A plan then scores minus the mean
            squared error between the goal and the last imagined frame, pixels in [0, 1]. None: it scores by rewards.
        terminal_value: whether to add gamma^H times the prior's critic value of the last imagined state to a score.

    Raises:
        UserError: settings do not fit together.
    """

    def __init__(
        self,
        world_model: WorldModel,
        planner: Planner,
        prior: Policy,
        *,
        observation_spec: Composite,
        action_spec: TensorSpec,
        gamma: PositiveShare,
        replan_every: Horizon = 1,
        proposals: CandidatesOrZero = 0,
        samples: Candidates = 1,
        goal: str | None = None,
        terminal_value: bool = False,
    ) -> None:
        super().__init__()
        check_model(world_model, planner, has_goal=goal is not None)
        frame_stack = check_specs(observation_spec, action_spec, world_model)
        tasks = ("task",) if "task" in world_model.observations else ()
        check_proposals(proposals, planner, prior)
        image = None if goal is None else goal_image(Path(goal), world_model.resolution)
        if terminal_value:
            check_values(observation_spec, action_spec, prior, has_goal=image is not None)
        self.uses_prior = terminal_value or proposals > 0
        acting, critics = prior.acting if proposals else None, prior if terminal_value else None
        imagination = PlanImagination(world_model, acting, critics, gamma, samples, image)
        self.horizon = planner.horizon
        self.actor: PlanningActor = PlanningActor(
            imagination,
            planner,
            actions=action_spec.shape[-1],
            beside={key: observation_spec[key] for key in (*tasks, *world_model.context_keys) if key != INITIAL},
            frame_stack=frame_stack,
            replan_every=replan_every,
            proposals=proposals,
        )
        self.carried: Composite = Composite({key: spec.clone() for key, spec in self.actor.memory.items()})
        self.actor.to(self.device)  # the goal follows the world model
        # Plan once on zeros, to fail early if the model does not fit. Zeros are a valid frame but no valid snapshot.
        if set(world_model.context_keys) <= {INITIAL}:
            self.actor.plan(self.actor.blank().to(self.device))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Does nothing: the world model and the prior have updates of their own."""
        return {}

    def recall(self, history: TensorDictBase) -> TensorDict:
        """As Policy.recall, from `action` (T is C or more) and `initial`; the next step makes a plan."""
        memory = self.carried.expand(len(history)).zero()
        memory["past_actions"][:, 1:] = history["action"][:, -self.actor.context_length : -1]
        if self.actor.keeps_initial and INITIAL in history.keys():
            memory[INITIAL] = history[INITIAL][:, 0]
        return memory.to(self.device)


class PlanningActor(PlanFollower):
    """The actor of a `PlanningPolicy`.

    It reads `frames` and the further inputs of the world model (one-hot `task`, `snapshot`). It also remembers
    `past_actions` [C, A], the newest last, and for a world model that starts from it `initial` [3, R, R], the first
    frame of the episode.
    """

    def __init__(
        self,
        imagination: PlanImagination,
        planner: Planner,
        *,
        actions: int,
        beside: dict[str, TensorSpec],
        frame_stack: int,
        replan_every: int,
        proposals: int,
    ) -> None:
        side = imagination.world_model.resolution
        context_length = imagination.world_model.context_length
        observed: dict[str, TensorSpec] = {"frames": Unbounded((3 * frame_stack, side, side), dtype=torch.uint8)}
        further: dict[str, TensorSpec] = {"past_actions": Unbounded((context_length, actions))}
        self.keeps_initial = INITIAL in imagination.world_model.context_keys
        if self.keeps_initial:
            observed["is_init"] = Binary(shape=(1,), dtype=torch.bool)
            further[INITIAL] = Unbounded((3, side, side), dtype=torch.uint8)
        super().__init__(
            observed | {key: spec.clone() for key, spec in beside.items()},
            horizon=planner.horizon,
            actions=actions,
            replan_every=replan_every,
            further=further,
        )
        self.imagination, self.planner, self.context_length = imagination, planner, context_length
        self.proposals, self.frame_stack, self.beside = proposals, frame_stack, tuple(beside)

    def blank(self) -> TensorDict:
        """The input at the start of an episode, one row, with black frames."""
        read = {**self.observed, **self.memory}
        return TensorDict({key: spec.zero()[None] for key, spec in read.items()}, batch_size=[1])

    def remember(self, rows: TensorDictBase, action: Tensor) -> dict[str, Tensor]:
        remembered = {"past_actions": torch.cat([rows["past_actions"][:, 1:], action[:, None]], 1)}
        return remembered | ({INITIAL: self._initial(rows)} if self.keeps_initial else {})

    def _initial(self, rows: TensorDictBase) -> Tensor:
        """The first frame of each row's episode, uint8 [B, 3, R, R]."""
        return initial_frames(rows["frames"][:, -3:], rows[INITIAL], rows["is_init"])

    def plan(self, rows: TensorDictBase) -> Plan:
        """Plan for the rows [B]. The context is encoded once; each iteration of the search forks it."""
        observed = rows.select(*self.observed)
        pixels = rows["frames"].unflatten(1, (self.frame_stack, 3))[:, -self.context_length :]  # [B, C, 3, R, R]
        # Past action c leads to frame c + 1; the last action is the one that is planned now.
        actions = torch.cat([rows["past_actions"][:, 1:], torch.zeros_like(rows["past_actions"][:, :1])], 1)
        context = TensorDict(pixels=pixels, action=actions, batch_size=pixels.shape[:2])
        for key in self.beside:
            context[key] = observed[key][:, None].expand(*context.batch_size, -1)
        if self.keeps_initial:
            context[INITIAL] = self._initial(rows)[:, None].expand_as(pixels)
        state = self.imagination.start(context)
        proposals = None
        if self.proposals:
            proposals = self.imagination.propose(state, observed, self.proposals, self.planner.horizon)
        return self.planner(self.imagination.scorer(state, observed), rows["plan_mean"], proposals)


def check_model(world_model: WorldModel, planner: Planner, has_goal: bool) -> None:
    """Check that the planner can use the world model; raise UserError if it cannot."""
    if "state" in world_model.observations or "pixels" not in world_model.observations:
        predicted = ", ".join(world_model.observations)
        raise UserError(f"planning needs a world model that predicts pixels, and this one predicts {predicted}")
    if not 1 <= planner.horizon <= world_model.max_horizon:
        raise UserError(
            f"agent.planner.horizon {planner.horizon}: this world model can predict 1 to {world_model.max_horizon} "
            "steps (raise agent.world_model.horizon, or lengthen the segments that it is trained on)"
        )
    if world_model.action_dim == 0:
        raise UserError("this world model does not read actions: set agent.world_model.conditioning.actions=true")
    if not (world_model.predicts_reward or has_goal):
        raise UserError("this world model predicts no rewards: set agent.planning.goal=EPISODE (it ends at the goal)")
    if world_model.goal_conditioned and not has_goal:
        raise UserError("this world model needs a goal frame: set agent.planning.goal=EPISODE (it ends at the goal)")


def check_specs(observation_spec: Composite, action_spec: TensorSpec, world_model: WorldModel) -> int:
    """The frame stack K; raises UserError if the environment lacks what planning needs."""
    if "frames" not in list(observation_spec.keys()):
        raise UserError("planning needs frames, and this environment has none: set env.pixels=true")
    frame_stack = observation_spec["frames"].shape[-3] // 3
    if frame_stack < world_model.context_length:
        raise UserError(
            f"env.frame_stack is {frame_stack}, but the world model needs {world_model.context_length} frames to start "
            f"from: set env.frame_stack={world_model.context_length} or more"
        )
    space = action_spec.space
    if not hasattr(space, "low") or not bool((space.low == -1).all() and (space.high == 1).all()):
        raise UserError(f"planning needs continuous actions in [-1, 1], not {action_spec}")
    return int(frame_stack)


def check_proposals(proposals: int, planner: Planner, prior: Policy) -> None:
    """Check that the prior can make this number of proposals; raise UserError if it cannot."""
    if not 0 <= proposals <= planner.candidates:
        raise UserError(f"planning.proposals ({proposals}) must be 0 to planner.candidates ({planner.candidates})")
    if proposals and not reads_frames(prior):
        raise UserError(
            f"agent.planning.proposals ({proposals}) need a prior that acts on frames alone, such as "
            "+policy@agent.policy=drqv2_cpu"
        )


def reads_frames(policy: Policy) -> bool:
    """Whether the actor reads only `frames` (and `task`), which a rollout of the world model provides."""
    return set(policy.actor.in_keys) - {"task"} == {"frames"}


def check_values(observation_spec: Composite, action_spec: TensorSpec, prior: Policy, has_goal: bool) -> None:
    """Check that plans can end with a value of the prior's critics; raise UserError if they cannot."""
    if has_goal:
        raise UserError("agent.planning.terminal_value needs plans scored by rewards: set agent.planning.goal=null")
    blank = observation_spec.zero()[None].to(prior.device)
    if not reads_frames(prior) or prior.values(blank, action_spec.zero()[None].to(prior.device)) is None:
        raise UserError(
            "agent.planning.terminal_value needs a prior that acts on frames alone and has Q-functions, and "
            f"{type(prior).__name__} has none: give +policy@agent.policy=drqv2_cpu agent.updates_per_step=0.5"
        )


def goal_image(path: Path, resolution: int) -> Tensor:
    """The last frame uint8 [3, R, R] of an episode file, or of the first one in a folder.

    Raises:
        FileNotFoundError: there is no episode.
        UserError: it has no frames, or frames of another size.
    """
    if path.is_file():
        episode: TensorDictBase = read_published(path) if path.suffix == ".npz" else read_episode(path)
    else:
        episode = read_episodes(path)[0]
    if "pixels" not in episode.keys():
        raise UserError(f"agent.planning.goal: the episode in {path} has no pixels: give one recorded with pixels")
    image: Tensor = episode["pixels"][-1]
    if image.shape[-1] != resolution:
        raise UserError(
            f"agent.planning.goal: frames in {path} are {image.shape[-1]} pixels wide, the world model's {resolution}"
        )
    return image
