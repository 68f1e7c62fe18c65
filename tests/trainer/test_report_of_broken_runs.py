"""A report is made of whatever there is: empty, cut off or foreign files do not stop it."""

from trainer.cli import main
from trainer.observe.report import write_report
from written_run import STAGES, make_run, write_dataset, write_recipe, write_stage


def test_an_empty_directory_makes_a_page_that_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for said in (
        "No stage has started",
        "No metrics yet",
        "No evaluation yet",
        "No examples yet",
        "No manifest",
    ):
        assert said in page


def test_a_run_that_is_not_there_is_refused_and_not_made(tmp_path, capsys):
    assert main(["report", str(tmp_path / "rnu")]) == 3
    assert "rnu: no such directory" in capsys.readouterr().err
    assert not (tmp_path / "rnu").exists()


def test_a_run_with_a_recipe_and_no_step_yet(tmp_path):
    write_recipe(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "align → pretrain → documents → instruct" in page
    assert "No metrics yet" in page


def test_one_stage_cut_off_in_the_middle_of_a_line(tmp_path):
    run = tmp_path / "run"
    write_recipe(run)
    write_stage(run, "align", 0, steps=40)
    path = run / "align" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "align", "step": 41, "loss": NaN}\n{"stage": "align", "st')
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '41 <span class="small">of 150</span>' in page
    assert "align/metrics.jsonl: 1 of 42 lines could not be read" in page
    assert "No evaluation yet" in page


def test_files_of_another_kind_are_named_and_do_not_stop_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "env.json").write_text("{")
    (run / "run.json").write_text("[1]")
    (run / "recipe.resolved.yaml").write_text("a: [")
    (run / "data" / "manifest.json").write_text("{}")
    (run / "align" / "eval" / "step_150" / "results.json").write_text(
        '{"vqa": 3, "captions": {"CIDEr": "x"}}'
    )
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "env.json: not JSON" in page
    assert "recipe.resolved.yaml: not YAML" in page
    for name in STAGES:
        assert f">{name}<" in page


def test_the_dataset_may_stand_elsewhere(tmp_path):
    write_recipe(tmp_path / "run")
    write_dataset(tmp_path / "elsewhere")
    write_report(tmp_path / "run", tmp_path / "report.html", dataset=tmp_path / "elsewhere")
    assert "12,000 read" in (tmp_path / "report.html").read_text()
