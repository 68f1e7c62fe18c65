"""Exports behind `fovea serve`, asked with the request bodies of lmms-eval 0.7.3 and ms-vlmeval 0.0.20."""

import base64
import io
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from benchmark_runs import page, run, written
from idefics2_like import publish
from released import release
from trainer.chat import Chat
from trainer.distributed import alone
from trainer.evaluation.asking import asked
from trainer.evaluation.layouts.read import read_task
from trainer.evaluation.question import picture_bytes
from trainer.export.idefics2 import export_idefics2
from trainer.serve import serving
from trainer.subject import open_subject

TASK = page("vqa_rad", max_new_tokens=6, prompt="{question} what is the colour?")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("harness")
    subject = open_subject(alone(), publish(home / "published"), 1).subject
    export_idefics2(subject.model, subject.tokenizer, home / "exported")
    return home / "exported"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    release("vqa_rad", root, TASK.n)
    return root


def in_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def of_lmms_eval(text: str, jpeg: bytes) -> dict:
    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")
    content = [
        {"type": "image_url", "image_url": {"url": in_url("png", png.getvalue())}},
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "model": "fovea", "max_tokens": 6, "temperature": 0}


def of_vlmevalkit(text: str, jpeg: bytes) -> dict:
    """Its limit is 32,768 tokens unless it is told another."""
    content = [
        {"type": "image_url", "image_url": {"url": in_url("jpeg", jpeg)}},
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": "fovea", "messages": messages, "n": 1, "max_tokens": 32768, "temperature": 0.0}


def of_vlmevalkit_gpt(text: str, jpeg: bytes) -> dict:
    body = of_vlmevalkit(text, jpeg) | {"max_tokens": 2048}
    del body["n"]
    body["messages"][0]["content"][0]["image_url"]["detail"] = "low"
    return body


def answer(url: str, body: dict) -> str:
    head = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())["choices"][0]["message"]["content"]


@pytest.mark.parametrize("form", [of_lmms_eval, of_vlmevalkit, of_vlmevalkit_gpt])
def test_a_harness_hears_from_a_served_export_what_fovea_eval_writes(
    form, exported, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("trainer.chat.MAX_NEW_TOKENS", 6)  # a model of random weights never ends
    run(open_subject(alone(), exported, 4), data, tmp_path, TASK)
    ours = {r["id"]: r["raw"].strip() for r in written(tmp_path, "vqa_rad")}
    assert len(set(ours.values())) > 3  # else the pictures would not matter
    questions = read_task(TASK, data)[0]
    bodies = [form(asked(TASK, q), picture_bytes(q.images[0])) for q in questions]
    with serving(Chat.open(exported)) as url, ThreadPoolExecutor(8) as pool:
        theirs = list(pool.map(lambda b: answer(url, b), bodies))
    assert dict(zip((q.id for q in questions), theirs, strict=True)) == ours
