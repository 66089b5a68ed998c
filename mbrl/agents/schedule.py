"""Schedule: update rates and batch sizes of the parts of an agent."""

from __future__ import annotations

from dataclasses import dataclass, fields

from omegaconf import DictConfig, OmegaConf

from mbrl.errors import UserError
from policies.ranges import Count, Horizon, PositiveCount, Ratio, Share


@dataclass(frozen=True)
class Schedule:
    """The rates of an agent, counted per agent step.

    Args:
        batch_size: transitions of a policy update, or rollouts or segments for a policy that learns from those.
        updates_per_step: policy updates per agent step (the update ratio).
        learning_starts: agent steps with random actions before the first update.
        real_ratio: share of real transitions in a batch, in [0, 1]. With 1 the agent is model-free: no world model is
            built, trained or rolled out. With 0 the policy learns from imagination alone.
        model_batch_size: B, segments of a world-model update.
        segment_length: T, records of each segment.
        model_updates_first: world-model updates before the first imagination.
        model_updates_per_step: world-model updates per agent step after that.
        model_recent: share of a batch of the world model that is drawn from the newest tenth of the episodes, after the
            first updates.
        reward_updates: gradient steps on the rewards alone (128 transitions each) before each call of imagination;
            for a planner after each collector batch. Half of each batch is drawn from the newest tenth of the episodes.
        model_fit_every: agent steps between two fits of a world model that is fitted to all real steps. A fit takes at
            most the updates that are due by the two arguments above.
        imagine_every: agent steps between two calls of imagination.

    Raises:
        UserError: the ratio leaves the real or the imagined part of a batch empty.
    """

    batch_size: PositiveCount
    updates_per_step: Ratio
    learning_starts: Count
    real_ratio: Share = 1.0
    model_batch_size: PositiveCount = 16
    segment_length: Horizon = 12
    model_updates_first: Count = 0
    model_updates_per_step: Ratio = 0.0
    model_recent: Share = 0.0
    reward_updates: Count = 0
    model_fit_every: Count = 0
    imagine_every: PositiveCount = 100

    def __post_init__(self) -> None:
        ratio, real = self.real_ratio, self.real
        if (ratio < 1 and real == self.batch_size) or (ratio > 0 and real == 0):
            raise UserError(
                f"agent.real_ratio {ratio} of batch_size {self.batch_size} leaves {real} real transitions: "
                "give a ratio that leaves each part at least one, or 0 or 1"
            )

    @property
    def real(self) -> int:
        """Real transitions of a batch."""
        return round(self.batch_size * self.real_ratio)

    @property
    def imagines(self) -> bool:
        """Whether the policy learns from imagination."""
        return self.real_ratio < 1

    def imaginations(self, steps: int) -> int:
        """Calls of imagination that are due within `steps` agent steps after learning has started."""
        return steps // self.imagine_every + 1 if self.imagines else 0


RATES = tuple(field.name for field in fields(Schedule))


def build_schedule(config: DictConfig) -> Schedule:
    """The schedule of the agent.

    Raises:
        UserError: settings do not fit together.
    """
    return Schedule(**{name: config.agent[name] for name in RATES if name in config.agent})


def learns_model(config: DictConfig) -> bool:
    """Whether a world model is trained, for imagination, a planner, or a policy that reads its embeddings."""
    read = OmegaConf.select(config, "agent.policy.embedding_size")
    return build_schedule(config).imagines or config.agent.get("planner") is not None or bool(read)


def segment_records(config: DictConfig) -> int:
    """Length of the segments that a world model is trained on; 0 if none is, or if it learns from single steps."""
    from_segments = learns_model(config) and "segment_length" in config.agent
    return build_schedule(config).segment_length if from_segments else 0
