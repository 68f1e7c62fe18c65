"""The page of a step shows the rows that training gets in that step, and leaves the run as it was."""

import lxml.html
import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.stream.datasets import Datasets
from data_pipeline.stream.tokens import Tokenizer
from trainer.config import load_recipe
from trainer.preview import preview
from trainer.stage_stream import open_stream


@pytest.fixture
def run(run_dir):
    recipe = load_recipe(str(run_dir / "recipe.yaml"), [])
    return run_dir, recipe, recipe.stage("instruct")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_page_shows_the_rows_that_the_step_trains_on(run, tmp_path, ranks):
    directory, recipe, stage = run
    out = tmp_path / "rows.html"
    shown = preview(recipe, stage, directory, out, step=2, rows=3, ranks=ranks)
    tokenizer = Tokenizer.load(directory / recipe.backbones.path / "tokenizer")
    datasets = Datasets.read(recipe.data.datasets, base=directory)
    stream = open_stream(recipe, stage, directory, datasets, tokenizer, world_size=ranks)
    stream.next()
    rows = [(b, row) for b in stream.next() for row in range(len(b.input_ids))][:3]
    stream.close()
    assert (shown.shown, shown.planned) == (len(rows), 4)
    page = lxml.html.document_fromstring(out.read_text())
    ids = [h.text_content().split()[0] for h in page.xpath("//h3")]
    assert ids == [i for batch, row in rows for i in batch.sample_ids[row]]
    positions = [s.split(" of ")[0].strip() for s in page.xpath("//h2/following-sibling::p[1]/text()")]
    tokens = [str(int((b.document_ids[row] != 0).sum())) for b, row in rows]
    assert [p for p in positions if p.isdigit()] == tokens
    assert not page.xpath("//p[@class='bad']")
    assert "instruct, step 2" in page.xpath("//h1")[0].text


def test_looking_writes_nothing_into_the_run_but_sizes(run, tmp_path):
    directory, recipe, stage = run
    before = {p for p in directory.rglob("*") if p.is_file()}
    preview(recipe, stage, directory, tmp_path / "rows.html")
    made = {p.relative_to(directory) for p in directory.rglob("*") if p.is_file()} - {
        p.relative_to(directory) for p in before
    }
    assert {p.parts[0] for p in made} <= {recipe.data.sizes}


@pytest.mark.parametrize("step", [0, 5])
def test_a_step_that_the_stage_does_not_have_is_refused(run, tmp_path, step):
    directory, recipe, stage = run
    with pytest.raises(ConfigError, match=f"--step {step}: stage 'instruct' has the steps 1 to 4"):
        preview(recipe, stage, directory, tmp_path / "rows.html", step=step)
    assert not (tmp_path / "rows.html").exists()
