"""Named protocols: figures may be compared only if they come from the same one."""

from dataclasses import dataclass, replace

from torch import Tensor

from cyclelight.errors import one_of
from cyclelight.metrics import clean_fid
from cyclelight.metrics.features import resize_of
from cyclelight.metrics.realism import Estimate, fid, kid


@dataclass(frozen=True, kw_only=True)
class MetricProtocol:
    """What decides the value of FID and KID besides the images themselves.

    Args:
        name: of the protocol.
        network: whose features are compared, as `feature_network` takes it.
        reference: what the reference images must be for figures to be comparable.
        kid_subset_size: as `kid` takes it; None is the whole sets.
        kid_subsets: number of draws, if there are subsets.
        by_clean_fid: whether clean-fid's own program takes both distances.
        kid_scale: what KID is multiplied by where it is printed, never where it is stored.
    """

    name: str
    network: str
    reference: str
    kid_subset_size: int | None = None
    kid_subsets: int = 100
    by_clean_fid: bool = False
    kid_scale: int = 100

    def fid(self, features: Tensor, reference: Tensor) -> float:
        """FID as this protocol has it; see `realism.fid`."""
        return (clean_fid.frechet if self.by_clean_fid else fid)(features, reference)

    def kid(self, features: Tensor, reference: Tensor) -> Estimate:
        """KID as this protocol has it; see `realism.kid`."""
        size, subsets = self.kid_subset_size, self.kid_subsets
        if self.by_clean_fid and size is not None:
            return clean_fid.kernel(features, reference, subset_size=size, subsets=subsets)
        return kid(features, reference, subset_size=size, subsets=subsets)

    def describe(self) -> str:
        """One line for tables and `metrics.json`. The number of images is not the protocol's."""
        size = self.kid_subset_size
        subsets = (
            f"{self.kid_subsets} subsets of min(n, {size})" if size else "whole sets, unbiased"
        )
        return (
            f"{self.name}: features of {self.network}, resized to {resize_of(self.network)}; "
            f"{'distances by clean-fid; ' if self.by_clean_fid else ''}"
            f"KID x {self.kid_scale} over {subsets}; reference: {self.reference}"
        )


PROTOCOLS = {
    p.name: p
    for p in (
        MetricProtocol(name="default", network="efficientnet-lite0", reference="as given"),
        MetricProtocol(
            name="cyclediffusion",
            network="clean-fid",
            reference="AFHQ v2 test, 512 to 256 by Pillow bilinear",
            kid_subset_size=1000,
            by_clean_fid=True,
        ),
        MetricProtocol(name="egsde", network="pytorch-fid", reference="AFHQ v1 val, 256"),
    )
}


def protocol_of(name: str, network: str | None = None) -> MetricProtocol:
    """The protocol of this name, with another network if one is given.

    - `default`: a network that works offline, KID over the whole sets.
    - `cyclediffusion`: Wu and De la Torre 2023, by clean-fid.
    - `egsde`: Zhao et al. 2022, by pytorch-fid; KID is not part of it and taken over whole sets.

    Raises:
        ValueError: there is none.
    """
    one_of(PROTOCOLS, protocol=name)
    found = PROTOCOLS[name]
    return found if network is None else replace(found, network=network)
