"""A policy that reads a world model's embeddings: what the replay notes, what it acts on, and what is refused."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mbrl.agents.embedding import EmbeddingPolicy
from mbrl.build import build_agent, build_policy, build_replay, env_factory
from mbrl.collecting.acting import Acting
from mbrl.collecting.evaluation import Evaluator
from mbrl.collecting.imagining import imagine, starts_from
from mbrl.compose import composed
from mbrl.data.episodes import to_records, with_initial
from mbrl.errors import UserError

SMALL = [
    "experiment=smoke", "agent=mbpo_ivideogpt_embedding", "env=toy", "seed=3", "agent.model_error=null",
    "agent.world_model.segment_length=6", "agent.imagination.horizon=3", "agent.imagination.n_step=3",
]  # fmt: skip


def config(*overrides: str) -> DictConfig:
    return composed([*SMALL, *overrides])


def parts(*overrides: str) -> tuple[Any, Any, Any]:
    """An agent, its empty replay and its environment."""
    settings = config(*overrides)
    env = env_factory(settings)(seed=0)
    policy = build_policy(settings, env)
    replay = build_replay(settings, None, env, policy)
    return build_agent(settings, env, policy, replay), replay, env


def episode(length: int = 20) -> TensorDict:
    """Records of an episode of random frames."""
    flags = {name: torch.zeros(length, 1, dtype=torch.bool) for name in ("success", "terminated", "truncated")}
    pixels = torch.randint(0, 256, (length + 1, 3, 64, 64), dtype=torch.uint8)
    rollout = TensorDict(
        pixels=pixels[:-1],
        action=torch.rand(length, 2) * 2 - 1,
        next=TensorDict(pixels=pixels[1:], reward=torch.rand(length, 1), **flags, batch_size=[length]),
        batch_size=[length],
    )
    return to_records(rollout)


def test_transitions_have_the_embeddings_of_their_frames_and_no_frames() -> None:
    agent, replay, _ = parts()
    for _ in range(2):
        replay.online.extend(episode()[None])
    observer = agent.observer
    assert isinstance(observer, EmbeddingPolicy) and agent.acting_policy is observer
    observer.store_embeddings(replay)
    batch = replay.transitions(16)
    assert "frames" not in batch.keys() and batch["embedding"].shape == batch["next", "embedding"].shape == (16, 256)
    records = replay.online.records
    pixels = torch.cat([records["pixels"][:21][None], records["pixels"][21:42][None]])
    latents = observer.model.latents(pixels, pixels[:, 0])
    before = torch.cat([latents[:, :1], latents[:, :-1]], 1)
    known = torch.cat([latents, before], -1).flatten(0, 1)
    apart = (batch["embedding"][:, None] - known).abs().amax(-1).amin(1)
    torch.testing.assert_close(apart, torch.zeros(16), atol=1e-3, rtol=0)


def test_embeddings_are_noted_once_an_episode_and_anew_while_the_encoders_learn() -> None:
    agent, replay, _ = parts()
    replay.add_demos([episode(9)])
    seen: list[int] = []
    agent.observer._embeddings = lambda records, first: (seen.append(len(records)), TensorDict(
        embedding=torch.zeros(len(records) - first, 256), batch_size=[len(records) - first]))[1]  # fmt: skip
    for _ in range(2):
        replay.online.extend(episode()[None])
        agent.observer.store_embeddings(replay)
        agent.observer.store_embeddings(replay)
    assert seen == [21, 10, 21, 21, 10], "the first and the demonstration again, as their codes may have changed"
    agent.world_model.updates.fill_(7)  # tokenizer_updates + tokenizer_last
    replay.online.extend(episode()[None])
    agent.observer.store_embeddings(replay)
    replay.online.extend(episode()[None])
    agent.observer.store_embeddings(replay)
    assert seen[5:] == [21, 21, 21, 10, 21], "the encoders learn no more after the third"


def test_embeddings_of_an_episode_that_grows_are_those_of_the_whole_one() -> None:
    agent, replay, _ = parts()
    agent.world_model.updates.fill_(7)  # the encoders learn no more
    replay.online.extend(episode(4)[None])
    whole = episode()
    for begin, end in ((0, 3), (3, 4), (4, 20)):
        replay.online.grow(whole[begin : end + 1])
        agent.observer.store_embeddings(replay)
    noted = replay.online.latents.values["embedding"][5:26]
    latents = agent.observer.model.latents(whole["pixels"][None], whole["pixels"][:1])[0]
    before = torch.cat([latents[:1], latents[:-1]])
    torch.testing.assert_close(noted, torch.cat([latents, before], -1), atol=1e-3, rtol=1e-3)


def test_a_run_that_goes_on_has_forgotten_the_episode_that_was_under_way() -> None:
    agent, replay, _ = parts()
    agent.world_model.updates.fill_(7)
    replay.online.extend(episode(4)[None])
    replay.online.grow(episode(6))
    agent.observer.store_embeddings(replay)
    saved, noted = replay.state_dict(), agent.state_dict()
    other, again, _ = parts()
    other.world_model.updates.fill_(7)
    again.load_state_dict(saved)
    other.load_state_dict(noted)
    another = episode(6)
    again.online.grow(another)
    other.observer.store_embeddings(again)
    latents = other.observer.model.latents(another["pixels"][None], another["pixels"][:1])[0]
    torch.testing.assert_close(again.online.latents.values["embedding"][5:12, :128], latents, atol=1e-3, rtol=1e-3)


def test_rewards_learn_from_the_steps_of_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding, action and reward of record n are n; the second half of an embedding is of the frame before."""
    agent, replay, _ = parts()
    number = torch.arange(21.0)[:, None]
    for _ in range(2):
        records = episode()
        replay.online.extend(records.update({"action": number.expand(21, 2), "reward": number})[None])
    replay.online.records["terminated"][[19, 40]] = True
    size = agent.observer.model.frame_size
    newest, before = number.repeat(2, 1).expand(42, size), torch.full((42, size), -1.0)
    embeddings = TensorDict(embedding=torch.cat([newest, before], 1), batch_size=[42])
    replay.online.latents.write(torch.arange(42), embeddings)
    network = agent.world_model.reward_network
    for name in ("logits", "loss"):
        monkeypatch.setattr(network, name, Mock(wraps=getattr(network, name)))
    weights = [parameter.clone() for parameter in network.parameters()]
    agent.observer.learn_rewards(replay)
    (before, after, action), (_, reward, ended) = network.logits.call_args.args, network.loss.call_args.args
    assert len(reward.unique()) > 10
    assert (before == reward).all() and (after == reward + 1).all() and (action == reward).all()
    assert torch.equal(ended, reward == 19)
    assert any(not torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


def test_acting_reads_what_the_replay_notes() -> None:
    """The actor sees the same embeddings in an episode as a batch of its records has."""
    agent, _, _ = parts()
    seen: list[torch.Tensor] = []
    agent.policy.actor.register_forward_pre_hook(lambda module, given: seen.append(given[0]["embedding"].clone()))
    evaluator = Evaluator(env_factory(config(), evaluation=True), episodes=1, max_steps=4, seed=0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        pixels = evaluator.play(agent.acting_policy, 0)["pixels"]
    latents = agent.observer.model.latents(pixels[None], pixels[:1])[0]
    before = torch.cat([latents[:1], latents[:-1]])
    torch.testing.assert_close(torch.cat(seen), torch.cat([latents, before], -1), atol=1e-3, rtol=1e-3)


def test_a_rollout_from_the_middle_of_an_episode_is_seen_in_the_context_of_its_first_frame() -> None:
    agent, replay, env = parts()
    replay.online.extend(episode()[None])
    seen: list[torch.Tensor] = []
    agent.policy.actor.register_forward_pre_hook(lambda module, given: seen.append(given[0]["embedding"].clone()))
    model = agent.world_model.eval()
    acting = Acting(agent.observer, env.observation_spec)
    rollout = imagine(model, acting, env, starts_from(replay, model), 6, 2)
    pixels = replay.online.records["pixels"][:21]
    latents = agent.observer.model.latents(pixels[None], pixels[:1])[0]
    starts = (pixels == rollout["pixels"][:, :1]).flatten(2).all(-1).int().argmax(1)
    before = (starts - 1).clamp(min=0)
    assert len(starts.unique()) > 1
    torch.testing.assert_close(seen[0], torch.cat([latents[starts], latents[before]], -1), atol=1e-3, rtol=1e-3)
    assert not {"initial", "before"} & set(rollout.keys(True, True))


def test_it_takes_over_in_the_middle_of_an_episode() -> None:
    """As in mbrl play, where it acts in turn with a person."""
    agent, _, env = parts()
    seen: list[torch.Tensor] = []
    agent.policy.actor.register_forward_pre_hook(lambda module, given: seen.append(given[0]["embedding"].clone()))
    acting, steps = Acting(agent.observer, env.observation_spec), with_initial(episode())
    acting.recall(steps.select("pixels", "initial")[4:6])
    for step in (5, 6):
        assert acting({"pixels": steps["pixels"][step]}).shape == (2,)
    latents = agent.observer.model.latents(steps["pixels"][None], steps["pixels"][:1])[0]
    expected = torch.cat([latents[5:7], latents[4:6]], -1)
    torch.testing.assert_close(torch.stack(seen).reshape(2, -1), expected, atol=1e-3, rtol=1e-3)


def test_after_random_actions_the_first_frame_that_it_sees_stands_for_the_initial_one() -> None:
    agent, _, _ = parts()
    seen: list[torch.Tensor] = []
    agent.policy.actor.register_forward_pre_hook(lambda module, given: seen.append(given[0]["embedding"].clone()))
    pixels, carried = episode()["pixels"][4:6], agent.observer.carried.zero()
    for frame in pixels:
        rows = TensorDict(pixels=frame, is_init=torch.zeros(1, dtype=torch.bool), **carried)
        carried = agent.observer.actor(rows)["next"].select("initial", "before")
    latents = agent.observer.model.latents(pixels[None], pixels[:1])[0]
    expected = torch.stack([torch.cat([latents[0], latents[0]]), torch.cat([latents[1], latents[0]])])
    torch.testing.assert_close(torch.stack(seen).reshape(2, -1), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["agent.policy.embedding_size=512"], "set agent.policy.embedding_size=256"),
        (["agent.world_model.conditioning.initial=false", "agent.world_model.reward_network=null",
          "agent.world_model.transformer.parallel=false"], r"set agent\.world_model\.conditioning\.initial=true"),
        (["reward_network@agent.world_model.reward_network=frames"], r"choose reward_network@.*=tokens, or .*=null"),
        (["agent.world_model=null"], "no world model that embeds frames"),
        (["agent.cloning.updates=5"], r"reads embeddings imitates no demonstrations: set agent\.cloning\.updates=0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parts(*overrides)
