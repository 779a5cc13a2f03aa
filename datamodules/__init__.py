"""Where images come from: datamodules for a domain's own images, one for those to translate."""

from datamodules.afhq import AFHQ
from datamodules.captioned_images import CaptionedImages
from datamodules.domain_data import DomainData
from datamodules.domain_images import DomainImages
from datamodules.edit_images import EditImages
from datamodules.paired_images import PairedImages
from datamodules.predict_data import PredictData
from datamodules.shards import ShardImages
from datamodules.translation_images import TranslationImages
from datamodules.unpaired_images import UnpairedImages

__all__ = [
    "AFHQ",
    "CaptionedImages",
    "DomainData",
    "DomainImages",
    "EditImages",
    "PairedImages",
    "PredictData",
    "ShardImages",
    "TranslationImages",
    "UnpairedImages",
]
