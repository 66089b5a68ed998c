"""Meta-World's environments with a cheaper step and reset, whose results are the same to the bit.

On most tasks physics takes less than half of a step; the rest is small numpy calls on three or four numbers. The
overrides compute the same from fewer calls. They replace private methods of Meta-World 3.1.1, which is pinned.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from metaworld.sawyer_xyz_env import SawyerXYZEnv

FloatArray = npt.NDArray[np.float64]

_HAND_DOWN = np.array([1.0, 0.0, 1.0, 0.0])  # quaternion of the mocap body that leads the hand


def with_cheap_steps(env_class: type[SawyerXYZEnv]) -> type[SawyerXYZEnv]:
    """A subclass of one of Meta-World's environment classes with the overrides of `_CheapSteps`.

    It has the same name, because the name is among the attributes that a snapshot holds.
    """
    return type(env_class.__name__, (_CheapSteps, env_class), {})


class _CheapSteps(SawyerXYZEnv):
    """Overrides for every task. They add no attributes: a snapshot holds those that it held without them."""

    def reset_model(self) -> FloatArray:
        """Reset to a new goal, if goals are not frozen, and freeze it.

        `reset` calls this twice, and the state after it depends on both calls. If the first one may draw the goal, no
        call of its own is needed for that.
        """
        observation: FloatArray = super().reset_model()
        self._freeze_rand_vec = True
        return observation

    def step(self, action: npt.NDArray[np.float32]) -> tuple[FloatArray, Any, bool, bool, dict[str, Any]]:
        """Take one control step of an action [4]; only its first 3 numbers are clipped, as in Meta-World.

        Left out are checks that cannot fail under `Simulator`, positions of sites, which `mj_forward` overwrites, and
        contact forces on bodies, which no task reads.
        """
        data, space = self.data, self.sawyer_observation_space
        # np.clip costs several times as much as np.minimum of np.maximum.
        moved = data.mocap_pos[0] + np.minimum(np.maximum(action[:3], -1), 1) * self.action_scale
        data.mocap_pos[0] = np.minimum(np.maximum(moved, self.mocap_low), self.mocap_high)
        data.mocap_quat[0] = _HAND_DOWN
        data.ctrl[:] = action[-1], -action[-1]
        mujoco.mj_step(self.model, data, nstep=self.frame_skip)
        self.curr_path_length += 1
        mujoco.mj_forward(self.model, data)
        observation = np.minimum(np.maximum(self._get_obs(), space.low), space.high)
        self._last_stable_obs = observation
        reward, info = self.evaluate_state(observation, action)
        return observation.copy(), reward, False, self.curr_path_length == self.max_path_length, info

    def touching_object(self, object_geom_id: int) -> bool:
        """Whether both pads of the gripper press on a geom."""
        # One copy of all contacts: an object of Python for each contact took half of a step.
        pairs: list[list[int]] = self.data.contact.geom.tolist()

        def presses(pad: str) -> bool:
            pad_id, addresses = self.data.geom(pad).id, self.data.contact.efc_address
            touching = (row for row, pair in enumerate(pairs) if object_geom_id in pair and pad_id in pair)
            return bool(sum(self.data.efc_force[addresses[row]] for row in touching) > 0)

        return presses("leftpad_geom") and presses("rightpad_geom")

    def _get_curr_obs_combined_no_goal(self) -> FloatArray:
        """Hand [3], opening of the gripper, and position and quaternion of each object, padded with zeros to [18]."""
        observation = np.zeros(4 + self._obs_obj_max_len)
        observation[:3] = self.get_endeff_pos()
        apart = self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos
        observation[3] = min(math.sqrt(apart.dot(apart)) / 0.1, 1.0)
        positions, quaternions = self._get_pos_objects().reshape(-1, 3), self._get_quat_objects().reshape(-1, 4)
        objects = np.concatenate((positions, quaternions), axis=1)
        observation[4 : 4 + objects.size] = objects.ravel()
        return observation

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds a class by its name, and under this name it would find Meta-World's.
        return _blank, (type(self).__bases__[1],), self.__getstate__()


def _blank(env_class: type[SawyerXYZEnv]) -> SawyerXYZEnv:
    return object.__new__(with_cheap_steps(env_class))
