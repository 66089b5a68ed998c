"""A wrapped world model does what the world model does."""

from __future__ import annotations

from unittest.mock import MagicMock

from tests.fakes import CountingWorldModel
from worldmodel.base import WorldModel
from worldmodel.wrapper import WorldModelWrapper


class Doubting(CountingWorldModel):
    """Has a temperature and an uncertainty estimate."""

    temperature = 1.0
    resolution = 16

    def set_temperature(self, value: float) -> None:
        self.temperature = value

    def enable_all_uncertainties(self) -> None:
        self.uncertainty_keys = ("doubt",)


def test_every_method_is_forwarded_that_does_not_call_step() -> None:
    built_on_step = {"predict", "outcome", "embedded"}
    methods = {name for name, each in vars(WorldModel).items() if callable(each) or isinstance(each, property)}
    names = {name for name in methods if not name.startswith("_")} - built_on_step
    assert names <= set(vars(WorldModelWrapper)) and not built_on_step & set(vars(WorldModelWrapper))
    arguments = {"start": 1, "update": 1, "update_rewards": 1, "fit": 2, "kinds_of_updates": 1, "skip_to": 1, "step": 2}
    arguments |= {"observe": 3, "fork": 2, "reconstruct": 1, "codes": 1}
    assert names - set(arguments) == {"device", "optimizers", "set_temperature", "enable_all_uncertainties"}
    wrapper = WorldModelWrapper(CountingWorldModel())
    for name, count in arguments.items():
        method = MagicMock()
        setattr(wrapper.model, name, method)
        given = tuple(range(count))
        result = getattr(wrapper, name)(*given)
        method.assert_called_once_with(*given)
        assert name == "skip_to" or result is method.return_value


def test_attributes_are_those_of_the_model() -> None:
    model = Doubting()
    wrapper = WorldModelWrapper(model)
    assert (wrapper.resolution, wrapper.context_length, wrapper.max_horizon) == (16, 2, 10)
    assert wrapper.optimizers is model.optimizers and wrapper.device == model.device
    wrapper.set_temperature(0.5)
    wrapper.enable_all_uncertainties()
    assert (model.temperature, wrapper.temperature) == (0.5, 0.5)
    assert wrapper.uncertainty_keys == model.uncertainty_keys == ("doubt",)
