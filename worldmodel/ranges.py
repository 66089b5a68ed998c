"""Types of settings with their ranges, for annotations of constructor parameters.

A configuration is checked against them before anything is built. The upper bounds are far above practical values, and
low enough that the size of every tensor can be computed.

The package `policies` has its own file, because neither package imports the other.
"""

from typing import Annotated

from annotated_types import Interval

# sizes
Number = Annotated[int, Interval(ge=1, le=1000)]  # of parts that are built one by one, such as layers
NumberOrZero = Annotated[int, Interval(ge=0, le=1000)]
Width = Annotated[int, Interval(ge=1, le=2**16)]  # of a layer
Codes = Annotated[int, Interval(ge=1, le=2**20)]  # of a codebook
Padding = Annotated[int, Interval(ge=0, le=64)]  # in pixels
Side = Annotated[int, Interval(ge=1, le=8192)]  # of an image or a map of features, in pixels
Frames = Annotated[int, Interval(ge=1, le=10_000)]  # of a segment or a rollout
Bins = Annotated[int, Interval(ge=3, le=2**16)]  # of a distribution over values
Limit = Annotated[float, Interval(gt=0, le=40)]  # of values in symlog space
Positions = Annotated[int, Interval(ge=1, le=2**20)]  # tokens of a segment

# counts of steps, updates, transitions
Count = Annotated[int, Interval(ge=0, le=10**12)]
PositiveCount = Annotated[int, Interval(ge=1, le=10**12)]

# shares
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
OpenShare = Annotated[float, Interval(gt=0, lt=1)]

# learning
LearningRate = Annotated[float, Interval(gt=0, le=1)]
Weight = Annotated[float, Interval(ge=0, le=1e6)]  # of a term of a loss
Scale = Annotated[float, Interval(gt=0, le=1e6)]  # a factor that must not vanish
Norm = Annotated[float, Interval(gt=0, le=1e12)]  # of a gradient; a large one clips nothing
