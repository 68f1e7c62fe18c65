"""A question as the model is asked it: examples before it, its pictures where its text names them.

Whatever is drawn depends on the seed and the ids alone: not on the order of a file, the number of ranks or a
limit.
"""

import hashlib
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.errors import DataError
from data_pipeline.image_spec import ImageSpec
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import prompt
from data_pipeline.stream.decode import decode
from data_pipeline.stream.tokens import Tokenizer
from trainer.evaluation.generate import Prompt
from trainer.evaluation.question import Question, picture_bytes
from trainer.evaluation.task import Task

LETTERS = string.ascii_uppercase


def in_order(questions: Sequence[Question], seed: int) -> list[Question]:
    """An order that depends on ids alone; a limit takes the first of it."""
    return sorted(questions, key=lambda q: hashlib.sha256(f"{seed}:{q.id}".encode()).digest())


def blind_partners(questions: Sequence[Question]) -> list[Question]:
    """For each the next one about another picture; itself where there is none."""
    found = []
    for i, q in enumerate(questions):
        others = (questions[(i + k) % len(questions)] for k in range(1, len(questions)))
        found.append(next((o for o in others if o.unit != q.unit), q))
    return found


def drawn_examples(task: Task, question: Question, examples: Sequence[Question], seed: int) -> list[Question]:
    """`task.shots` of `examples` (which stand `in_order`), none about the question's own picture.

    Raises DataError where there are too few.
    """
    if not task.shots:
        return []
    draw = random.Random(f"{seed}:{question.id}")
    tried = draw.sample(range(len(examples)), min(len(examples), 8 * task.shots + 16))
    chosen = [examples[i] for i in tried if examples[i].unit != question.unit][: task.shots]
    if len(chosen) < task.shots:
        raise DataError(
            f"{task.name}: {task.shots} examples are wanted, the train part has {len(examples)} questions, "
            f"{len(chosen)} of them about other pictures"
        )
    return chosen


def asked(task: Task, question: Question) -> str:
    """The words of the prompt."""
    open_prompt = task.open_prompt if task.open_prompt and not question.options else None
    return worded(open_prompt or task.prompt, question)


def worded(template: str, question: Question) -> str:
    """The template with the question's own words in their places."""
    hint = question.about.get("hint", "")
    values = {
        "question": question.text.strip(),
        "choices": "\n".join(f"{LETTERS[i]}. {o}" for i, o in enumerate(question.options)),
        "hint": f"{hint}\n" if hint else "",
    }
    # One pass: what a question says is never a placeholder.
    return re.sub(r"\{(question|choices|hint)\}", lambda m: values[m[1]], template)


def answer_of(example: Question) -> str:
    """What most people said; of captions the first."""
    return Counter(example.truths).most_common(1)[0][0]


def dialogue(task: Task, question: Question, examples: Sequence[Question]) -> Sample:
    """Raises DataError where a picture cannot be read."""
    segments: list[Segment] = []
    data: list[bytes] = []
    for turn, q in enumerate([*examples, question]):
        for part in _parts(task, q):
            if isinstance(part, str):
                segments.append(Segment(type="text", text=part, role="user", turn=2 * turn))
            else:
                place = Segment(type="image", media=len(data) + part, role="user", turn=2 * turn)
                segments.append(place)
        data += [picture_bytes(i) for i in q.images]
        # The last answer is unwritten; its segment only says where it begins.
        text = answer_of(q) if turn < len(examples) else "?"
        segments.append(Segment(type="text", text=text, role="assistant", turn=2 * turn + 1))
    kind = "caption" if task.form == "caption" and not examples else "instruct"
    if kind == "caption":
        segments = [s for s in segments if s.type == "image"]
    media = tuple(Media(media_id=str(n)) for n in range(len(data)))
    return Sample(
        id=question.id, kind=kind, source=task.name, segments=tuple(segments), media=media,
        image_bytes=tuple(data),
    )  # fmt: skip


def prompt_of(
    task: Task,
    question: Question,
    examples: Sequence[Question],
    tokenizer: Tokenizer,
    image: ImageSpec,
    image_tokens: int,
) -> Prompt:
    """Raises DecodeError, Unusable or DataError where a picture cannot be shown."""
    sample = dialogue(task, question, examples)
    rendered = prompt(sample, tokenizer, image_tokens, turn=len(examples))
    return Prompt(
        input_ids=rendered.input_ids.tolist(),
        image_ids=rendered.image_ids.tolist(),
        pictures=[tile for m in rendered.images for tile in decode(sample.image_bytes[m], image)],
        written=rendered.loss.tolist(),
    )


def blinded(question: Question, partner: Question) -> Question:
    """The question with the partner's pictures, as many as it has itself."""
    theirs = partner.images
    return replace(question, images=tuple(theirs[k % len(theirs)] for k in range(len(question.images))))


def _parts(task: Task, question: Question) -> list[str | int]:
    """Texts, and pictures by number: where "<image 1>" stands, the first time; the others before the text."""
    text, count = asked(task, question), len(question.images)
    pieces = re.split(r"<image (\d+)>", text)
    found: list[str | int] = []
    for i, piece in enumerate(pieces):
        number = int(piece) - 1 if i % 2 else -1
        if i % 2 and not 0 <= number < count:
            found.append(f"<image {piece}>")
        elif i % 2:
            found.append(f"image {piece}" if number in found else number)
        elif piece:
            found.append(piece)
    unnamed: list[str | int] = [n for n in range(count) if n not in found]
    return unnamed + _joined(found)


def _joined(parts: Sequence[str | int]) -> list[str | int]:
    """Texts in a row as one."""
    found: list[str | int] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return [p.strip() if isinstance(p, str) else p for p in found if isinstance(p, int) or p.strip()]
