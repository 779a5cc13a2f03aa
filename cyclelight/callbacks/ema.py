"""EMA: Lightning's weight averaging with a decay that ramps up."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Exponential moving average of the weights.

    After the n-th update the decay is min(decay, (1 + n) / (10 + n)), so that short runs are not
    ruled by their first steps. Validation, samples and the end of the fit see the averaged weights;
    a checkpoint's `state_dict` holds them, `current_model_state` the raw ones.

    Args:
        decay: the final decay, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            n = float(updates)
            return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

        # Averaging buffers would average integer counters too.
        super().__init__(use_buffers=False, avg_fn=average)
