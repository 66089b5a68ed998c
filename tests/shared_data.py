"""Where recorded outputs, demonstrations and published curves are, beside the project's folder; tests skip without."""

from pathlib import Path

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
