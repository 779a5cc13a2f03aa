"""CovarianceModule: train a covariance head on top of a domain (`lightning fit`)."""

from typing import Any, Literal

from torch import Tensor

from cyclelight.diffusion.denoiser import NetworkDenoiser
from cyclelight.diffusion.loss import covariance_loss
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import BadValue
from cyclelight.modules.denoiser import DenoiserModule
from cyclelight.networks import learns_variance
from cyclelight.networks.sn import Covariance, CovarianceNetwork, HeadKind


class CovarianceModule(DenoiserModule):
    """A covariance head on the network of a domain, which stays as it is (Bao et al. 2022).

    The fit ends by writing `domain/` into the output folder: the same domain with a learned
    variance, which `variance: learned` uses wherever domains are loaded.

    Args:
        domain: the domain that gets the head: a domain folder, a checkpoint, or `owner/name` on the
            Hugging Face Hub. Its network may have no learned variance yet.
        covariance: `sn` learns the mean of eps^2, `npr` that of (eps - eps_hat)^2.
        head: `simple`, a norm and a convolution, or `complex`, a residual block before them.
        ema_decay: decay of the weights' moving average, in [0, 1); it ramps up from 0 as
            (1 + n) / (10 + n).
        save_dtype: dtype of the weights in the domain folder.
        training: see `TrainingModule`.

    Raises:
        ValueError: a setting is out of range, or the domain has a learned variance.
        FileNotFoundError: `domain` does not exist.
    """

    def __init__(
        self,
        domain: str,
        covariance: Covariance = "sn",
        head: HeadKind = "simple",
        ema_decay: float = 0.999,
        save_dtype: Literal["float32", "float16"] = "float32",
        **training: Any,
    ) -> None:
        given = load_domain(check_domain_path(domain))
        plain = given.denoiser
        assert isinstance(plain, NetworkDenoiser)
        body: Any = plain.network
        if isinstance(body, CovarianceNetwork) or learns_variance(body):
            raise BadValue("domain", f"domain: {domain} has a learned variance already")
        denoiser = NetworkDenoiser(
            CovarianceNetwork.around(body, covariance, head),
            plain.schedule,
            prediction_type=plain.prediction_type,
            variance="learned",
            clip_x_0=given.autoencoder is None,
            second_head=covariance,
            last_pixels=2.0 if given.autoencoder is None else None,
        )
        super().__init__(
            denoiser,
            given.name,
            given.resolution,
            given.channels,
            given.autoencoder,
            save_dtype,
            ema_decay,
            **training,
        )
        self.given_card = dict(given.card)

    def loss(self, x_0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """`covariance_loss`: (B,)."""
        return covariance_loss(self.denoiser, x_0, timesteps, noise)

    def card(self) -> dict[str, Any]:
        """What `domain.json` says; of the domain without the head, under `body`."""
        return {**super().card(), "covariance": self.denoiser.second_head, "body": self.given_card}
