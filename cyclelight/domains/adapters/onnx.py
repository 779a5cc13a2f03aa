"""ONNX: a translator as one file that runs without torch, such as in a browser.

Input `images`, (batch, C, R, R), float32 in [-1, 1]; output `translations`, the same, near [-1, 1];
any batch. The file's metadata tell what it makes and where it comes from.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclelight.domains.translator import Translator
from cyclelight.errors import printable
from cyclelight.files import atomic

NEEDED = ("onnx", "onnxscript")
"""What torch's exporter builds upon, the extra `onnx` of this package."""


class Calls(nn.Module):
    """A translator as a module without settings: images in, translations out."""

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self.network, self.translator = translator.network, translator

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, R, R) => (B, C, R, R)."""
        return self.translator(images)


def save_onnx(path: str | Path, translator: Translator) -> Path:
    """Write a translator, the way that it goes, as an ONNX file with all its weights.

    Args:
        path: the file, which appears whole or not at all.
        translator: in float32, on the CPU; it is not changed.

    Raises:
        ValueError: the exporter's packages are not installed.
    """
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise ValueError(f"ONNX files need {' and '.join(lacking)}: pip install 'cyclelight[onnx]'")
    # Two, since the exporter takes a dimension of one for a fixed one.
    example = torch.zeros(2, *translator.shape)
    with _quiet():
        program = torch.onnx.export(
            Calls(translator).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["translations"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    _strip(program.model)
    told = {"name": translator.name, "resolution": str(translator.resolution)}
    for key, value in translator.card.items():
        told.setdefault(key, value if isinstance(value, str) else json.dumps(value))
    for key, value in told.items():
        program.model.metadata_props[key] = printable(value)
    with atomic(Path(path)) as temporary:
        program.save(temporary, external_data=False)
    return Path(path)


def _strip(model: Any) -> None:
    """Leave out where in whose files each operation was written; it was a tenth of the file."""
    for graph in (model.graph, *model.functions.values()):
        for node in graph:
            node.doc_string = None
            for part in (node, *node.outputs):
                part.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on its own workings are for its programmers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
