"""Whether a domain's steps can have the variance that its network has learned."""

from collections.abc import Mapping

from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue
from cyclelight.networks import learns_variance
from cyclelight.networks.sn import CovarianceNetwork


def check_learned_variance(domain: Domain, etas: Mapping[str, object], where: str) -> None:
    """Raises ValueError unless it can.

    Args:
        domain: its weights need not be there.
        etas: of the steps, by the names of their settings; a learned range goes with 1 alone, a
            covariance head with any.
        where: the domain in a message, such as `source cats/`.
    """
    network = domain.denoiser.network  # type: ignore[attr-defined]
    if isinstance(network, CovarianceNetwork):
        return
    if not learns_variance(network):
        raise BadValue(
            "variance",
            f"variance: {where} has learned none; CovarianceModule trains a head for it "
            "(configs/guidance/sn.yaml)",
        )
    for name, eta in etas.items():
        if eta not in (1, (1, 1)):
            raise BadValue(
                "variance",
                f"variance: the range that {where} has learned goes with {name} 1, got {eta}",
            )
