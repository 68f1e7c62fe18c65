"""`fovea data`, the verbs on a dataset that is built: score it, leave parts out, compare it, hand it on.

None of them rewrites a shard. Those that change what the dataset shows write its report again.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli_parser import Verbs, add_verb, new_file

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest

EXPORT_FORMATS = (
    *("fovea", "webdataset", "parquet", "obelics", "mmc4", "cauldron", "llava", "messages", "mint1t"),
)


def add_view_verbs(verbs: Verbs) -> None:
    p = add_verb(verbs, "score", _score, "give every sample or image a score, kept as a column",
                 "fovea data score data/mine --scorer captions\n"
                 "  fovea data score data/mine --scorer siglip:models/siglip")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument(
        "--scorer",
        required=True,
        metavar="SCORER",
        help="text, captions, siglip:DIR, clip:DIR, fovea:CHECKPOINT, or module:Class[:ARGUMENT]",
    )

    p = add_verb(verbs, "filter", _filter, "leave out what a score says; pixels are not touched",
                 "fovea data filter data/mine --keep 'clip>=0.28'\n"
                 "  fovea data filter data/mine --clear clip")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument(
        "--keep", metavar="RULE", help="COLUMN>=VALUE or COLUMN<=VALUE, in place of the rule before"
    )
    p.add_argument("--clear", metavar="COLUMN", help="take the rule on this column back")

    p = add_verb(verbs, "decontaminate", _decontaminate, "find a benchmark's images and texts",
                 "fovea data decontaminate data/mine --benchmark data/textvqa --out pairs.html")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("--benchmark", type=Path, required=True, metavar="DIR", help="its images and text files")
    p.add_argument("--out", type=new_file, required=True, metavar="FILE.html", help="the pairs side by side")
    p.add_argument("--remove", action="store_true", help="leave out what is found; else it is only shown")
    p.add_argument("--embed", metavar="MODEL", help="siglip:DIR or clip:DIR: compare what it sees as well")
    p.add_argument("--ngram", type=int, metavar="N", help="words in a row that count as shared (13)")
    p.add_argument("--distance", type=int, metavar="BITS", help="of 64, in which two pHashes may differ (10)")

    p = add_verb(verbs, "withdraw", _withdraw, "leave out what opted out, by id, address or generator",
                 "fovea data withdraw data/mine --domain example.org --reason 'opted out'\n"
                 "  fovea data withdraw data/mine --urls-from opted_out.txt")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")
    for option, what in _NAMED.items():
        p.add_argument(f"--{option}", action="append", default=[], metavar="NAME", help=f"{what}; repeatable")
        p.add_argument(f"--{option}s-from", type=Path, metavar="FILE", help="... one a line")
    p.add_argument("--reason", default="opted out", help="as it is counted (%(default)s)")

    p = add_verb(verbs, "diff", _diff, "what one dataset shows and another does not",
                 "fovea data diff data/v1 data/v2 --json")  # fmt: skip
    p.add_argument("a", type=Path, metavar="A")
    p.add_argument("b", type=Path, metavar="B")
    p.add_argument("--json", action="store_true", help="as JSON")

    p = add_verb(verbs, "export", _export, "what a dataset shows, in the format of other tools",
                 "fovea data export data/mine --to obelics --out mine_obelics")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")
    p.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="fovea: a copy without its exclusions")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--source", metavar="NAME")
    p.add_argument("--split", choices=("train", "heldout"))

    p = add_verb(verbs, "report", _report, "write report.html, funnel.json and card.md of a dataset anew",
                 "fovea data report data/mine")  # fmt: skip
    p.add_argument("directory", type=Path, metavar="DIR")


_NAMED = {
    "id": "a sample's id",
    "url": "address of a page or image; one that ends in * stands for all that begin so",
    "domain": "a domain with all below it",
    "generator": "name of the model that wrote synthetic samples",
    "image": "media_id of a picture",
}


def _score(args: argparse.Namespace) -> int:
    from data_pipeline.build.score.columns import score_dataset
    from data_pipeline.build.score.scorer import load_scorer

    for name, rows in score_dataset(args.directory, load_scorer(args.scorer), say=print).items():
        print(f"column '{name}': {rows:,} scores")
    print(f"  Yield against threshold:  fovea data stats {args.directory}")
    return 0


def _filter(args: argparse.Namespace) -> int:
    from data_pipeline.build.directory import locked
    from data_pipeline.build.look.report import write_report
    from data_pipeline.build.score.threshold import Rule, select, step_of
    from data_pipeline.errors import ConfigError
    from data_pipeline.manifest import read_manifest
    from data_pipeline.view import exclude

    if (args.keep is None) == (args.clear is None):
        raise ConfigError("give either --keep RULE or --clear COLUMN")
    read_manifest(args.directory)  # a lock would make the directory
    with locked(args.directory):
        if args.clear is not None:
            step = step_of(args.clear)
            if step not in {e.step for e in read_manifest(args.directory).exclusions}:
                raise ConfigError(f"{args.directory} has no rule on column '{args.clear}'")
            manifest = exclude(args.directory, step, (), {})
        else:
            step = step_of(Rule.parse(args.keep).column)
            manifest = exclude(args.directory, step, select(args.directory, args.keep), {"keep": args.keep})
        write_report(args.directory)
    print(_left_out(manifest, step))
    return 0


def _decontaminate(args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from data_pipeline.build.decontaminate.config import DecontaminateConfig
    from data_pipeline.build.decontaminate.page import page
    from data_pipeline.build.decontaminate.search import decontaminate, step_name
    from data_pipeline.build.directory import locked
    from data_pipeline.build.look.report import write_report
    from data_pipeline.build.score.scorer import load_embedder
    from data_pipeline.errors import ConfigError
    from data_pipeline.manifest import read_manifest
    from data_pipeline.view import exclude

    limits = {"texts": {"ngram": args.ngram}, "images": {"distance": args.distance}}
    asked = {k: {n: v for n, v in keys.items() if v is not None} for k, keys in limits.items()}
    try:
        config = DecontaminateConfig.model_validate({"remove": args.remove, **asked})
    except ValidationError as e:
        wrong = "\n".join(f"  --{x['loc'][-1]}: {x['msg']} (got {x['input']!r})" for x in e.errors())
        raise ConfigError(f"decontaminate:\n{wrong}") from None
    read_manifest(args.directory)
    args.out.parent.mkdir(parents=True, exist_ok=True)  # refused now rather than after the search
    with locked(args.directory):
        embed = load_embedder(args.embed) if args.embed else None
        report = decontaminate(args.directory, args.benchmark, config, embed=embed)
        if config.remove:
            made = config.model_dump(mode="json")
            step = step_name(args.benchmark)
            manifest = exclude(args.directory, step, report.exclusions, made)
            write_report(args.directory)
    args.out.write_text(page(report), encoding="utf-8")
    for name, value in report.summary().items():
        print(f"{name}: {value:,}")
    if config.remove:
        print(_left_out(manifest, step))
    elif report.images or report.texts:
        print("  Nothing is left out yet: repeat the command with --remove")
    print(f"wrote {args.out}: open it in a browser")
    return 0


def _withdraw(args: argparse.Namespace) -> int:
    from data_pipeline.build.look.report import write_report
    from data_pipeline.build.withdraw import describe, withdraw

    named = {option: [*getattr(args, option), *_lines(getattr(args, f"{option}s_from"))] for option in _NAMED}
    found = withdraw(
        args.directory,
        ids=named["id"],
        urls=named["url"],
        domains=named["domain"],
        generators=named["generator"],
        media_ids=named["image"],
        reason=args.reason,
    )
    write_report(args.directory)
    print("\n".join(describe(found)))
    if found.samples or found.images:
        copy = f"fovea data export {args.directory} --to fovea --out NEW"
        print(f"  The shards still hold it. To delete it:  {copy}")
    return 0


def _left_out(manifest: "Manifest", step: str) -> str:
    """What the step takes from the dataset as it is now, beyond what others take."""
    of_step = (e.counts for e in manifest.exclusions if e.step == step)
    counts = [n for sources in of_step for splits in sources.values() for n in splits.values()]
    samples, images = (sum(n.get(what, 0) for n in counts) for what in ("samples", "images"))
    shown = sum(manifest.sources().values())
    return f"left out by {step}: {samples:,} samples, {images:,} images; {shown:,} training samples are shown"


def _diff(args: argparse.Namespace) -> int:
    from data_pipeline.build.diff import describe, diff

    found = diff(args.a, args.b)
    print(json.dumps(dataclasses.asdict(found), indent=1) if args.json else "\n".join(describe(found)))
    return 0 if found.same else 1


def _export(args: argparse.Namespace) -> int:
    from data_pipeline.build.exporters.export import describe, export

    found = export(args.directory, args.out, args.to, source=args.source, split=args.split)
    print("\n".join(describe(found)))
    print(f"wrote {args.out}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from data_pipeline.build.look.report import write_report

    write_report(args.directory)
    print(f"wrote report.html, funnel.json and card.md into {args.directory}")
    return 0


def _lines(path: Path | None) -> list[str]:
    from data_pipeline.errors import ConfigError

    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is no text in UTF-8: {e.reason} at byte {e.start:,}") from None
