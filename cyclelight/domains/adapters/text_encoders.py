"""Text encoders of transformers and their tokenizers, from folders to a `TextReader`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from cyclelight.domains.model_files import (
    check_loaded,
    check_size,
    check_weights,
    held,
    judged,
    without_bars,
)
from cyclelight.errors import BadValue, first_line, printable
from cyclelight.files import read_json
from cyclelight.networks.sizes import check_config
from cyclelight.text.control import Spelling
from cyclelight.text.model import TextReader
from cyclelight.text.tokens import check_length, token_ids

CLIP_MODELS = {"CLIPTextModel": CLIPTextModel}
PROJECTED = {"CLIPTextModelWithProjection": CLIPTextModelWithProjection}
"""Text encoders of CLIP, by the name in their configuration; the latter also pool a text."""


class TextEncoder(nn.Module):
    """A text encoder and its tokenizer.

    Args:
        encoder: a network of transformers, called with token ids (B, L).
        tokenizer: of transformers.
        length: L, tokens that a text may have, those that begin and end it among them.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any, length: int) -> None:
        super().__init__()
        # A tokenizer whose folder does not say so has no longest text.
        self.encoder, self.length = encoder, min(tokenizer.model_max_length, length)
        self.tokenizer: Any = tokenizer

    @property
    def width(self) -> int:
        """Channels of its hidden states."""
        config: Any = self.encoder.config
        return int(config.hidden_size)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """The tokens (B, L) of B texts, filled up, on the encoder's device."""
        ids = token_ids(self.tokenizer, texts, self.length)
        return ids.to(next(self.encoder.parameters()).device)


class EncodersReader(TextReader):
    """Texts are read by one encoder or several, which differ in what they make of them.

    Args:
        encoders: the first is the one whose tokens attention is controlled by.
    """

    def __init__(self, *encoders: TextEncoder) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    @property
    def length(self) -> int:
        return self.each[0].length

    def spell(self, text: str) -> Spelling:
        tokenizer = self.each[0].tokenizer
        ids = tokenizer(text, verbose=False)["input_ids"]
        # Where BERT's tokenizer goes on with a word it says so by two signs.
        told = [str(tokenizer.decode(i)).strip().removeprefix("##") for i in ids[1:-1]]
        return Spelling(text, ids, told)

    def check(self, texts: Sequence[str]) -> None:
        for each in self.each:
            check_length(each.tokenizer, texts, each.length)

    @property
    def each(self) -> list[TextEncoder]:
        """Its encoders."""
        return [each for each in self.encoders if isinstance(each, TextEncoder)]


def load_encoder(
    folder: Path, part: str, kinds: Mapping[str, type], config_kind: type, *, bare: bool
) -> Any:
    """A text encoder in float32; on the device `meta` if it is to be bare.

    Args:
        folder: the model's.
        part: its folder's name.
        kinds: the classes that it may be of, by the name in its configuration; a configuration
            without a name is of the first.
        config_kind: the class of its configuration.
        bare: do not read its weights.

    Raises:
        ValueError: it is something else, or cannot be read.
    """
    path = folder / part
    config = read_json(path / "config.json", "model")
    name = (config.get("architectures") or [next(iter(kinds))])[0]
    if name not in kinds:
        told = f"model: {path} is a {printable(name, 80)}, not a {next(iter(kinds))}"
        raise BadValue("model", told)
    kind: Any = kinds[name]
    with judged("model", path / "config.json"), torch.device("meta"):
        check_config(config, config_kind)
        shape = kind(config_kind(**config))
    if bare:
        return shape
    check_weights(path, "model")
    with judged("model", path / "config.json"):
        check_size(shape, held(path))
    try:
        with _quiet():
            model, report = kind.from_pretrained(
                path, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # transformers and safetensors raise a dozen kinds for a bad file
        raise BadValue("model", f"model: {path} cannot be read: {first_line(error)}") from error
    check_loaded(report, path, "model")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own remarks and bars are for its programmers."""
    log: Any = transformers_logging
    verbosity = log.get_verbosity()
    log.set_verbosity(log.CRITICAL)
    try:
        with without_bars():
            yield
    finally:
        log.set_verbosity(verbosity)


def load_clip(
    folder: Path, number: str, kinds: Mapping[str, type] = CLIP_MODELS, *, bare: bool
) -> TextEncoder:
    """A text encoder of CLIP with its tokenizer, both with this ending of their folders' names."""
    encoder = load_encoder(folder, f"text_encoder{number}", kinds, CLIPTextConfig, bare=bare)
    tokenizer = load_tokenizer(folder, f"tokenizer{number}", CLIPTokenizer)
    return TextEncoder(encoder, tokenizer, encoder.config.max_position_embeddings)


def load_tokenizer(folder: Path, part: str, kind: Any) -> Any:
    """A tokenizer of transformers.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return kind.from_pretrained(folder / part, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise a dozen kinds for a bad file
        told = f"model: {folder / part} cannot be read: {first_line(error)}"
        raise BadValue("model", told) from error
