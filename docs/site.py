"""What mkdocs does beside docs/: README.md and its neighbours become pages, and links that leave docs/ find their targets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from mkdocs.structure.files import File

from vera import nn

ROOT = Path(__file__).resolve().parent.parent
# What pages outside docs/ and pictures are called on the site: the path that they have in the repository.
_SHOWN = re.compile(r"(README|CONTRIBUTING|CHANGELOG)\.md|LICENSE|CITATION\.cff|results/.*\.(md|png|pdf|yaml)")


def on_files(files, config):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in filter(_SHOWN.fullmatch, tracked):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """docs/x.md is x.md on the site, and what was beside docs/ is beside it."""
    markdown = markdown.replace(
        "::: vera.nn\n", "\n".join(f"::: vera.nn.{home}.{name}" for name, home in nn._HOMES.items()) + "\n"
    )
    if page.file.src_uri.count("/"):
        return re.sub(r"\]\((?:\.\./)+docs/", lambda match: match[0].replace("docs/", ""), markdown)
    return re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)
