"""What is known of a worker process that was killed."""

import multiprocessing
import time

from data_pipeline.stream.processes import WorkerMemory


def test_a_worker_is_looked_at_as_soon_as_it_is_there():
    memory = WorkerMemory(every_s=3600)
    memory.look([])
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,))
    worker.start()
    memory.look([worker])
    worker.kill()
    worker.join()
    memory.look([worker])
    said = str(memory)
    assert said.startswith(f"process {worker.pid} held 0.0")
    assert said.endswith(" GiB when last looked at")
