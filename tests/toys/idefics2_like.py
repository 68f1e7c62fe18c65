"""Little models of transformers' Idefics2: their directories, its inputs as a Batch of ours, its answers."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
)

import mistral_like
from data_pipeline.batch import IGNORE, Batch
from data_pipeline.sample import Sample
from data_pipeline.stream.chat import prompt
from data_pipeline.stream.decode import decode
from data_pipeline.stream.tokens import Tokenizer
from trainer.evaluation.generate import Prompt, generate
from trainer.models.autoregressive import AutoregressiveVLM

TEXTS = ["User: what is it?", "Assistant: a red circle", "a blue square", "where is the circle? left"] * 9

PATCH, LATENTS, IMAGE = 8, 3, 58
"""Pixels of a patch's side; visual tokens of a picture; the id of <image> where `vocabulary` is 60."""


def config(kind: str = "mistral", vocabulary: int = 60, image: int = IMAGE, **text: object) -> Idefics2Config:
    """Of a language model of `kind`. With tie_word_embeddings the whole model's head is tied."""
    language = {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Idefics2Config(
        image_token_id=image,
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
        text_config={**language, **text},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": PATCH,
            "initializer_range": 0.2,
        },
        perceiver_config={
            "hidden_size": 32,
            "rms_norm_eps": 1e-5,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 6,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
        },
    )


def model(config: Idefics2Config, seed: int = 0) -> Idefics2ForConditionalGeneration:
    """With random weights, also where transformers begins at ones and zeros: nothing hides there."""
    torch.manual_seed(seed)
    made = Idefics2ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def batch_of(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    levels: torch.Tensor,
    pixel_mask: torch.Tensor,
    *,
    image_token: int = IMAGE,
    latents: int = LATENTS,
    patch: int = PATCH,
) -> Batch:
    """What transformers is given, as a Batch. `levels` [B, N, 3, H, W]: grey levels, before normalisation;
    a picture whose mask is empty is padding, and pixels that fill no patch are left out.
    """
    patches: list[torch.Tensor] = []
    index: list[tuple[int, int, int]] = []
    grids: list[tuple[int, int]] = []
    image_ids = torch.zeros_like(input_ids)
    for b, row in enumerate(input_ids):
        places = (row == image_token).nonzero().flatten()
        spans: Sequence[torch.Tensor] = places.split(latents) if len(places) else ()
        real = [n for n in range(levels.shape[1]) if pixel_mask[b, n].any()]
        for n, span in zip(real, spans, strict=True):
            rows, columns = (int(pixel_mask[b, n].any(d).sum()) // patch for d in (1, 0))
            image_ids[b, span] = len(grids) + 1
            cut = levels[b, n, :, : rows * patch, : columns * patch]
            cut = cut.unfold(1, patch, patch).unfold(2, patch, patch)
            patches.append(cut.permute(1, 2, 0, 3, 4).flatten(0, 1))
            index += [(len(grids), r, c) for r in range(rows) for c in range(columns)]
            grids.append((rows, columns))
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:]
    return Batch(
        input_ids=input_ids,
        labels=shifted,
        positions=torch.arange(input_ids.shape[1]).expand_as(input_ids),
        document_ids=attention_mask,
        image_ids=image_ids,
        patches=torch.cat([torch.empty(0, 3, patch, patch, dtype=levels.dtype), *patches]),
        patch_index=torch.tensor(index, dtype=torch.int64).view(-1, 3),
        grids=tuple(grids),
    )


def publish(directory: Path, kind: str = "mistral", shard: str = "40KB", **text: object) -> Path:
    """A directory of Idefics2, with random weights and a tokenizer of few words, by transformers alone."""
    source = mistral_like.write(directory.with_name("source"), *mistral_like.learn(TEXTS, 60), "first")
    processor = Idefics2Processor(
        Idefics2ImageProcessorPil(
            size={"longest_edge": 64, "shortest_edge": PATCH}, do_image_splitting=False
        ),
        AutoTokenizer.from_pretrained(source),
        image_seq_len=LATENTS,
    )
    processor.save_pretrained(directory)
    names = processor.tokenizer
    made = config(kind, len(names), names.convert_tokens_to_ids("<image>"), **text)
    model(made).save_pretrained(directory, max_shard_size=shard)
    return directory


def our_answer(model: AutoregressiveVLM, tokenizer: Tokenizer, sample: Sample, steps: int) -> list[int]:
    """The tokens that follow the sample's first question, up to the end of the turn."""
    asked = prompt(sample, tokenizer, model.config.image_tokens)
    pictures = [p for m in asked.images for p in decode(sample.image_bytes[m], model.config.image)]
    ready = Prompt(asked.input_ids.tolist(), asked.image_ids.tolist(), pictures)
    (tokens,) = generate(
        model, [ready], max_new_tokens=steps, eos_id=tokenizer.end_id, pad_id=tokenizer.pad_id
    )
    return tokens


def their_answers(directory: Path, samples: Sequence[Sample], steps: int, batch: int = 1) -> list[list[int]]:
    """The same by plain transformers, from the files of `directory` alone, `batch` samples at once."""
    processor: Any = AutoProcessor.from_pretrained(directory, local_files_only=True)
    model: Any = AutoModelForImageTextToText.from_pretrained(directory, local_files_only=True).eval()
    assert type(processor) is Idefics2Processor
    assert type(model) is Idefics2ForConditionalGeneration
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert end in model.generation_config.eos_token_id
    texts, pictures, answers = [], [], []
    for sample in samples:
        first = [s for s in sample.segments if (s.role, s.turn) == ("user", 0)]
        content = [
            {"type": "image"} if s.type == "image" else {"type": "text", "text": s.text} for s in first
        ]
        shown = [s.media for s in first if s.type == "image"]
        pictures.append([Image.open(io.BytesIO(sample.image_bytes[m])) for m in shown])
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        texts.append(text)
    for i in range(0, len(texts), batch):
        asked = {"text": texts[i : i + batch], "images": pictures[i : i + batch]}
        inputs = processor(**asked, padding=True, return_tensors="pt")
        found = model.generate(**inputs, max_new_tokens=steps, do_sample=False, eos_token_id=end)
        for answer in found[:, inputs["input_ids"].shape[1] :].tolist():
            answers.append(answer[: answer.index(end)] if end in answer else answer)
    return answers
