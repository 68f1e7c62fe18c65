"""megatron-energon as a peer of `bench_stream.py`: its own tar reader, shuffling, packing and loader."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import megatron.energon as energon
from megatron.energon.edataclass import edataclass

from data_pipeline.sample import Sample
from data_pipeline.stream.collate import Document, Piece, collate


@edataclass
class Held(energon.Sample):
    """What energon carries from stage to stage: a sample, a piece of one, or the pieces of a row."""

    what: Any


@edataclass
class Made(energon.Batch):
    batch: Any


@energon.stateless
def cook(files: dict) -> Held:
    row = json.loads(files["json"])
    pictures = {int(k.split(".")[0]): files[k] for k in files if k[0].isdigit()}
    row["images"] = [{"bytes": pictures.get(i)} for i in range(len(row["media"]))]
    return Held(**energon.basic_sample_keys(files), what=Sample.from_row(row))


class Encoder(energon.TaskEncoder):
    decoder = None  # bytes stay bytes: `Work.pieces` decodes them
    cookers = (energon.Cooker(cook),)

    def __init__(self, work: Any, length: int) -> None:
        super().__init__()
        self.work, self.length = work, length

    @energon.stateless
    def encode_sample(self, sample: Held) -> Iterator[Held]:
        for rendered, pictures in self.work.pieces(sample.what):
            piece = Piece(sample.what.id, sample.what.source, 0, rendered)
            yield Held.derive_from(sample, what=Document(piece, tuple(pictures)))

    def select_samples_to_pack(self, samples: list[Held]) -> list[list[Held]]:
        """First fit, largest first."""
        rows: list[list[Held]] = []
        free: list[int] = []
        for sample in sorted(samples, key=lambda s: -len(s.what.piece.tokens)):
            size = len(sample.what.piece.tokens)
            row = next((r for r, room in enumerate(free) if room >= size), None)
            if row is None:
                rows.append([sample])
                free.append(self.length - size)
            else:
                rows[row].append(sample)
                free[row] -= size
        return rows

    @energon.stateless
    def pack_selected_samples(self, samples: list[Held]) -> Held:
        return Held.derive_from(samples[0], what=[s.what for s in samples])

    @energon.stateless
    def batch(self, samples: list[Held]) -> Made:
        rendering = self.work.rendering
        batch = collate(
            [s.what for s in samples],
            tokenizer=rendering.tokenizer,
            image=rendering.image,
            image_tokens=rendering.image_tokens,
            sequence_length=self.length,
        )
        return Made.derive_from(samples[0], batch=batch)


def reader(work: Any, directory: Path, *, rows: int = 2, packed: int = 256, shuffled: int = 1000) -> Callable:
    """A side of the benchmark. The tars are linked into `directory` and indexed there by energon, untimed."""
    directory.mkdir(parents=True)
    for n, tar in enumerate(work.tars):
        (directory / f"{n:05d}.tar").symlink_to(tar.resolve())
    energon.BaseWebdatasetFactory.prepare_dataset(
        directory,
        [f"{n:05d}.tar" for n in range(len(work.tars))],
        split_parts_ratio=[("train", 1.0)],
        workers=1,
    )
    (directory / ".nv-meta" / "dataset.yaml").write_text(
        "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    )

    def run(work: Any) -> Iterator[tuple[int, int]]:
        dataset = energon.get_train_dataset(
            directory,
            worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=rows,
            packing_buffer_size=packed,
            shuffle_buffer_size=shuffled,
            max_samples_per_sequence=None,
            task_encoder=Encoder(work, work.rendering.budget.tokens),
            repeat=False,
        )
        for made in energon.get_loader(dataset):
            yield int((made.batch.document_ids != 0).sum()), len(made.batch.grids)

    return run
