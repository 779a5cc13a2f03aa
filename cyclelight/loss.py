"""Weights of the noise-prediction loss over noise levels.

Every weighting multiplies the same squared error of eps, whatever the network outputs. SNR is the
signal-to-noise ratio alpha-bar / (1 - alpha-bar).
"""

from typing import Literal

from torch import Tensor

Weighting = Literal["uniform", "p2", "min_snr"]


def loss_weight(alpha_bar: Tensor, weighting: Weighting) -> Tensor:
    """The weight of the eps error at each alpha-bar, same shape, > 0.

    - `uniform`: 1 (Ho et al. 2020, Eq. 14).
    - `p2`: 1 / (1 + SNR) (Choi et al. 2022, Eq. 8 with k = 1, gamma = 1), less weight where little
      noise is left. The models of the paper's AFHQ experiments were trained with it.
    - `min_snr`: min(SNR, 5) / SNR (Hang et al. 2023, sec. 3.4, gamma = 5).
    """
    snr = alpha_bar / (1 - alpha_bar)
    if weighting == "p2":
        return 1 / (1 + snr)
    if weighting == "min_snr":
        return snr.clamp(max=5) / snr
    return snr.new_ones(snr.shape)


def finite(loss: Tensor, step: int) -> Tensor:
    """`loss` as it is: to be asked before its gradient reaches the weights, and these a checkpoint.

    Raises:
        RuntimeError: it is infinite or NaN.
    """
    if not loss.isfinite():
        raise RuntimeError(
            f"the loss is {loss.item()} at step {step}: try a lower learning_rate, a longer "
            f"warmup_steps or trainer.gradient_clip_val; the checkpoints are kept"
        )
    return loss
