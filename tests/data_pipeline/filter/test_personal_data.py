"""Personal data is replaced, and nothing that only looks like it."""

import json
import random
import string
import time

import pytest

from data_pipeline.build.filter.config import FilterConfig
from data_pipeline.build.filter.personal import replace_personal_data
from data_pipeline.build.filter.steps import text_steps
from data_pipeline.sample import Media, Sample, Segment

ALL = ("email", "ip", "phone")
FOUND = {
    "Write to jane.doe+news@mail.example.co.uk, please.": "Write to [EMAIL], please.",
    "a_b-c%d@x-y.museum": "[EMAIL]",
    "<bob@example.org>": "<[EMAIL]>",
    "mailto:bob@example.org.": "mailto:[EMAIL].",
    "Logged in from 93.184.216.34.": "Logged in from [IP].",
    "at 8.8.8.8:53, then": "at [IP]:53, then",
    "host 2a00:1450:4001:81b::200e answered": "host [IP] answered",
    "Ring +44 20 7946 0958 today": "Ring [PHONE] today",
    "+49 (30) 901820-0, or": "[PHONE], or",
    "+14155552671": "[PHONE]",
    "+33.1.42.68.53.00": "[PHONE]",
    "(415) 555-2671 or 415-555-2671": "[PHONE] or [PHONE]",
    "1-800-555-0199": "[PHONE]",
    "415.555.2671": "[PHONE]",
    "Tel: 020 7946 0958.": "Tel: [PHONE].",
    "Fax 030/901820": "Fax [PHONE]",
    "Call us at 555 867 5309!": "Call us at [PHONE]!",
}
KEPT = [
    "ISBN 978-0-306-40615-7 and 0-306-40615-2",
    "On 2011-12-13 at 12:34:56, 13.12.2011 or 12/13/2011",
    "It cost $1,234,567.89, or 1.234.567,89 EUR.",
    "Between 1914-1918 and 1939-1945",
    "pi is 3.14159265358979 and e is 2.718281828",
    "The +1.5 to +2.0 range; +41.40338 2.17403",
    "version 1.2.3.4 and v10.0.22621.1 of the program",
    "Section 3.1.2.4 of RFC 2616",
    "10.0.0.1, 192.168.1.10 and 127.0.0.1 are no one's",
    "999.888.777.666 and 1.2.3.4.5",
    "std::vector dead::beef 12:34:56:78",
    "icon@2x.png and a@b and @handle and x @ y.com",
    "Order 123-4567890-1234567, serial 415-555-26712",
    "Population 7 800 000 000; NGC 6302; M 31",
    "call 911 or the phone 2000 times",
    "EAN 4006381333931, 4012-3456-7890-1234",
    "10 000 000 stars, 1 000 000 km, 299 792 458 m/s",
    "E = 1.602e-19, 6.02214076e+23",
    "aspect 16:9, score 3-2, sizes 1200-800-4000",
]


@pytest.mark.parametrize("text", FOUND)
def test_personal_data_is_replaced(text):
    found, counts = replace_personal_data(text, ALL)
    assert found == FOUND[text]
    assert sum(counts.values()) == found.count("[EMAIL]") + found.count("[IP]") + found.count("[PHONE]")


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_it_stays(text):
    assert replace_personal_data(text, ALL) == (text, {})


def test_only_the_kinds_that_are_asked_for_are_replaced():
    text = "bob@example.org 8.8.8.8 +14155552671"
    assert replace_personal_data(text, ("ip",))[0] == "bob@example.org [IP] +14155552671"
    assert replace_personal_data(text, ())[0] == text


def test_replacing_twice_changes_nothing_more():
    for text in FOUND:
        once, _ = replace_personal_data(text, ALL)
        assert replace_personal_data(once, ALL) == (once, {})


def test_real_captions_questions_and_textbooks_are_not_touched(request):
    folder = request.config.rootpath.parent / "shared/realdata"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    texts = [c for r in json.loads((folder / "coco_cc/captions.json").read_text()) for c in r["captions"]]
    texts += [f"{r['question']} {r['answer']}" for r in json.loads((folder / "vqa_rad/qa.json").read_text())]
    for line in (folder / "openstax_astronomy/interleaved.jsonl").read_text().splitlines():
        texts += [v for part in json.loads(line)["sequence"] for v in part.values() if isinstance(v, str)]
    assert len(texts) > 1000
    changed = [t for t in texts if replace_personal_data(t, ALL)[0] != t]
    assert changed == []


def test_random_text_without_digits_or_at_signs_is_never_changed():
    rng = random.Random(0)
    letters = string.ascii_letters + string.punctuation.replace("@", "") + "  \n"
    for _ in range(300):
        text = "".join(rng.choices(letters, k=200))
        assert replace_personal_data(text, ALL) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        "+1" + "1" * 200_000,
        "tel 1 " * 50_000,
        "a." * 100_000 + "@",
        "1" * 200_000,
        "+1 " * 60_000,
        "1.2." * 50_000,
        "2001:" * 40_000,
        "x@" * 100_000,
    ],
    ids=["long", "called", "dots", "digits", "plus", "quads", "colons", "at"],
)
def test_no_text_takes_long(text):
    start = time.process_time()
    replace_personal_data(text, ALL)
    assert time.process_time() - start < 20  # a square of its length: hours


def test_the_step_replaces_in_texts_and_alternative_texts_and_counts():
    sample = Sample(
        id="x",
        kind="instruct",
        source="s",
        segments=(
            Segment(type="text", text="who is a@b.org?", role="user"),
            Segment(type="image", media=0),
            Segment(type="text", text="c@d.org, +14155552671", role="assistant"),
        ),
        media=(Media(media_id="m", alt="portrait of e@f.org"),),
        image_bytes=(b"",),
    )
    (step,) = text_steps({"s": FilterConfig(personal_data=ALL)})
    found = step.judge(sample).sample
    assert [s.text for s in found.segments] == ["who is [EMAIL]?", None, "[EMAIL], [PHONE]"]
    assert found.media[0].alt == "portrait of [EMAIL]"
    assert [line["action"] for line in found.lineage] == ["replace 3 email", "replace 1 phone"]
