"""Make a hub repository of a finished run: weights, record, model card; --dry-run only writes and shows it.

python scripts/publish.py results/runs/<run>.json me/name --dry-run      to published/me/name; needs no network
python scripts/publish.py results/runs/<run>.json me/name                ... and sends it (after `hf auth login`, and
                                                                         once the dry run's folder is removed)
python scripts/publish.py work/results/<run> me/name --to merged         a plain model instead of an adapter

Refused are runs whose code no commit holds, adapters on a backbone that was made here or came from a local folder (--to merged
holds it), and paths of this machine. Whoever downloads it repeats the run with `python scripts/verify.py FOLDER`.
"""

from pathlib import Path

from vera.commands import of_run, parser_of

ERROR = 2


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("source", type=Path, metavar="RUN_FOLDER_OR_RECORD")
    parser.add_argument("repo", metavar="NAME/REPO")
    of_run(parser)
    parser.add_argument("--dry-run", action="store_true", help="write the folder and show the card; send nothing")
    parser.add_argument("--out", type=Path, help="the folder to write (default: published/NAME/REPO)")
    parser.add_argument("--to", choices=("peft", "lora", "merged"), dest="form", help="default: the first that the method has")
    parser.add_argument("--license", dest="licence", metavar="ID", help="for the card, such as apache-2.0")
    parser.add_argument("--private", action="store_true", help="a private repository")
    options = vars(parser.parse_intermixed_args())
    dry, private = options.pop("dry_run"), options.pop("private")
    options["out"] = options["out"] or Path("published") / options["repo"]
    from vera.trained.publish import prepare, upload

    out, lines = options["out"], prepare(**options)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        print(f"{path}  {path.stat().st_size:,} bytes")
    print("; ".join(lines))
    if dry:
        print(f"\n{(out / 'README.md').read_text(encoding='utf-8')}\nnothing was sent (--dry-run)")
        return 0
    print(upload(out, options["repo"], private))
    return 0
