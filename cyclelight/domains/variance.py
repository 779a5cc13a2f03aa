"""Whether a domain's steps can have the variance that its network has learned."""

from collections.abc import Sequence

from cyclelight.domains.domain import Domain
from cyclelight.errors import BadValue
from cyclelight.networks import learns_variance
from cyclelight.networks.sn import CovarianceNetwork


def check_learned_variance(domain: Domain, etas: Sequence[object], where: str) -> None:
    """Raises ValueError unless it can.

    Args:
        domain: its weights need not be there.
        etas: of the steps; a learned range goes with 1 alone, a covariance head with any.
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
    if any(eta not in (1, (1, 1)) for eta in etas):
        raise BadValue(
            "variance",
            f"variance: the range that {where} has learned goes with eta 1, got "
            f"{', '.join(map(str, etas))}",
        )
