"""The chat endpoint over real HTTP: a tiny random model, asked well and badly; one trained checkpoint."""

import base64
import http.client
import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from data_pipeline.build.synthesize.local import local_endpoints
from data_pipeline.build.synthesize.reader import SyntheticReader
from data_pipeline.build.synthesize.source import SyntheticSource
from data_pipeline.errors import ConfigError, FoveaError, PreflightError
from data_pipeline.image_spec import ImageSpec, PixelShuffle
from data_pipeline.sample import Media, Sample, Segment
from data_pipeline.stream.chat import prompt
from data_pipeline.stream.decode import decode
from data_pipeline.stream.tokens import train_tokenizer
from toy_backbones import toy_mistral, toy_tower
from trainer.chat import Chat
from trainer.evaluation.generate import Prompt, generate
from trainer.models.build import build_model
from trainer.models.config import Model
from trainer.serve import MAX_REQUEST, serving
from waiting import wait_for


def png(color, size=(32, 20)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def uri(data):
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    }


@pytest.fixture(scope="module")
def chat():
    torch.manual_seed(0)
    tokenizer = train_tokenizer([], 263)
    image = ImageSpec(longest_edge=32, patch=8, max_pixels=10_000)
    config = Model(image=image, connector=PixelShuffle(factor=2))
    model = build_model(
        config, toy_tower(), toy_mistral(tokenizer.text_vocab_size, initializer_range=0.5), "image_full"
    )
    return Chat(model.eval(), tokenizer, config.image, config.image_tokens, "tiny@0")


@pytest.fixture(scope="module")
def url(chat):
    with serving(chat) as url:
        yield url


def post(url, body, path="/v1/chat/completions", headers=None, method="POST"):
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=600)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, body=data if method == "POST" else None, headers=headers or {})
    response = connection.getresponse()
    page = json.loads(response.read())
    connection.close()
    return response.status, page


def ask(content, **more):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 12, **more}


def directly(chat, sample, end_id, steps=12):
    """The same question by the evaluation's own code, alone in its batch."""
    rendered = prompt(sample, chat.tokenizer, chat.image_tokens)
    pictures = [tile for m in rendered.images for tile in decode(sample.image_bytes[m], chat.image)]
    one = Prompt(
        rendered.input_ids.tolist(),
        rendered.image_ids.tolist(),
        pictures,
    )
    ids = generate(chat.model, [one], max_new_tokens=steps, eos_id=end_id, pad_id=chat.tokenizer.pad_id)[0]
    return chat.tokenizer.decode(ids).strip()


def question(text, data):
    return Sample(
        id="q",
        kind="instruct",
        source="s",
        segments=(
            Segment(type="image", media=0, role="user", turn=0),
            Segment(type="text", text=text, role="user", turn=0),
            Segment(type="text", text="?", role="assistant", turn=1),
        ),
        media=(Media(media_id="m"),),
        image_bytes=(data,),
    )


def test_an_answer_is_what_the_evaluation_would_decode(chat, url):
    status, page = post(url, ask([uri(png("red")), {"type": "text", "text": "what?"}]))
    assert status == 200
    expected = directly(chat, question("what?", png("red")), chat.tokenizer.end_id)
    assert page["choices"][0]["message"]["content"] == expected
    assert page["model"] == "tiny@0"
    assert page["usage"]["completion_tokens"] <= 12
    other = directly(chat, question("what?", png("blue")), chat.tokenizer.end_id)
    assert expected != other  # else the picture would not matter


def test_an_image_alone_asks_for_a_caption(chat, url):
    sample = Sample(
        id="c",
        kind="caption",
        source="s",
        segments=(Segment(type="image", media=0), Segment(type="text", text="?")),
        media=(Media(media_id="m"),),
        image_bytes=(png("red"),),
    )
    _, page = post(url, ask([uri(png("red"))]))
    assert page["choices"][0]["message"]["content"] == directly(chat, sample, chat.tokenizer.eos_id)


def test_requests_at_one_time_get_the_answers_that_they_get_alone(chat, url):
    colours = ["red", "green", "blue", "white", "black", "orange"] * 3
    asked = [ask([uri(png(c)), {"type": "text", "text": f"{c} " * (n % 3)}], max_tokens=4 + n % 5)
             for n, c in enumerate(colours)]  # fmt: skip
    alone = [post(url, a)[1]["choices"][0] for a in asked]
    with ThreadPoolExecutor(9) as pool:
        together = [p["choices"][0] for _, p in pool.map(lambda a: post(url, a), asked)]
    assert together == alone


def test_finish_reason_says_whether_the_answer_was_cut(url):
    _, page = post(url, ask("hello", max_tokens=2))
    assert page["choices"][0]["finish_reason"] == "length"
    assert page["usage"]["completion_tokens"] == 2


def test_more_tokens_than_the_server_makes_are_a_cut_answer(url, monkeypatch):
    monkeypatch.setattr("trainer.chat.MAX_NEW_TOKENS", 3)
    _, page = post(url, ask("hello", max_tokens=32768))
    assert page["choices"][0]["finish_reason"] == "length"
    assert page["usage"]["completion_tokens"] == 3


def test_clients_may_use_the_short_name_and_the_later_name_of_the_limit(url):
    plain = post(url, ask("hello", max_tokens=2))
    body = {**ask("hello"), "model": "fovea", "max_completion_tokens": 2, "frequency_penalty": 0.0}
    del body["max_tokens"]
    assert post(url, body) == plain


def test_models_are_listed(url):
    assert post(url, b"", "/v1/models", method="GET") == (
        200, {"object": "list", "data": [{"id": "tiny@0", "object": "model"}]},
    )  # fmt: skip


def said(url, **more):
    status, page = post(url, ask("hello", **more))
    assert status == 200, page
    return page["choices"][0]["message"]["content"], page["choices"][0]["finish_reason"]


def test_an_answer_is_drawn_by_its_seed_among_others_and_ends_before_a_stop_word(url):
    greedy = said(url)
    assert said(url, temperature=0, seed=5) == said(url, temperature=2, top_k=1) == greedy
    drawn = said(url, temperature=2, seed=5)
    assert drawn != greedy
    with ThreadPoolExecutor(8) as pool:  # together in one batch, each by its own seed
        beside = list(pool.map(lambda s: said(url, temperature=2, seed=s), (5, 6, 7, 5)))
    assert beside[0] == beside[3] == drawn
    assert len({text for text, _ in beside}) > 1
    assert len({said(url, temperature=2)[0] for _ in range(4)}) > 1  # no seed: another answer each time
    text = drawn[0]
    word = text[len(text) // 2 :][:2]
    assert said(url, temperature=2, seed=5, stop=[word, "never there"]) == (
        text[: text.index(word)].strip(),
        "stop",
    )
    assert said(url, temperature=2, seed=5, stop="never there") == drawn


BAD = {
    "no json": (b"{", 400),
    "no messages": ({"messages": []}, 400),
    "role": ({"messages": [{"role": "root", "content": "x"}]}, 400),
    "last": ({"messages": [{"role": "assistant", "content": "x"}]}, 400),
    "temperature": (ask("x", temperature=-1), 400),
    "top_p": (ask("x", temperature=1, top_p=0), 400),
    "stop": (ask("x", stop=[""]), 400),
    "stream": (ask("x", stream=True), 400),
    "n": (ask("x", n=2), 400),
    "model": (ask("x", model="gpt"), 400),
    "no tokens": (ask("x", max_tokens=0), 400),
    "penalty": (ask("x", frequency_penalty=0.5), 400),
    "repetition": (ask("x", repetition_penalty=1.1), 400),
    "long prompt": (ask("x" * 9000), 400),
    "remote image": (ask([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]), 400),
    "file": (ask([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]), 400),
    "base64": (ask([{"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}}]), 400),
    "no image": (ask([uri(b"hello")]), 400),
    "tiff": (ask([uri(b"II*\0" + bytes(100))]), 400),
    "too many pixels": (ask([uri(png("red", (200, 200)))]), 400),
    "images": (ask([uri(png("red"))] * 9), 400),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_why_and_the_server_lives_on(url, case):
    body, status = BAD[case]
    found, page = post(url, body)
    assert found == status
    assert page["error"]["message"]
    assert post(url, ask("hello"))[0] == 200


def test_path_host_and_size_are_checked_before_the_body(url):
    assert post(url, ask("x"), path="/v1/completions")[0] == 404
    assert post(url, b"", "/etc/passwd", method="GET")[0] == 404
    assert post(url, ask("x"), headers={"Host": "evil.example"})[0] == 403
    assert post(url, b"", "/v1/models", headers={"Host": "evil.example:80"}, method="GET")[0] == 403
    assert post(url, b"", headers={"Content-Length": str(MAX_REQUEST + 1)})[0] == 413
    assert post(url, b"", headers={"Content-Length": "-5"})[0] == 411


def test_a_fault_of_the_model_is_a_status_and_the_server_lives_on(chat, url, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("trainer.chat.generate", lambda *a, **k: 1 / 0)
        assert post(url, ask("x"))[0] == 500
    assert post(url, ask("x"))[0] == 200


def test_it_listens_on_this_machine_alone_and_says_when_the_port_is_taken(chat, url):
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(FoveaError, match="port"):
        serving(chat, int(url.split(":")[2].split("/")[0])).__enter__()
    before = threading.active_count()
    with serving(chat) as other:
        assert post(other, ask("x"))[0] == 200
    with pytest.raises(OSError):
        post(other, ask("x"))
    wait_for(lambda: threading.active_count() <= before)


def test_a_checkpoint_that_is_none_is_said_so(tmp_path):
    page = {"name": "s", "path": ".", "task": "caption", "checkpoint": "none"}
    source = SyntheticSource.model_validate(page)
    with pytest.raises(ConfigError, match="no checkpoint"), local_endpoints([source], tmp_path):
        pass
    (tmp_path / "none").mkdir()
    with pytest.raises(PreflightError, match="did not start"), local_endpoints([source], tmp_path):
        pass


@pytest.mark.slow
def test_a_dataset_is_captioned_by_a_checkpoint_of_this_machine(trained, tmp_path):
    page = {
        "name": "syn", "path": str(trained / "data"), "from_sources": ["scenes_alt"], "task": "caption",
        "checkpoint": str(trained / "align"), "prompt": "bare", "max_tokens": 8, "keep": {"min_words": 0},
    }  # fmt: skip
    source = SyntheticSource.model_validate(page)
    with local_endpoints([source], trained) as endpoints:
        reader = SyntheticReader(source, trained / "data", tmp_path / "c.sqlite", endpoints["syn"])
        found = [i for u in reader.units() for i in reader.read(u)]
    with local_endpoints([source], trained) as endpoints:  # another port, the same answers
        reader = SyntheticReader(
            source,
            trained / "data",
            tmp_path / "d.sqlite",
            endpoints["syn"],
        )
        assert [i for u in reader.units() for i in reader.read(u)] == found
    assert len(found) > 30
    assert {i.fault.reason for i in found if i.fault} <= {"empty answer"}
    made = [i.sample for i in found if i.sample]
    assert made
    assert {s.synthetic["generator"] for s in made} == {made[0].synthetic["generator_version"]}
    assert made[0].synthetic["generator"].startswith("small/align/step_000012@")
    assert all(s.segments[-1].role == "recaption" for s in made)
    with pytest.raises(OSError):
        post(endpoints["syn"], ask("x"))


def test_the_server_process_ends_with_its_standard_input(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "trainer.serve", str(tmp_path)], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no checkpoint" in done.stderr
