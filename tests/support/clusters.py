"""A Ray cluster of this machine: a head without a worker, and two raylets with one each."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

TRIES = 4  # Ray gives a raylet 30 seconds to start, in its code; a busy machine takes longer now and then
MEMORY = 100 * 2**20


@contextmanager
def two_machines() -> Iterator[Any]:
    """The cluster, which is shut down at the end."""
    import ray  # noqa: PLC0415 - of an extra
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - the same

    cluster = None
    for attempt in range(TRIES):
        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            break
        except Exception as error:
            with suppress(Exception):
                cluster.shutdown()
            if "timed out" not in str(error) or attempt == TRIES - 1:
                raise
    yield cluster
    ray.shutdown()
    cluster.shutdown()
