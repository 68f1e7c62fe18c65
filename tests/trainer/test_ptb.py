"""Caption tokens against the Stanford PTBTokenizer: its recorded output, and the program where it runs."""

import json
import random
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from trainer.evaluation.ptb import tokenize

REFERENCE = Path(__file__).parents[3] / "shared" / "evalref" / "captioning"
needs_reference = pytest.mark.skipif(
    not REFERENCE.exists(), reason="the reference scores (../shared/evalref) are not on this machine"
)

# The program wrote the right-hand sides (a line "A man" stood behind each); `~` is a no-break space.
RECORDED = {
    "A cat, asleep.": "a cat asleep",
    "The cat's paw isn't wet!": "the cat 's paw is n't wet",
    "They don't; we cannot": "they do n't we can not",
    "gonna, 'tis 'twas": "gon na 't is 't was",
    "a close-up of a tub/shower (blue)": "a close-up of a tub/shower -lrb- blue -rrb-",
    "the clock says 11:44, or 5:54pm": "the clock says 11:44 or 5:54 pm",
    "corner of Main St. and W. First": "corner of main st. and w. first",
    'two boys\' bikes -- both "red" ...': "two boys bikes both red",
    "bus #41 & 50%": "bus # 41 & 50 %",
    "22 3/4 Street": "22~3/4 street",
    "plan b.": "plan b",
    "etc. and 6 ft. in the U.S.": "etc. and 6 ft. in the u.s.",
    "Ph.D. student of J.K. Rowling": "ph.d. student of j.k. rowling",
    "No. 7 train, no. Five": "no. 7 train no five",
    "jan.x y": "jan. x y",
    "??? wow!? what?no": "??? wow !? what?no",
    "1+1 = 2": "1 +1 = 2",
    "big,red-hot dog": "big,red-hot dog",
    "a&w and A&W": "a & w and a&w",
    "#hashtag @home # 1": "#hashtag @home # 1",
    "US$5 £5 5¢": "us$ 5 # 5 5 cents",
    "y'all at 5 o'clock": "y' all at 5 o'clock",
    "rock 'n' roll, rock'n'roll": "rock 'n' roll rock 'n' roll",
    "the '80s, the 80's": "the '80s the 80 's",
    "shouldn't've": "should n't 've",
    "<unk> and <a dog>": "<unk> and <a~dog>",
    "** dog :) 8-)": "** dog :-rrb- 8 -rrb-",
    "c++ and C#": "c++ and c#",
    "(555) 123-4567": "-lrb-555-rrb-~123-4567",
    "http://x.com/abc. me@home.com": "http://x.com/abc me@home.com",
    "Tom &amp; Jerry": "tom & jerry",
    "½ cup of 1½": "1/2 cup of 1 1/2",
    "it’s “quoted” — here…": "it 's quoted here",
    "cat., dog": "cat. dog",
    "¿qué? ¡hola!": "¿ qué ¡ hola",
    "猫。狗、鸟": "猫 。 狗 、 鸟",
    "ｎｏ？ a～b，c！": "ｎｏ ？ a ～ b ， c ！",
    "no ① and Ⅷ": "no ① and",
    "half 1 ⁄ 2": "half 1 ⁄ 2",
    "हिन्दी में बिल्ली": "हिन्दी में बिल्ली",
    "แมวนั่ง": "แมวนั่ง",
    "חָתוּל ק״ג": "חָתוּל ק ״ ג",
    "„quoted‚ text‘": "„ quoted ‚ text",
    "the `'90s, dog’'s": "the '90s dog 's",
    "5\u00ad5 and 1٫5": "55 and 1٫5",
    "a \\* b": "a \\* b",
    "see\u00a0www.a.com  \u00a0www.b.com": "see~www.a.com www.b.com",
    "": "",
    " \n.": "",
}


@pytest.mark.parametrize("caption", RECORDED)
def test_tokens_are_those_that_the_program_wrote(caption):
    assert tokenize(caption) == [word.replace("~", "\u00a0") for word in RECORDED[caption].split()]


@needs_reference
def test_tokens_equal_the_reference_on_every_caption():
    pairs = json.loads((REFERENCE / "ptb" / "pairs.json").read_text())
    raw = json.loads((REFERENCE / "coco_fakecap126" / "input.json").read_text())
    done = json.loads((REFERENCE / "coco_fakecap126" / "tokenized.json").read_text())
    both = [(p["raw"], p["ptb"]) for p in pairs]
    for image, r in raw.items():
        both += zip([r["hyp"], *r["refs"]], [done[image]["hyp"], *done[image]["refs"]], strict=True)
    assert len(both) > 1000
    assert [r for r, t in both if " ".join(tokenize(r)) != t] == []


@pytest.mark.parametrize(
    "piece", ["a", "a.", "@", "a-", "<a ", "1,", "n'", "a@b.", "&a", "#", "(", "http://"]
)
def test_a_model_that_repeats_itself_costs_no_time(piece):
    start = time.process_time()
    tokenize(piece * 1000)
    assert time.process_time() - start < 20


def program() -> Path | None:
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    return next((Path(p) / "tokenizer" / "stanford-corenlp-3.4.1.jar" for p in places or ()), None)


@pytest.mark.slow
@pytest.mark.skipif(not program() or not shutil.which("java"), reason="needs java and pycocoevalcap")
def test_tokens_equal_the_programs_on_mangled_captions(tmp_path):
    """Made-up captions with marks, signs and abbreviations put in anywhere."""
    rng = random.Random(0)
    words = [
        "A",
        "The",
        "man's",
        "dog",
        "t-shirt",
        "don't",
        "12",
        "3-d",
        "red/blue",
        "St.",
        "U.S.",
        "mid-air",
    ]
    marks = [
        *".,!?;:'\"()-/&#$%*@+=_ ",
        "'s",
        "n't",
        " st.",
        "...",
        "--",
        " 5",
        " 1/2",
        "a.m.",
        " etc.",
        "I. ",
        *"‘’“”„–—…½²°€£¿¡é①。，！⁄\u00a0\u0301\u200b",
        "`'90s",
        "’'s",
        "\\*",
    ]
    lines = []
    for _ in range(3000):
        line = " ".join(rng.choices(words, k=rng.randint(3, 12)))
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(line))
            line = line[:place] + rng.choice(marks) + line[place:]
        lines.append(line.strip())
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"{line}\nA man\n" for line in lines), encoding="utf-8")
    command = [
        "java",
        "-Dfile.encoding=UTF-8",
        "-cp",
        str(program()),
        "edu.stanford.nlp.process.PTBTokenizer",
    ]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(file)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    dropped = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    theirs = [
        [w for w in line.rstrip().split(" ") if w not in dropped] for line in done.stdout.split("\n")[::2]
    ]
    wrong = [
        (line, t) for line, t in zip(lines, theirs, strict=False) if tokenize(line) != [w for w in t if w]
    ]
    assert len(theirs) >= len(lines)
    assert wrong == []
