"""The model of window-close, which most commands of the tests run: compiled in their server, before it forks them."""

from metaworld.asset_path_utils import full_V3_path_for

from tests.compiled_once import compiled

compiled(full_V3_path_for("sawyer_xyz/sawyer_window_horizontal.xml"))
