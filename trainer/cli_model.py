"""`fovea model`: what a recipe trains, without its weights."""

import argparse

from data_pipeline.cli_parser import Verbs, add_verb


def add_model_verb(verbs: Verbs) -> None:
    """Mount the verb among those of `fovea`."""
    p = add_verb(
        verbs,
        "model",
        _model,
        "parameters by module and stage, and FLOPs, from the recipe alone",
        "fovea model idefics2-8b",
    )
    p.add_argument("recipe", metavar="RECIPE", help="a YAML page, or the name of one that ships")
    p.add_argument("overrides", nargs="*", metavar="key=value")


def _model(args: argparse.Namespace) -> int:
    from trainer.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from trainer.sizes import table

    print("\n".join(table(recipe)))
    return 0
