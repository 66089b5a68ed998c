"""A probabilistic ensemble that predicts the next state and the reward.

Dimensions: N transitions, B rows, M members, E elites, D state width, A action width. Sources: PETS, Chua et al. 2018,
arXiv 1805.12114; MBPO, Janner et al. 2019, arXiv 1906.08253.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from worldmodel.base import WorldModel
from worldmodel.ensemble.continue_head import ContinueHead
from worldmodel.ensemble.members import Gaussian, Members
from worldmodel.ensemble.transitions import NOT_COPIED, Data, Whitener, bootstrap, copies, held_out
from worldmodel.finite import require_finite
from worldmodel.ranges import Number, OpenShare, PositiveCount, Share, Width

FARTHEST = 5.0  # Inputs are clipped to this many standard deviations of the data from their mean.
UNCERTAINTY_KEYS = ("disagreement", "reward_std")
MAX_HELD_OUT = 2000  # Held-out transitions that evaluate the members. More take time without a better estimate.


class ProbabilisticEnsemble(WorldModel):
    """M Gaussian networks, each trained on its own bootstrap of the data. The best E of them imagine.

    Every imagined step draws one elite for each row (as MBPO does), in equal numbers. The reward is the mean of that
    elite, because a critic needs only the expectation. An entry of the next state that equals an entry of the state
    before it in all data so far is copied: a goal, and the previous frame in Meta-World without action repeat. (With
    action repeat the previous frame shows the moment between two agent steps, and is predicted.)

    Args:
        observation_spec: Has `state` [D].
        action_spec: Spec of actions [A].
        optimizer: Called with the parameters.
        members: M, networks.
        elites: E, networks that imagine, 1 to M: those with the least error on held-out data.
        width: Width of the hidden layers.
        layers: Number of hidden layers.
        residual: Whether to predict the change of the state instead of the next state.
        sampled: Whether to imagine a sample of the Gaussian, as MBPO does, instead of its mean.
        batch_size: Transitions of a gradient step, for each member.
        recent_share: Share of each batch that is drawn from the newest tenth of the transitions, in [0, 1]. The rest is
            drawn from all. A recent discovery of the policy is a few rows among thousands.
        holdout: Share of the transitions that is never trained on, in (0, 1).
        check_every: Gradient steps between two evaluations on held-out data.
        patience: Evaluations without improvement of any member that end a fit.
        terminates: Whether the environment terminates episodes. One more network, the continue head, then learns when.

    Raises:
        ValueError: A share or a number of elites is out of range, or the environment has no `state`.
    """

    context_length, observations, fits = 1, ("state",), True
    max_horizon = 1000
    source: Tensor
    elites: Tensor

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        members: Number = 7,
        elites: Number = 5,
        width: Width = 200,
        layers: Number = 4,
        residual: bool = True,
        sampled: bool = False,
        batch_size: PositiveCount = 256,
        recent_share: Share = 0.5,
        holdout: OpenShare = 0.1,
        check_every: PositiveCount = 25,
        patience: PositiveCount = 3,
        terminates: bool = False,
    ) -> None:
        super().__init__()
        if "state" not in observation_spec.keys():
            raise ValueError("the ensemble predicts `state`, which this environment does not show")
        if not 1 <= elites <= members:
            raise ValueError(f"world_model.elites is {elites}: it must be 1 to members ({members})")
        if not 0 <= recent_share <= 1:
            raise ValueError(f"world_model.recent_share is {recent_share}: it must lie in [0, 1]")
        if not 0 < holdout < 1:
            raise ValueError(f"world_model.holdout is {holdout}: it must lie between 0 and 1")
        self.state_dim, self.action_dim = observation_spec["state"].shape[-1], action_spec.shape[-1]
        inputs = self.state_dim + self.action_dim
        self.members = Members(members, inputs, self.state_dim + 1, width=width, layers=layers)
        self.residual, self.sampled, self.holdout, self.predicts_termination = residual, sampled, holdout, terminates
        self.batch_size, self.recent_share = batch_size, recent_share
        self.check_every, self.patience = check_every, patience
        self.of_inputs, self.of_states, self.of_rewards = Whitener(inputs), Whitener(self.state_dim), Whitener(1)
        self.register_buffer("source", torch.full((self.state_dim,), NOT_COPIED))
        self.register_buffer("elites", torch.arange(elites))
        self._predicted_of: tuple[Tensor | None, int, Tensor] = (None, 0, torch.empty(0))
        self._optimizers = {"ensemble": optimizer(self.members.parameters())}
        self.ending: ContinueHead | None = None
        if terminates:
            self.ending = ContinueHead(inputs, self.state_dim, width)
            self._optimizers["ending"] = optimizer(self.ending.parameters())

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimizers

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} learns by fit, not by update")

    # --------------------------------------------------------------- learning
    def fit(self, transitions: TensorDictBase, max_updates: int) -> dict[str, Tensor]:
        index = transitions["index"]
        held = held_out(index, self.holdout)
        trained_on, held_back = (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)  # row numbers
        if not len(trained_on) or not len(held_back):
            raise ValueError(f"{len(index)} transitions are too few to hold out {self.holdout} of them: collect more")
        self._measure(transitions, trained_on)
        data, judged = self._data(transitions[trained_on]), self._data(transitions[held_back][-MAX_HELD_OUT:])
        counts = self._counts(len(held_back), len(judged.inputs))
        shares = self._shares(index[trained_on])
        best, errors = self.members.snapshot(), self._errors(judged, counts)
        updates = waited = 0
        losses = []
        while updates < max_updates and waited < self.patience:
            steps = min(self.check_every, max_updates - updates)
            losses += [self._gradient_step(data, shares) for _ in range(steps)]
            require_finite({"ensemble_loss": torch.stack(losses[-steps:]).sum()}, "agent.world_model.optimizer.lr")
            updates += steps
            now = self._errors(judged, counts)
            better = now < 0.99 * errors
            self.members.keep(best, better)
            waited = 0 if better.any() else waited + 1
            errors = torch.where(better, now, errors)
        self.members.restore(best)
        self.elites.copy_(errors.argsort()[: len(self.elites)].sort().values)
        loss = torch.stack(losses).mean() if losses else errors.new_zeros(())
        return {"loss": loss, "updates": torch.tensor(float(updates)), **self._judge(judged, errors)}

    def _measure(self, transitions: TensorDictBase, training: Tensor) -> None:
        """Find the copied entries, from all transitions, and the scales, from the rows `training` int64."""
        state, after = transitions["state"], transitions["next", "state"]
        self.source.copy_(copies(state, after))
        self.of_inputs.measure(torch.cat([state, transitions["action"]], -1)[training])
        self.of_states.measure(self._wanted(state, after)[training])
        self.of_rewards.measure(transitions["next", "reward"][training])

    def _data(self, transitions: TensorDictBase) -> Data:
        state, after = transitions["state"], transitions["next", "state"]
        inputs = self._inputs(state, transitions["action"])
        states = self.of_states(self._wanted(state, after))
        terminated = None if self.ending is None else transitions["next", "terminated"]
        return Data(inputs, torch.cat([states, self.of_rewards(transitions["next", "reward"])], -1), terminated)

    def _inputs(self, state: Tensor, action: Tensor) -> Tensor:
        """Whitened inputs, clipped to FARTHEST. An object that moves for the first time is thousands of standard
        deviations away, where networks were seen to predict rewards of -500.
        """
        return self.of_inputs(torch.cat([state, action], -1)).clamp(-FARTHEST, FARTHEST)

    def _wanted(self, state: Tensor, after: Tensor) -> Tensor:
        """Targets [N, D] of the next state; 0 for copied entries, so that these do not mix with the others."""
        return (after - state if self.residual else after) * (self.source == NOT_COPIED)

    @property
    def _predicted(self) -> Tensor:
        """Numbers int64 of those of the D + 1 outputs that are not copied.

        They are found once for each value of `source`: their number is not known without waiting for the GPU.
        """
        source, (known, version, numbers) = self.source, self._predicted_of
        if known is not source or version != source._version:
            wanted = torch.cat([source == NOT_COPIED, source.new_ones(1, dtype=torch.bool)])
            numbers = wanted.nonzero().squeeze(1)
            self._predicted_of = source, source._version, numbers
        return numbers

    def _shares(self, index: Tensor) -> list[Tensor]:
        """The bootstrap of each member: rows of the data, repeated as often as they are drawn."""
        rows = torch.arange(len(index), device=index.device)
        return [rows.repeat_interleave(bootstrap(index, member)) for member in range(self.members.count)]

    def _gradient_step(self, data: Data, shares: list[Tensor]) -> Tensor:
        batch = data.rows(torch.stack([self._draw(share) for share in shares]))
        loss = self.members.loss(self.members(batch.inputs), batch.targets, self._predicted)
        optimizer = self._optimizers["ensemble"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if self.ending is not None:
            self.ending.step(batch, self._optimizers["ending"])
        return loss.detach()

    def _draw(self, share: Tensor) -> Tensor:
        """Rows of a batch from the bootstrap of a member, which is in the order of time."""
        recent = round(self.batch_size * self.recent_share)
        newest = share[-max(1, len(share) // 10) :]
        parts = ((newest, recent), (share, self.batch_size - recent))
        return torch.cat([rows[torch.randint(len(rows), (n,), device=rows.device)] for rows, n in parts])

    def _counts(self, held_out: int, judged: int) -> Tensor:
        """Weights [judged] of the newest `judged` held-out rows, equal to their share of a batch."""
        newest = min(judged, max(1, held_out // 10))
        counts = torch.full((judged,), (1.0 - self.recent_share) / judged, device=self.source.device)
        counts[-newest:] += self.recent_share / newest
        return counts

    @torch.no_grad()
    def _errors(self, judged: Data, counts: Tensor) -> Tensor:
        """Squared error of the mean of each member [M], whitened: of the states and, with the same weight, the reward.

        As one more entry of the state the reward would have little weight, and the policy learns from it.
        """
        mean = self.members.means(judged.inputs.expand(self.members.count, -1, -1))
        squared = counts @ (mean - judged.targets).square()  # [M, D + 1]
        states = squared[:, self._predicted[:-1]]
        return squared[:, -1] + (states.mean(1) if states.shape[1] else 0.0)

    @torch.no_grad()
    def _judge(self, judged: Data, errors: Tensor) -> dict[str, Tensor]:
        mean = self.members.means(judged.inputs.expand(len(self.elites), -1, -1), self.elites).mean(0)
        reward = (mean - judged.targets)[:, -1].square().mean()
        of_ending = {} if self.ending is None else {"holdout_ending_loss": self.ending.loss(judged)}
        return {"holdout_error": errors[self.elites].mean(), "holdout_reward_error": reward} | of_ending

    # -------------------------------------------------------------- imagining
    def start(self, context: TensorDictBase) -> Tensor:
        state: Tensor = context["state"][:, -1]
        return state

    def fork(self, state: Tensor, n: int) -> Tensor:
        return state.repeat_interleave(n, 0)

    def enable_all_uncertainties(self) -> None:
        """As WorldModel.enable_all_uncertainties; every elite then predicts every step.

        `disagreement` is the standard deviation of the elites' mean predictions in units of that of the data, root mean
        square over the entries of the state. `reward_std` is that of their mean rewards in units of the environment.
        """
        self.uncertainty_keys = UNCERTAINTY_KEYS

    @torch.no_grad()
    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, TensorDict]:
        inputs = self._inputs(state, action)
        every, measured = None, {}
        if self.uncertainty_keys:
            every = self._predict(inputs.expand(len(self.elites), -1, -1), self.elites)
            measured = self._disagreement(every[0])
        outputs = self._one_elite_a_row(inputs, every)
        after = self._after(state, outputs[:, :-1])
        reward = self.of_rewards.inverse(outputs[:, -1:])
        if self.ending is not None:
            measured["terminated"] = self.ending.sample(inputs, outputs[:, :-1] * (self.source == NOT_COPIED))
        return after, TensorDict(state=after, reward=reward, **measured, batch_size=[len(state)])

    def _predict(self, inputs: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        """Means of the chosen members, and log-variances where a step is a sample; arguments as in `Members`."""
        return self.members(inputs, chosen) if self.sampled else (self.members.means(inputs, chosen),)

    def _one_elite_a_row(self, inputs: Tensor, every: tuple[Tensor, ...] | None) -> Tensor:
        """The prediction [B, D + 1] of an elite drawn for each row, in numbers as equal as B allows.

        Args:
            inputs: Whitened inputs [B, D + A].
            every: Predictions of all elites [E, B, D + 1], if they are known.
        """
        count, drawn = len(inputs), torch.randperm(len(self.elites), device=inputs.device)
        order = torch.randperm(count, device=inputs.device)
        rows = torch.cat([order, order.new_zeros(-count % len(drawn))]).reshape(len(drawn), -1)
        if every is None:
            predicted = self._predict(inputs[rows], self.elites[drawn])
        else:
            predicted = tuple(part[drawn[:, None], rows] for part in every)
        made = predicted[0]
        if self.sampled:
            made[..., :-1] = Gaussian(*predicted).sample()[..., :-1]
        flat = made.flatten(0, 1)[:count]
        return torch.empty_like(flat).index_copy_(0, order, flat)

    def _after(self, state: Tensor, outputs: Tensor) -> Tensor:
        change = self.of_states.inverse(outputs)
        copied = state[:, self.source.clamp(min=0)]
        return torch.where(self.source == NOT_COPIED, state + change if self.residual else change, copied)

    def _disagreement(self, means: Tensor) -> dict[str, Tensor]:
        """Uncertainty estimates from the mean predictions of the elites [E, B, D + 1]."""
        # torch.std over the first dimension was measured 60 times slower than this.
        spread = (means - means.mean(0)).square_().mean(0).sqrt_()
        states = spread[:, self._predicted[:-1]]
        rewards = spread[:, -1:] * self.of_rewards.coloured
        return {"disagreement": states.square().mean(-1, keepdim=True).sqrt(), "reward_std": rewards}
