"""The reading order of the package is its import order, and its files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file imports only from what stands above it; a package counts as one line, inside which imports
# are free. New files find their place here first.
ORDER = [
    *("progress", "pixels", "schedule", "steps", "noise", "latent_code", "denoiser", "networks"),
    *("autoencoder", "model_folder", "autoencoder_folder", "adapters", "domain", "hub"),
    *("domain_folder", "encode", "decode", "sample", "invert", "cleanup", "methods", "translate"),
    *("loss", "metrics", "outputs", "checkpoints", "page", "report", "datamodules", "sharding"),
    *("callbacks", "modules", "commands", "cli", "__main__"),
]
# The public names of the package are gathered from below; nothing inside imports from there.
FILES = sorted(p for d in ("cyclelight", "datamodules") for p in (ROOT / d).rglob("*.py"))
FILES.remove(ROOT / "cyclelight" / "__init__.py")


def layer(module: str) -> str:
    """The entry of ORDER for a dotted name of ours: `cyclelight.methods.base` -> `methods`."""
    return module.removeprefix("cyclelight.").split(".")[0]


def imports(tree: ast.AST) -> set[str]:
    """The modules of ours that are imported, at the top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module != "cyclelight", "name the file that defines it"
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith(("cyclelight", "datamodules"))}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file(path: Path) -> None:
    text, tree = path.read_text(), ast.parse(path.read_text())
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    here = layer(module)
    for name in imports(tree):
        assert layer(name) == here or ORDER.index(layer(name)) < ORDER.index(here), name
        assert here not in ("datamodules", "metrics") or layer(name) in ("pixels", here), name
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            # What a docstring needs to say takes the lines that it takes.
            code = node.body[ast.get_docstring(node) is not None :] or node.body
            assert (node.end_lineno or 0) - code[0].lineno < 60, node.name
        if isinstance(node, ast.Name) and node.id == "print":
            assert here in ("commands", "cli"), "results are returned or logged, not printed"
        if isinstance(node, ast.Constant) and node.value == 127.5:
            assert here == "pixels", "only pixels.py knows the range of 8-bit images"
