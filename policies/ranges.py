"""Types of settings with their ranges, for annotations of constructor parameters.

A configuration is checked against them before anything is built. The upper bounds are far above practical values, and
low enough that the size of every tensor can be computed.

The package `worldmodel` has its own file, because neither package imports the other.
"""

from typing import Annotated

from annotated_types import Interval

# sizes
Number = Annotated[int, Interval(ge=1, le=1000)]  # of parts that are built one by one, such as layers
Width = Annotated[int, Interval(ge=1, le=2**16)]  # of a layer
Critics = Annotated[int, Interval(ge=2, le=1000)]  # of which two are drawn
Expansion = Annotated[int, Interval(ge=1, le=64)]  # of the width inside a block
Bins = Annotated[int, Interval(ge=3, le=2**16)]  # of a distribution over values
Limit = Annotated[float, Interval(gt=0, le=40)]  # of values in symlog space
Pixels = Annotated[int, Interval(ge=1, le=64)]  # side or stride of a kernel
Padding = Annotated[int, Interval(ge=0, le=64)]  # in pixels
Resolution = Annotated[int, Interval(ge=8, le=8192)]  # side of an image, in pixels
FrameStack = Annotated[int, Interval(ge=1, le=100)]
Horizon = Annotated[int, Interval(ge=1, le=10_000)]  # steps of a rollout, a plan or a segment
Rows = Annotated[int, Interval(ge=2, le=10_000)]  # of a segment; the last row has no reward and no next row
Candidates = Annotated[int, Interval(ge=1, le=10**6)]  # plans of one draw
CandidatesOrZero = Annotated[int, Interval(ge=0, le=10**6)]
Workers = Annotated[int, Interval(ge=1, le=1024)]  # processes

# counts of steps, updates, transitions
Count = Annotated[int, Interval(ge=0, le=10**12)]
PositiveCount = Annotated[int, Interval(ge=1, le=10**12)]
Ratio = Annotated[float, Interval(ge=0, le=1e6)]  # of updates to steps

# shares
Share = Annotated[float, Interval(ge=0, le=1)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]

# learning
LearningRate = Annotated[float, Interval(gt=0, le=1)]
WeightDecay = Annotated[float, Interval(ge=0, le=1)]
Weight = Annotated[float, Interval(ge=0, le=1e6)]  # of a term of a loss
Factor = Annotated[float, Interval(ge=-1e6, le=1e6)]  # of a term that is added to a reward or taken from it
Scale = Annotated[float, Interval(gt=0, le=1e6)]  # a factor that must not vanish
Norm = Annotated[float, Interval(gt=0, le=1e12)]  # of a gradient; a large one clips nothing
Entropy = Annotated[float, Interval(ge=-1e6, le=1e6)]  # in nats
Std = Annotated[float, Interval(ge=0, le=2)]  # of noise on actions, which lie in [-1, 1]
PositiveStd = Annotated[float, Interval(gt=0, le=2)]
