"""How well an edit is what its texts say, as a CLIP sees it; one value per image, float64 (B,)."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Seen:
    """What a CLIP makes of B edits: unit vectors (B, D) each.

    Args:
        image: of the edited image, y.
        source: of its source, x.
        text: of what it was to show, t'.
        source_text: of what the source shows, t.
        region: of y where it was to change, black elsewhere; None where that is not known.
    """

    image: Tensor
    source: Tensor
    text: Tensor
    source_text: Tensor
    region: Tensor | None = None


def clip_score(seen: Seen) -> Tensor:
    """S_CLIP: cos(image(y), text(t')) (Wu and De la Torre 2023, sec. 4.2), in [-1, 1]."""
    return (seen.image.double() * seen.text.double()).sum(dim=1)


def directional_clip_score(seen: Seen) -> Tensor:
    """S_D-CLIP: cos(image(y) - image(x), text(t') - text(t)) (ibid., Eq. 10), in [-1, 1].

    0 for an image that is its source, and for equal texts: nothing has a direction then.
    """
    done = seen.image.double() - seen.source.double()
    wanted = seen.text.double() - seen.source_text.double()
    return F.cosine_similarity(done, wanted, dim=1, eps=1e-12)


def source_match(seen: Seen) -> Tensor:
    """cos(image(x), text(t)): how well the first text fits the source, in [-1, 1]."""
    return (seen.source.double() * seen.source_text.double()).sum(dim=1)


def region_clip_score(seen: Seen) -> Tensor:
    """cos(image(y in the region), text(t')): PIE-Bench's figure of edited regions, in [-1, 1]."""
    assert seen.region is not None, "whoever knows regions gives them"
    return (seen.region.double() * seen.text.double()).sum(dim=1)
