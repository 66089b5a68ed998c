"""One update, rollout or plan of each part in miniature, on any device: what `tests/test_device.py` counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from mbrl.agents import planning
from mbrl.agents.imagination import Imagination
from mbrl.agents.learners import Learner, TransitionLearner
from mbrl.agents.model_error import ModelError
from mbrl.agents.schedule import Schedule
from mbrl.bench import dreamer
from mbrl.bench.replay import fields_of
from mbrl.compose import CONFIGS
from mbrl.prediction.held_out import draw_segments
from mbrl.prediction.scores import MetricModels, RolloutPlan, score
from mbrl.pretraining.phase import Phase
from mbrl.replay.mirror import Placement
from mbrl.replay.replay import Replay
from mbrl.targets import make
from policies.actor_critic import ActorCritic
from policies.base import Policy
from policies.bc import BehaviourCloning
from policies.drqv2 import DrQV2
from policies.planner import CEM
from policies.sac import SAC
from policies.value_base import ValuePolicy
from tests.worldmodel.ensemble import test_ensemble as ensembles
from tests.worldmodel.ivideogpt import test_model as ivideogpt

Part = Callable[[], object]
ACTION, SIDE, STATE = ivideogpt.ACTION, ivideogpt.SIDE, 4
ACTIONS = Bounded(-1.0, 1.0, (ACTION,))
FRAMES = Composite(frames=Bounded(0, 255, (9, SIDE, SIDE), dtype=torch.uint8))
NUMBERS = Composite(state=Unbounded((STATE,)))
NETWORKS = {"encoder_channels": (8,), "encoder_strides": (2,), "kernel_size": 3, "hidden_size": 16}


def transitions(spec: Composite, rows: int = 6) -> TensorDict:
    """Random transitions [B], half of them imagined, with demonstrations among them."""
    after = spec.expand(rows).rand().update({"reward": torch.rand(rows, 1), "terminated": torch.zeros(rows, 1).bool()})
    batch = spec.expand(rows).rand().update({"action": torch.rand(rows, ACTION) * 2 - 1, "next": after})
    half = torch.arange(rows)[:, None] % 2
    return batch.update({"gamma": torch.full((rows, 1), 0.9), "cloning": half.float(), "imagined": half.bool()})


def rollouts(rows: int = 4, horizon: int = 3) -> TensorDict:
    """Random rollouts [B, H + 1] of an actor-critic from states."""
    shape = (rows, horizon + 1)
    flags = torch.zeros(*shape, 1, dtype=torch.bool)
    after = TensorDict(reward=torch.rand(*shape, 1), terminated=flags, batch_size=shape)
    numbers = {"action": torch.rand(*shape, ACTION) * 1.8 - 0.9, "action_log_prob": torch.zeros(*shape, 1)}
    return TensorDict(**numbers, state=torch.randn(*shape, STATE), next=after, batch_size=shape)


def learning(verb: str, make: Callable[..., Policy], spec: Composite, device: torch.device) -> Part:
    """One call of a verb of a policy on a batch that is on the device; one with Q-functions keeps a clone."""
    policy = make(spec, ACTIONS)
    if isinstance(policy, ValuePolicy):
        policy.keep_clone()
    policy.to(device)
    batch = transitions(spec) if policy.learns_from == "transitions" or verb == "clone" else rollouts()
    return partial(getattr(policy, verb), batch.to(device))


drqv2 = partial(DrQV2, feature_size=8, **NETWORKS)
imitator = partial(BehaviourCloning, feature_size=8, learning_rate=1e-3, shift_pad=2, **NETWORKS)
actor_critic = partial(
    ActorCritic, observation="state", hidden_size=16, calibrate_critic=True, centre_advantages=True, gamma=0.9
)


def episodes(count: int = 2, steps: int = 11) -> TensorDict:
    """Records of episodes [N, T] with random frames and states."""
    shape = (count, steps)
    flags = torch.zeros(*shape, 1, dtype=torch.bool)
    return TensorDict(
        pixels=torch.randint(0, 256, (*shape, 3, SIDE, SIDE), dtype=torch.uint8),
        state=torch.randn(*shape, STATE), action=torch.rand(*shape, ACTION) * 2 - 1, reward=torch.rand(*shape, 1),
        success=flags, terminated=flags.clone(), truncated=flags.clone(), batch_size=shape,
    )  # fmt: skip


def filled_replay(run_device: torch.device, frame_stack: int = 1, placement: Placement = "auto") -> Replay:
    """Two such episodes, of which batches for this device are drawn."""
    records = episodes()
    options = {"fields": fields_of(records), "device": placement, "run_device": run_device}
    replay = Replay(records.numel(), frame_stack=frame_stack, **options)
    replay.online.extend(records)
    return replay


def world_model(device: torch.device, **options: Any) -> Any:
    """iVideoGPT past the warm-up of its codebooks."""
    model = ivideogpt.make(precision="float32", **options)
    for quantizer in (model.tokenizer.quantize, model.tokenizer.dynamics_quantize):
        quantizer.seen.fill_(quantizer.warmup) if quantizer.warmup else None
    return model.to(device)


def training(part: str, device: torch.device) -> Part:
    """One step of the tokenizer or of the transformer."""
    first = 10**6 if part == "tokenizer" else 0
    return partial(world_model(device, tokenizer_updates=first).update, ivideogpt.sequences().to(device))


def drawing(placement: Placement, device: torch.device) -> Part:
    """One update of DrQ-v2, with sampling."""
    learner = TransitionLearner(
        drqv2(FRAMES, ACTIONS).to(device), None, Schedule(batch_size=6, updates_per_step=1, learning_starts=0)
    )
    return partial(learner.update, filled_replay(device, 3, placement), 0.0)


def imagining(device: torch.device) -> Part:
    """Rollouts of a policy from pixels, kept for it to learn from."""
    policy = drqv2(FRAMES, ACTIONS).to(device)
    model, replay = world_model(device), filled_replay(device, frame_stack=3)
    settings: dict[str, Any] = {"resolution": SIDE, "rollouts": 2, "horizon": 2, "retain": 1}
    return Imagination(model, policy, replay, action_spec=ACTIONS, **settings, noise=0.1).run


def measuring_error(device: torch.device) -> Part:
    """The error of a model on an episode that has just ended."""
    measure = ModelError(
        world_model(device), None, gamma=0.9, episode_env_steps=10, every=1, starts=2, horizon=2, plans=2
    )
    return partial(measure, episodes(1)[0])


def imagining_states(device: torch.device) -> Part:
    """Rollouts of SAC in an ensemble."""
    policy = SAC(NUMBERS, ACTIONS).to(device)
    model, settings = ensembles.make().to(device), {"rollouts": 2, "horizon": 2, "retain": 1}
    rules: dict[str, Any] = {"cut_above": {"disagreement": 9.0}, "weigh_by": {"reward_std": 1.0}}
    return Imagination(model, policy, filled_replay(device), action_spec=ACTIONS, **settings, **rules).run


def fitting(device: torch.device) -> Part:
    """A fit of an ensemble: ten gradient steps, two checks."""
    return partial(ensembles.make(check_every=5).to(device).fit, ensembles.system(200).to(device), 10)


def plan(goal: bool, device: torch.device) -> Part:
    """A plan by rewards, or towards a goal frame, with proposals of a prior."""
    search = CEM(horizon=2, candidates=4, elites=2, iterations=2)
    prior = drqv2(FRAMES, ACTIONS).to(device)
    specs: dict[str, Any] = {"observation_spec": FRAMES, "action_spec": ACTIONS}
    model = world_model(device)
    policy = planning.PlanningPolicy(
        model, search, prior, **specs, gamma=0.9, proposals=1, goal="goal.npz" if goal else None
    ).to(device)
    rows = policy.actor.blank().to(device)
    return partial(policy.actor, rows)


def dreamer_and_replay(key: str, device: torch.device, captured: bool = True) -> tuple[Learner, Replay]:
    """DreamerV3's learner, small, and what it learns from."""
    config = dreamer.compose_for(key)
    config.agent.update({"batch_size": 2, "segment_length": 4, "horizon": 3})
    config.agent.policy.update({"cuda_graphs": captured})
    config.agent.policy.world_model.units = 32
    spec = Bounded(0, 255, (3, SIDE, SIDE), dtype=torch.uint8) if key == "pixels" else Unbounded((STATE,))
    return dreamer.learner_and_replay(config, Composite({key: spec}), device)


def dreaming(key: str, device: torch.device) -> Part:
    """One update of DreamerV3, with sampling."""
    learner, replay = dreamer_and_replay(key, device)
    return lambda: learner.update(replay, 0.0)


def latent_planner() -> Policy:
    """TD-MPC2 from state, small."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train", ["agent=tdmpc2"])
    config.agent.policy.world_model.update({"latent_size": 16, "width": 16, "encoder_width": 16})
    specs = {"observation_spec": NUMBERS, "action_spec": ACTIONS}
    return make(config.agent.policy, Policy, place="agent.policy", **specs)


def planning_ahead(verb: str, device: torch.device) -> Part:
    """One update of TD-MPC2 on segments on the device, or one of its plans."""
    policy = latent_planner().to(device)
    if verb == "update":
        return partial(policy.update, filled_replay(device).sequences(3, 4))
    memory = {key: spec.zero()[None] for key, spec in policy.actor.memory.items()}
    step = TensorDict({"state": torch.randn(1, STATE), **memory}, batch_size=[1]).to(device)
    return lambda: policy.actor(step.clone())


def pretraining(part: str, device: torch.device) -> Part:
    """One step of a phase of pretraining; `Accelerator.device` must be the device."""
    options: dict[str, Any] = {"steps": 99, "warmup": 2, "final_learning_rate_share": 0.1, "clip_norm": 1.0}
    accelerator = Accelerator(cpu=True)
    model = world_model(device)
    phase = Phase(part, model, accelerator, Path(os.devnull), seed=0, accumulate=1, ema_decay=0.9, **options)
    batch = ivideogpt.sequences().to(device)
    return lambda: phase.take_step(iter([batch]))


def predicting(device: torch.device) -> Part:
    """Scores of imagined segments."""
    model = world_model(device)
    drawn = draw_segments([episodes(1)[0]], context=model.context_length, horizon=3, count=2, seed=0)
    metrics = MetricModels(lpips=None, i3d=None, probes=(), threshold=None, success_bonus=0.0)
    return partial(score, model, drawn, metrics, RolloutPlan(2, 2, 0, uses_actions=True))


PARTS: dict[str, Callable[[torch.device], Part]] = {
    "SAC: update": partial(learning, "update", SAC, NUMBERS),
    "SAC: imitation": partial(learning, "clone", SAC, NUMBERS),
    "SAC: critics alone": partial(learning, "calibrate", SAC, NUMBERS),
    "SAC: its clone": partial(learning, "cloned_action", SAC, NUMBERS),
    "DrQ-v2: update": partial(learning, "update", drqv2, FRAMES),
    "DrQ-v2: imitation": partial(learning, "clone", drqv2, FRAMES),
    "DrQ-v2: critics alone": partial(learning, "calibrate", drqv2, FRAMES),
    "DrQ-v2: its clone": partial(learning, "cloned_action", drqv2, FRAMES),
    "DrQ-v2: update, with sampling": partial(drawing, "cuda"),
    "DrQ-v2: update, with sampling on the CPU": partial(drawing, "cpu"),
    "actor-critic: update": partial(learning, "update", actor_critic, NUMBERS),
    "actor-critic: imitation": partial(learning, "clone", actor_critic, NUMBERS),
    "cloning from state": partial(learning, "clone", imitator, NUMBERS),
    "cloning from pixels": partial(learning, "clone", imitator, FRAMES),
    "DreamerV3 from state: update, with sampling": partial(dreaming, "state"),
    "DreamerV3 from pixels: update, with sampling": partial(dreaming, "pixels"),
    "TD-MPC2 from state: update": partial(planning_ahead, "update"),
    "TD-MPC2 from state: a plan": partial(planning_ahead, "plan"),
    "ensemble: fit of 10 updates": fitting,
    "ensemble: 2 rollouts of 2 steps, cut and weighed": imagining_states,
    "iVideoGPT: tokenizer step": partial(training, "tokenizer"),
    "iVideoGPT: transformer step": partial(training, "transformer"),
    "iVideoGPT: 2 rollouts of 2 steps": imagining,
    "iVideoGPT: error on an episode": measuring_error,
    "a plan by rewards": partial(plan, False),
    "a plan towards a goal": partial(plan, True),
    "pretraining: tokenizer step": partial(pretraining, "tokenizer"),
    "pretraining: transformer step": partial(pretraining, "transformer"),
    "prediction: 2 segments, scored": predicting,
}
