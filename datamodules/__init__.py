"""Where images come from: one datamodule for a domain's own images, one for those to translate."""

from datamodules.domain_images import DomainImages
from datamodules.translation_images import TranslationImages

__all__ = ["DomainImages", "TranslationImages"]
