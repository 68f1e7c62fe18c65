"""The page of packed rows says what stands in the tensors, and nothing in it runs."""

import base64
import io
import re
from dataclasses import replace

import lxml.html
import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.batch import Batch
from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import Variant, render
from data_pipeline.stream.collate import Document, Piece, collate
from data_pipeline.stream.decode import blank, decode
from data_pipeline.stream.rows import Placed
from data_pipeline.stream.show.chips import crossings, read_row, wrong_labels
from data_pipeline.stream.show.page import Origin, PackedRow, Step, rows_page, visible
from data_pipeline.stream.show.pictures import mask_picture, tile_pixels

SPEC = ImageSpec(longest_edge=64, patch=8)
K = 4
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{ 7*7 }}<!--</style>"


def noise(width: int, height: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue(), pixels


def document(sample, tokenizer, *, loss_on="all_text", split=False, pictures=None) -> Document:
    tokens = render(sample, tokenizer, K, loss_on, Variant(split=split))
    if pictures is None:
        pictures = [t for m in tokens.images for t in decode(sample.image_bytes[m], SPEC, split)]
    return Document(Piece(sample.id, sample.source, 0, tokens), tuple(pictures))


def batch_of(rows, tokenizer, length=192) -> Batch:
    return collate(rows, tokenizer=tokenizer, image=SPEC, image_tokens=K, sequence_length=length)


def causal(batch: Batch, row: int = 0) -> np.ndarray:
    """Who sees whom, by a loop."""
    ids = batch.document_ids[row].tolist()
    mask = np.zeros((len(ids), len(ids)), dtype=bool)
    for q, document in enumerate(ids):
        for k in range(q + 1):
            mask[q, k] = q == k or (document == ids[k] != 0)
    return mask


def page_of(batch: Batch, tokenizer, origins=None, *, mask=None, **step):
    said = {"recipe": "r", "stage": "s", "number": 1, "rows": (), "sequence_length": 192, "skipped": {}}
    rows = [
        PackedRow(
            batch,
            row,
            causal(batch, row) if mask is None else mask,
            origins or [Origin(f"source{n}") for n in range(len(batch.sample_ids[row]))],
        )
        for row in range(len(batch.input_ids))
    ]
    html = rows_page(rows, tokenizer, Step(**(said | step)))
    return html, lxml.html.document_fromstring(html)


def text_sample(text: str, **more) -> Sample:
    fields = {"id": "t", "kind": "text", "source": "s", "segments": (Segment(type="text", text=text),)}
    return Sample(**(fields | more))


def pixels_of(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def chips(page) -> list:
    return [e for p in page.xpath("//div[contains(@class,'document')]/p") for e in p.xpath("i|b")]


def test_the_pictures_on_the_page_are_the_pixels_of_the_batch(make, tokenizer):
    data, pixels = noise(32, 24)
    batch = batch_of([[document(make.caption(1, data), tokenizer)]], tokenizer)
    _, page = page_of(batch, tokenizer)
    [image] = page.xpath("//svg/image")
    assert np.array_equal(pixels_of(image.get("href")), pixels)
    assert page.xpath("//svg/@viewbox") == ["0 0 4 3"]  # columns and rows of patches


def test_the_grid_has_a_line_at_each_edge_of_a_patch(make, tokenizer):
    batch = batch_of([[document(make.caption(1, noise(32, 24)[0]), tokenizer)]], tokenizer)
    [path] = page_of(batch, tokenizer)[1].xpath("//svg/path/@d")
    assert re.findall(r"M(\d+) 0V3", path) == ["0", "1", "2", "3", "4"]
    assert re.findall(r"M0 (\d+)H4", path) == ["0", "1", "2", "3"]


def test_a_patch_is_shown_where_its_index_says_and_not_where_it_is_stored(make, tokenizer):
    data, pixels = noise(32, 24)
    batch = batch_of([[document(make.caption(1, data), tokenizer)]], tokenizer)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = replace(batch, patches=batch.patches[order], patch_index=batch.patch_index[order])
    assert np.array_equal(tile_pixels(moved, 0)[0], pixels)
    swapped = replace(batch, patches=batch.patches[order])
    assert not np.array_equal(tile_pixels(swapped, 0)[0], pixels)


def test_a_missing_patch_is_seen_and_said(make, tokenizer):
    batch = batch_of([[document(make.caption(1, noise(32, 24)[0]), tokenizer)]], tokenizer)
    less = replace(batch, patches=batch.patches[1:], patch_index=batch.patch_index[1:])
    pixels, notes = tile_pixels(less, 0)
    assert (pixels[:8, :8] == (255, 0, 255)).all()
    assert not (pixels[:8, 8:16] == (255, 0, 255)).all()
    assert notes == ("11 patches for 4 × 3 places",)
    assert "11 patches for 4 × 3 places" in page_of(less, tokenizer)[0]


def test_a_picture_that_could_not_be_read_is_said_to_be_grey(make, tokenizer):
    sample = make.caption(1)
    grey = document(sample, tokenizer, pictures=[blank(SPEC, (2, 3))])
    said = "stands in for a picture"
    assert said in page_of(batch_of([[grey]], tokenizer), tokenizer)[0]
    assert said not in page_of(batch_of([[document(sample, tokenizer)]], tokenizer), tokenizer)[0]


def test_the_tiles_of_a_split_picture_stand_together(make, tokenizer):
    whole, split = make.caption(1, noise(48, 32)[0]), make.caption(2, noise(32, 48)[0])
    row = [document(whole, tokenizer), document(split, tokenizer, split=True)]
    batch = batch_of([row], tokenizer)
    _, page = page_of(batch, tokenizer, [Origin("a"), Origin("b", split=True)])
    figures = page.xpath("//figure[.//svg]")
    assert [len(f.xpath(".//svg")) for f in figures] == [1, 5]
    assert [len(f.xpath(".//div[@class='quarters']/svg")) for f in figures] == [0, 4]
    assert "images 2 to 6: one picture" in figures[1].text_content()


def test_an_image_span_is_one_chip_that_says_its_size(make, tokenizer):
    batch = batch_of([[document(make.caption(1, noise(32, 24)[0]), tokenizer)]], tokenizer)
    _, page = page_of(batch, tokenizer)
    said = [c.text for c in chips(page) if "image" in (c.get("class") or "")]
    assert said == [f"image 1 ({K} tokens, 4×3 patches)"]


@pytest.mark.parametrize("text", ["plain words", "žluťoučký kůň 猫 🐈 e\u0301", "two\nlines"])
def test_the_chips_of_a_document_spell_its_text(text, bytes_tokenizer):
    batch = batch_of([[document(text_sample(text), bytes_tokenizer)]], bytes_tokenizer)
    _, page = page_of(batch, bytes_tokenizer)
    words = "".join(c.text for c in chips(page) if c.tag == "i")
    assert words.replace("↵\n", "\n") == text
    assert [c.text for c in chips(page) if c.tag == "b"] == ["<|bos|>", "<|eos|>"]


def test_a_character_of_several_tokens_is_one_chip_with_all_their_ids(bytes_tokenizer):
    batch = batch_of([[document(text_sample("猫"), bytes_tokenizer)]], bytes_tokenizer)
    [chip] = [c for c in read_row(batch, 0, bytes_tokenizer)[0].chips if c.kind == "text"]
    assert (chip.text, chip.ids, chip.tokens) == ("猫", tuple(bytes_tokenizer.encode("猫")), 3)


def test_targets_are_marked_and_what_is_only_shown_is_not(make, tokenizer):
    sample = make.dialogue(3)
    batch = batch_of([[document(sample, tokenizer, loss_on="answers")]], tokenizer)
    _, page = page_of(batch, tokenizer)
    on = [c for c in chips(page) if "on" in (c.get("class") or "").split()]
    answers = [s.text for s in sample.segments if s.role == "assistant"]
    assert "".join(c.text for c in on) == "<|end|>".join([*answers, ""])
    assert sum(c.tag == "b" for c in on) == len(answers)


def test_hovering_tells_position_column_and_id(make, tokenizer):
    row = [document(text_sample("a red ring"), tokenizer), document(text_sample("a square"), tokenizer)]
    batch = batch_of([row], tokenizer)
    _, page = page_of(batch, tokenizer)
    first = len(row[0].piece.tokens)
    said = [c.get("title") for c in chips(page) if c.text == "<|bos|>"]
    bos = tokenizer.bos_id
    assert said == [f"position 0 · column {n} · id {bos}" for n in (0, first)]


def test_text_from_data_never_becomes_markup(make, tokenizer):
    sample = replace(make.caption(1), id=HOSTILE)
    sample = replace(
        sample,
        segments=(*sample.segments[:1], Segment(type="text", text=HOSTILE, role="alt")),
        media=(Media(media_id=HOSTILE, alt=HOSTILE),),
    )
    batch = batch_of([[document(sample, tokenizer)]], tokenizer)
    placed = (Placed(HOSTILE, 0, 0, 0, 0, 10, 1, 4),)
    html, page = page_of(
        batch,
        tokenizer,
        [Origin(HOSTILE)],
        recipe=HOSTILE,
        stage=HOSTILE,
        rows=(placed,),
        skipped={HOSTILE: 2},
    )
    assert not page.xpath("//script")
    assert len(page.xpath("//style")) == 1
    assert not page.xpath("//*[@*[starts-with(name(), 'on')]]")
    assert all(uri.startswith("data:image/") for uri in page.xpath("//@src | //@href"))
    assert not page.xpath("//comment()")
    assert "".join(c.text for c in chips(page) if c.tag == "i").endswith(HOSTILE)
    for place in ("//h1", "//h3", "//td"):
        assert any(HOSTILE in e.text_content() for e in page.xpath(place)), place
    assert "default-src 'none'" in html


def test_what_has_no_shape_or_turns_the_writing_is_spelt_out(bytes_tokenizer):
    assert visible("a\0b\u202ec\u200bd\te\n👩\u200d🚀") == "a⟨U+0000⟩b⟨U+202E⟩c⟨U+200B⟩d⇥\te↵\n👩\u200d🚀"
    batch = batch_of([[document(text_sample("x\u202ey\x1b[31m"), bytes_tokenizer)]], bytes_tokenizer)
    html, _ = page_of(batch, bytes_tokenizer)
    assert "⟨U+202E⟩" in html
    assert not set("\u202e\x1b") & set(html)


def test_the_mask_shows_what_is_seen_and_nothing_else(tokenizer):
    row = [document(text_sample("a red ring"), tokenizer), document(text_sample("a square"), tokenizer)]
    batch = batch_of([row], tokenizer, length=40)
    mask, documents = causal(batch), batch.document_ids[0].numpy()
    picture = pixels_of(mask_picture(mask, documents))
    assert np.array_equal(picture[..., 3] > 0, mask)
    # Each document in one colour, that of its neighbour another.
    colours = [{tuple(c) for c in picture[documents == n][..., :3].reshape(-1, 3)} for n in (0, 1, 2)]
    assert [len(c) for c in colours] == [1, 1, 1]
    assert len(set.union(*colours)) == 3


def test_a_mask_too_large_for_the_page_keeps_every_lone_pair():
    mask = np.zeros((1000, 1000), dtype=bool)
    pairs = [(0, 0), (999, 3), (500, 499), (123, 45)]
    for pair in pairs:
        mask[pair] = True
    picture = pixels_of(mask_picture(mask, np.ones(1000, dtype=np.int64)))
    cell = -(-1000 // 320)
    assert picture.shape[:2] == (250, 250)
    cells = {(q // cell, k // cell) for q, k in pairs}
    assert set(zip(*np.nonzero(picture[..., 3]), strict=True)) == cells
    assert min(picture[c][3] for c in cells) > 80  # of 255: seen on the page, though a sixteenth of its cell


def test_pairs_that_see_each_other_across_documents_are_counted(tokenizer):
    row = [document(text_sample("a red ring"), tokenizer), document(text_sample("a square"), tokenizer)]
    batch = batch_of([row], tokenizer, length=40)
    sound = causal(batch)
    assert crossings(batch, 0, sound) == 0
    said = "across documents"
    assert said not in page_of(batch, tokenizer, mask=sound)[0]
    first, second = (int((batch.document_ids == n).sum()) for n in (1, 2))
    padding = 40 - first - second
    assert crossings(batch, 0, np.ones((40, 40), dtype=bool)) == 40**2 - first**2 - second**2 - padding
    leaking = sound.copy()
    leaking[first, first - 1] = True
    assert crossings(batch, 0, leaking) == 1
    assert f"1 pair of positions see each other {said}" in page_of(batch, tokenizer, mask=leaking)[0]


def test_a_target_that_is_not_the_next_token_is_counted(make, tokenizer):
    batch = batch_of(
        [[document(make.document(1), tokenizer), document(make.caption(2), tokenizer)]], tokenizer
    )
    assert wrong_labels(batch, 0) == 0
    unshifted = replace(batch, labels=torch.roll(batch.labels, 1, dims=1))
    assert wrong_labels(unshifted, 0) > 0
    assert "not of the next token" in page_of(unshifted, tokenizer)[0]
    assert "not of the next token" not in page_of(batch, tokenizer)[0]
    across = batch.labels.clone()
    last = int((batch.document_ids[0] == 1).sum()) - 1
    across[0, last] = batch.input_ids[0, last + 1]  # the first token of the next document
    assert wrong_labels(replace(batch, labels=across), 0) == 1


def test_the_summary_counts_the_whole_step_and_the_rows_shown(make, tokenizer):
    row = [document(make.caption(1), tokenizer), document(make.document(2), tokenizer)]
    batch = batch_of([row], tokenizer)
    planned = (
        (Placed("caps", 0, 0, 0, 0, 30, 1, 6), Placed("docs", 2, 0, 0, 0, 100, 1, 6)),
        (Placed("docs", 1, 0, 0, 0, 170, 2, 12),),
    )
    _, page = page_of(
        batch, tokenizer, [Origin("caps"), Origin("docs")], rows=planned, skipped={"no targets": 3, "x": 5}
    )
    cards = [e.text_content() for e in page.xpath("//div[@class='cards']/div")]
    assert cards[0].startswith("2rows")
    assert cards[1].startswith(f"{300 / 384:.1%}full")
    assert cards[3] == "300tokens"
    assert cards[4] == "4images, 24 patches"
    tokens, targets = sum(len(d.piece.tokens) for d in row), batch.target_tokens
    assert f"{targets:,} of the {tokens:,} tokens below" in cards[5]
    sources, skipped = (
        [[td.text_content().strip() for td in tr.xpath("td")] for tr in table.xpath(".//tr[td]")]
        for table in page.xpath("//table")
    )
    learnt = [int(d.piece.tokens.loss[1:].sum()) for d in row]
    assert sources == [
        ["docs", "2", "270", "90.0%", "3", "18", str(learnt[1])],
        ["caps", "1", "30", "10.0%", "1", "6", str(learnt[0])],
    ]
    assert skipped == [["x", "5"], ["no targets", "3"]]
    assert [h.text_content().split()[0] for h in page.xpath("//h3")] == ["cap1", "doc2"]


def test_a_row_told_wrongly_is_refused(make, tokenizer):
    batch = batch_of([[document(make.caption(1), tokenizer)]], tokenizer)
    with pytest.raises(ValueError, match="2 origins for 1 documents"):
        page_of(batch, tokenizer, [Origin("a"), Origin("b")])
    with pytest.raises(ValueError, match=r"a mask of \(3, 3\) for a row of 192"):
        page_of(batch, tokenizer, mask=np.ones((3, 3), dtype=bool))
