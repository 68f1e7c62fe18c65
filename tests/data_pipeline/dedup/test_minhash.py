"""MinHash through datatrove's executors: its signatures and clusters, whole files only, any tasks."""

import random
from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupFilter, MinhashDedupSignature
from datatrove.utils.text import simplify_text

from data_pipeline.build.dedup import minhash as mh
from data_pipeline.build.dedup.config import DedupConfig, MinHash
from data_pipeline.build.dedup.corpus import Corpus
from data_pipeline.build.dedup.run import exclusions
from data_pipeline.build.executor import LocalExecutor
from data_pipeline.errors import DataError

VOCABULARY = [f"{a}{b}" for a in "ba de fi go lu ma ne".split() for b in "lo ri ta vu xe".split()]  # noqa: SIM905


def text(seed: int, words: int = 120) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(VOCABULARY) for _ in range(words))


def altered(original: str, seed: int, words: int = 2) -> str:
    draw, parts = random.Random(seed), original.split()
    for _ in range(words):
        parts[draw.randrange(len(parts))] = "other"
    return " ".join(parts)


@pytest.fixture
def corpus(tmp_path, copies) -> Corpus:
    """20 texts; numbers 0-4 come again, a little altered, and number 0 is held out as well."""
    train = [copies.document(f"t{n:02d}", text(n)) for n in range(20)]
    train += [copies.document(f"u{n:02d}", altered(text(n), n)) for n in range(5)]
    train += [copies.caption("pair", copies.encoded(copies.picture(1)), text(7))]
    held = [copies.document("held", altered(text(0), 50), source="other")]
    manifest = copies.dataset(tmp_path, [("train", train), ("heldout", held)])
    return Corpus.of(tmp_path, manifest)


CONFIG = DedupConfig.model_validate({"documents": {"exact": False, "minhash": {}}})
EXPECTED = {"t00", "u00", "u01", "u02", "u03", "u04"}


def run(corpus: Corpus, work: Path, **how) -> list:
    return list(exclusions(Corpus(corpus.directory, corpus.shards), CONFIG, work, **how))


def test_the_later_text_goes_and_the_held_out_one_stays_for_any_number_of_tasks(corpus, tmp_path):
    one = run(corpus, tmp_path / "one")
    assert {e.id for e in one} == EXPECTED
    assert next(e.detail for e in one if e.id == "u00") == "of sample held"
    three = run(corpus, tmp_path / "three", tasks=3, executor=LocalExecutor(2))
    assert {(e.id, e.detail) for e in three} == {(e.id, e.detail) for e in one}
    assert not (tmp_path / "one" / "dedup").exists()


def test_signatures_are_those_of_datatrove_bit_for_bit(tmp_path):
    config = mh.datatrove_config(MinHash())
    theirs = MinhashDedupSignature(str(tmp_path), config=config, language=mh.Words())
    ours = mh.Signatures(str(tmp_path), config=config, language=mh.Words())
    for odd in (
        "",
        "one two",
        "a b c d e",
        "Größe — «12.5» km, naïve Ⅷ ﬁn",
        "天地 玄黄 สวัสดี e\u0301te\u0301 " * 3,
    ):
        assert ours.get_shingles(odd).tolist() == theirs.get_shingles(odd).tolist()
    for n in (5, 40, 9000):
        shingles = ours.get_shingles(" ".join(f"w{chr(97 + k % 26)}{k}" for k in range(n)))
        assert ours.get_signature(shingles) == theirs.get_signature(shingles)


def test_datatroves_filter_leaves_as_many_of_each_cluster(corpus, tmp_path):
    folder, jobs = mh.jobs(corpus, MinHash(), tmp_path / "w", 1)
    for job in jobs:
        LocalExecutor().run(job)
    docs = [Document(text="x", id=r["id"]) for _, _, r in corpus.rows(("id",))]
    left = {d.id for d in MinhashDedupFilter(str(folder / "clusters")).run(docs, 0, 1)}
    assert len(left) == len(docs) - len(EXPECTED)
    found = {e.id for e in mh.near_text_exclusions(corpus, folder, 1)}
    groups = [{"held", "t00", "u00"}, *({f"t0{n}", f"u0{n}"} for n in range(1, 5))]
    assert all(len(g & left) == 1 and len(g - found) == 1 for g in groups)


def test_words_are_found_in_every_script_without_a_download():
    simple = simplify_text("Größe, 12 apples; 天地玄黄 สวัสดี")
    assert mh.Words().word_tokenize(simple)[:3] == ["große", "0", "apples"]
    assert len(mh.Words().word_tokenize(simple)) > 7


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, Path.unlink])
def test_a_stage_does_not_start_on_files_that_are_not_whole_and_the_rerun_makes_them_again(
    corpus, tmp_path, damage
):
    folder, (signatures, buckets, _) = mh.jobs(corpus, MinHash(), tmp_path / "w" / "dedup", 2)
    LocalExecutor().run(signatures)
    assert signatures.left() == []
    file = folder / "signatures" / "bucket_004" / "00001.minhash.sig"
    sound = file.read_bytes()
    damage(file)
    with pytest.raises(DataError, match="incomplete"):
        LocalExecutor().run(buckets)
    assert signatures.left() == [1]
    LocalExecutor().run(signatures)
    assert file.read_bytes() == sound
    assert {e.id for e in run(corpus, tmp_path / "w", tasks=2)} == EXPECTED


def test_a_task_that_died_before_its_seal_is_done_again(corpus, tmp_path):
    _, (signatures, *_) = mh.jobs(corpus, MinHash(), tmp_path, 2)
    broken = [s for s in signatures.pipeline if not isinstance(s, mh.Seal)]
    LocalExecutor().run(type(signatures)(**{**vars(signatures), "pipeline": broken}))
    assert signatures.left() == [0, 1]


def test_another_configuration_or_input_does_not_reuse_what_is_there(corpus, tmp_path):
    folder, _ = mh.jobs(corpus, MinHash(), tmp_path, 2)
    assert mh.jobs(corpus, MinHash(), tmp_path, 2)[0] == folder
    assert mh.jobs(corpus, MinHash(ngram=4), tmp_path, 2)[0] != folder
    corpus.exclude_row(0, "r", "d")
    assert mh.jobs(corpus, MinHash(), tmp_path, 2)[0] != folder
