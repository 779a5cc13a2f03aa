"""`cyclelight push`: a domain folder, with a model card, to the Hugging Face Hub."""

import glob
import json
import os
import re
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from cyclelight.commands.guard import UsageError
from cyclelight.commands.parsing import make_parser, usage
from cyclelight.domains.hub import LOGIN, hub_name, hub_reason, status
from cyclelight.errors import printable

LONGEST_CELL = 1000
"""Letters of what `domain.json` says, which may be anything."""
# What the Hub calls the licences that training images usually have.
LICENCES = (
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("apache-2.0", "mit"),
)

CARD = """\
---
{metadata}
---

# {name}

A diffusion model of one image domain, for [CycleDiffusion](https://arxiv.org/abs/2210.05559) with
cyclelight: any two domains of one noise schedule and resolution translate into each other.

## Use

Translate images into this domain from one of your own, or name both on the Hub:

```sh
lightning predict --model.source runs/cat/domain --model.target {repository} \\
  --data.source cats/ --output translated
```

```python
import cyclelight

domain = cyclelight.load_domain("{repository}")
images = cyclelight.sample(domain, 4, steps=50)  # {shape} in [-1, 1]
```
{diffusers}
## What it is

| | |
| --- | --- |
{facts}

Made from `domain.json`; what it is good for and where it fails is for its maker to add.
"""

DIFFUSERS = """
It is a pipeline of diffusers too:

```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("{repository}")
image = pipeline(num_inference_steps=50).images[0]
```
"""


def _parser() -> ArgumentParser:
    parser = make_parser(
        "push",
        "DIR OWNER/NAME [--private] [--revision REV] [--dry-run]",
        "Publish a domain folder on the Hugging Face Hub.",
        epilog="The folder's README.md is the model card. If there is none, it is written from "
        "domain.json; look at it, edit it, and push again. Who you are is said by `hf auth login` "
        "or HF_TOKEN.",
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="The domain folder, such as runs/cat64/domain.")
    add("repository", metavar="OWNER/NAME", help="Where to; it is made if it is not there.")
    add("--private", action="store_true", help="Make it private, if it is not there yet.")
    add("--revision", type=str | None, help="A branch, made if it is not there; default main.")
    add(
        "--dry-run",
        action="store_true",
        help="Write and publish nothing: print the model card and the files.",
    )
    return parser


def push(args: list[str]) -> int:
    """`lightning push`; the exit code."""
    with usage():
        options = _parser().parse_args(args)
    folder, repository = Path(options.folder), options.repository
    if hub_name(f"{repository}@main") != (repository, "main"):
        raise UsageError(f"OWNER/NAME must be like jane/cat64, got {repository!r}")
    if not folder.is_dir():
        raise UsageError(f"DIR: there is no folder {folder}")
    # Seconds, which `--help` does not need.
    from cyclelight.domains.folder import load_domain
    from cyclelight.files import write_text

    with usage():
        files = published(folder)
        domain = load_domain(folder)  # With its weights, so that what is published does load.
    card = folder / "README.md"
    text = None if card.exists() else model_card(domain, folder, repository)
    if options.dry_run:
        print(text or card.read_text(encoding="utf-8", errors="replace"))
        print(f"to {repository}, nothing of it written or published yet:")
        print("\n".join(sorted({"README.md", *files})))
        return 0
    if text is not None:
        write_text(card, text)
        print(f"wrote {card}")
    print(upload(folder, repository, options.private, options.revision))
    return 0


def published(folder: Path) -> list[str]:
    """The files that are published, by their paths in the folder.

    Raises:
        ValueError: one is a link out of the folder, which the Hub's client would follow, so that a
            private file became public; or it is no file.
    """
    from cyclelight.domains.folder import FILES

    home, found = Path(os.path.realpath(folder)), []
    for pattern in ("README.md", *FILES):
        for file in folder.glob(pattern):
            # Also of a folder on the way to it.
            if not Path(os.path.realpath(file)).is_relative_to(home):
                raise ValueError(
                    f"DIR: {file} is a link to {os.path.realpath(file)}, out of {folder}; put the "
                    f"file itself there if it is to be published"
                )
            if not file.is_file():
                raise ValueError(f"DIR: {file} is no regular file")
            found.append(file.relative_to(folder).as_posix())
    return found


def upload(folder: Path, repository: str, private: bool, revision: str | None) -> str:
    """Where the domain is to be seen, after a commit with all its files.

    Raises:
        ConnectionError: the Hub refuses, or is out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            # By name: the client's own patterns reach into folders below.
            allow_patterns=[glob.escape(file) for file in published(folder)],
            commit_message="Upload the domain with cyclelight",
        )
    except Exception as error:  # of the Hub's client, of HTTP: a dozen kinds
        reason = hub_reason(error, repository, revision)
        if status(error) == 401:
            reason = f"{api.endpoint} does not know who you are: {LOGIN}"
        raise ConnectionError(f"{repository} is not published: {reason}") from error
    return str(commit.commit_url)


def model_card(domain: Any, folder: Path, repository: str) -> str:
    """The text of README.md, from what `domain.json` and the network's configuration say."""
    from huggingface_hub import ModelCardData

    card = {k: v for k, v in domain.card.items() if k not in ("name", "resolution", "channels")}
    licence = str(card.pop("data_licence", None) or "not stated")
    data = card.pop("data", None)
    parts = dict(data) if isinstance(data, dict) else {}
    schedule = domain.schedule
    count = sum(p.numel() for p in domain.denoiser.parameters())
    facts = {
        "images": f"{domain.resolution} x {domain.resolution}, {domain.channels} channels",
        "parameters": f"{count / 1e6:.1f} M",
        "noise schedule": f"{schedule.kind}, {schedule.timesteps} steps",
        "training data": parts.pop("root", None) or "not stated",
        "licence of the data": licence,
        **parts,
        **card,
    }
    rows = [f"| {_cell(key.replace('_', ' '))} | {_cell(value)} |" for key, value in facts.items()]
    # An autoencoder is not a part that DDPMPipeline knows.
    index = json.loads((folder / "model_index.json").read_text())
    plain = index.get("_class_name") == "DDPMPipeline" and not (folder / "vae").exists()
    licence_id, licence_name = _licence(licence)
    metadata = ModelCardData(
        library_name="diffusers",
        license=licence_id,
        license_name=licence_name,
        tags=["cyclelight", "cyclediffusion", "image-to-image", "unconditional-image-generation"],
    )
    return CARD.format(
        metadata=metadata.to_yaml(),
        name=domain.name,
        repository=repository,
        shape=(4, domain.channels, domain.resolution, domain.resolution),
        diffusers=DIFFUSERS.format(repository=repository) if plain else "",
        facts="\n".join(rows),
    )


def _licence(licence: str) -> tuple[str, str | None]:
    """The Hub's identifier of a licence, or `other` and a name that the Hub accepts."""
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    for known in LICENCES:
        if slug == known or slug.startswith(f"{known}-"):
            return known, None
    return ("unknown", None) if slug in ("", "not-stated") else ("other", slug)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    return printable(value, LONGEST_CELL).replace("|", r"\|").replace("\n", " ")
