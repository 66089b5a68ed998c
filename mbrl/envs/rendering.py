"""Off-screen rendering of a MuJoCo simulation, fast on software OpenGL.

Quality `full` gives the image of Gymnasium's `render()`. Quality `fast` leaves out what is expensive and barely visible
at small sizes: the shadow map, reflections, multisampling and most vertices. Software OpenGL spends its time on the
robot's 70,000 triangles, so the vertices of meshes are merged on a grid finer than a pixel.
"""

from __future__ import annotations

import atexit
import copy
import weakref
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mbrl.envs.opengl import open_context
from mbrl.errors import UserError

Quality = Literal["fast", "full"]

# Width in metres of the grid that `fast` merges mesh vertices on, times the resolution: 3 mm at 64 pixels, where a
# pixel of the corner cameras is 2 cm wide. It changes 0.2 % of the pixels visibly; on a wider grid, holes appear.
_MERGE_CELL = 0.192
# Subdivisions of round and flat primitives in `fast` (MuJoCo's defaults: 28 slices, 16 stacks, 4 quads).
_SLICES, _STACKS, _QUADS = 12, 6, 2
_MAX_GEOMS = 1000


class Renderer:
    """Renders one camera of one simulation. `close` frees it, and so does garbage collection or the end of the process.

    Args:
        model: MuJoCo's model, which is not changed.
        data: MuJoCo's data, which is not changed.
        resolution: R, the side of the square image in pixels, 8 or more.
        camera: a camera of the model.
        quality: `fast` or `full`, see above.
        mirrored: flip only the rows of MuJoCo's image, as in iVideoGPT's published data. Meta-World's corner cameras
            are upside down, so the scene is then mirrored left to right. By default it is the right way up.

    Raises:
        UserError: unknown camera or quality, or a resolution below 8.
        OSError: there is no OpenGL that can render off screen.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        resolution: int = 64,
        camera: str = "corner",
        quality: Quality = "fast",
        mirrored: bool = False,
    ) -> None:
        import mujoco

        check_image_settings(resolution, quality)
        cameras = [model.camera(i).name for i in range(model.ncam)]
        if camera not in cameras:
            raise UserError(f"unknown camera {camera!r}: choose one of {', '.join(cameras)}")
        self._mujoco, self._model, self._data = mujoco, model, data
        self._orientation = _orientation(camera, mirrored)
        reduced = _reduced_model(model, resolution, quality)
        # Last: a renderer that is collected as garbage in between would leave no context current.
        self._gl = open_context(resolution)
        self._context = mujoco.MjrContext(reduced, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        if quality == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = cameras.index(camera)
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._viewport = mujoco.MjrRect(0, 0, resolution, resolution)
        self._bottom_up = np.empty((resolution, resolution, 3), np.uint8)
        self._finalizer = weakref.finalize(self, _free, self._context, self._gl)
        # Exit handlers run in reverse order. This one is registered after mujoco's, which shuts EGL down, so that this
        # one runs first.
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def render(self) -> npt.NDArray[np.uint8]:
        """Render the current state: a new array, uint8 [3, R, R]."""
        mujoco = self._mujoco
        self._gl.make_current()  # Another renderer of this process may have been used since.
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            self._perturbation,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._bottom_up, None, self._viewport, self._context)
        return np.ascontiguousarray(self._bottom_up[self._orientation].transpose(2, 0, 1))

    def ground_axes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Axes of the ground (0 for x, 1 for y) with their signs: what goes right in the image, and what goes up."""
        rows, columns = self._orientation
        camera = self._data.cam_xmat[self._camera.fixedcamid].reshape(3, 3)
        right = camera[:, 0] * (-1 if columns.step == -1 else 1)
        up = camera[:, 1] * (1 if rows.step == -1 else -1)
        across = 0 if abs(right[0]) + abs(up[1]) >= abs(right[1]) + abs(up[0]) - 1e-6 else 1
        along = 1 - across
        return (across, 1 if right[across] >= 0 else -1), (along, 1 if up[along] >= 0 else -1)

    def close(self) -> None:
        """Free the OpenGL context. A second call does nothing."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def check_image_settings(resolution: int, quality: str) -> None:
    """Check the settings of a renderer.

    Raises:
        UserError: the resolution is below 8, or the quality is unknown.
    """
    if resolution < 8:
        raise UserError(f"resolution is {resolution}: it must be 8 or more")
    if quality not in get_args(Quality):
        raise UserError(f"unknown quality {quality!r}: choose one of {', '.join(get_args(Quality))}")


def _orientation(camera: str, mirrored: bool) -> tuple[slice, slice]:
    """Slices of rows and columns that turn OpenGL's image, whose row 0 is the lowest, into the required orientation."""
    keep, reverse = slice(None), slice(None, None, -1)
    if camera.startswith("corner"):  # These cameras are upside down, so that row 0 is already the top of the scene.
        return (keep, keep) if mirrored else (keep, reverse)
    return (keep, keep) if mirrored else (reverse, keep)


def _free(context: Any, gl: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()


def _reduced_model(model: Any, resolution: int, quality: Quality) -> Any:
    """A copy of `model` for the OpenGL context, with fewer vertices in quality `fast`. Physics uses the original."""
    reduced = copy.copy(model)
    reduced.vis.global_.offwidth = reduced.vis.global_.offheight = resolution
    if quality == "fast":
        settings = reduced.vis.quality
        settings.shadowsize = settings.offsamples = 0
        settings.numslices, settings.numstacks, settings.numquads = _SLICES, _STACKS, _QUADS
        for mesh in range(model.nmesh):
            _merge_vertices(model, reduced, mesh, _MERGE_CELL / resolution)
    return reduced


def _merge_vertices(model: Any, reduced: Any, mesh: int, cell: float) -> None:
    """Merge the vertices of a mesh to one per grid cell, and drop triangles that collapse or coincide.

    Args:
        model: the original model.
        reduced: the copy whose mesh is changed.
        mesh: index of the mesh.
        cell: width of a grid cell in metres.
    """
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    first = model.mesh_faceadr[mesh]
    faces = slice(first, first + model.mesh_facenum[mesh])
    cells = np.round(model.mesh_vert[vertices] / cell).astype(np.int64)
    _, representative, index = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    corners = representative[index.ravel()][model.mesh_face[faces]]  # [faces, 3]
    intact = np.all(corners != np.roll(corners, 1, axis=1), axis=1)
    # Rotate the smallest corner to the front and keep the winding, so that both faces of a collapsed sheet remain.
    order = (np.arange(3) + corners.argmin(axis=1)[:, None]) % 3
    _, unique = np.unique(np.take_along_axis(corners, order, axis=1), axis=0, return_index=True)
    remaining = np.intersect1d(unique, np.flatnonzero(intact))
    target = slice(first, first + len(remaining))
    reduced.mesh_face[target] = corners[remaining]
    reduced.mesh_facenormal[target] = model.mesh_facenormal[faces][remaining]
    reduced.mesh_facetexcoord[target] = model.mesh_facetexcoord[faces][remaining]
    reduced.mesh_facenum[mesh] = len(remaining)
