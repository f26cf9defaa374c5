"""Work on the machines of a Ray cluster, which hands it out and repeats what a lost machine leaves undone (extra
`[ray]`)."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

Work = Callable[[Any], Any]


class Worker:
    """Holds in a process of Ray what the work needs, and does it item by item."""

    def __init__(self, make: Callable[..., Work], arguments: tuple, items: Sequence[Any]) -> None:
        self.work, self.items = make(*arguments), items

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Does the work on the item whose number is the batch; its result, or what is wrong with the item."""
        result = np.empty(1, dtype=object)
        try:
            result[0] = self.work(self.items[int(batch["id"][0])])
        except ValueError as error:  # a user's mistake, for the user to read
            result[0] = error
        return {"id": batch["id"], "result": result, "machine": np.array([machine()])}


def on_machines(
    make: Callable[..., Work], arguments: tuple, items: Sequence[Any], address: str | None
) -> tuple[list[Any], Counter]:
    """Does the same work on many items, on the machines of a Ray cluster.

    An item whose worker is lost is done anew by another, so that it must not matter how often it is done.

    Args:
        make: called once per worker with `arguments`; returns what is called with each item.
        arguments: what a worker needs, which Ray sends to it.
        items: what is worked on, small; files lie where all machines reach them.
        address: of the cluster, such as `auto` or `ray://HOST:10001`; one is started on this machine where absent.

    Returns:
        The results in the order of the items; and how many each machine did, by Ray's name of it.

    Raises:
        ValueError: if Ray is not installed, and as the work does.
    """
    ray = import_ray()
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # items that are at hand need no processor to be read, and all of these are for the workers
    numbers = ray.data.from_items([{"id": number} for number in range(len(items))], override_num_blocks=len(items))
    done = numbers.map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=(make, arguments, items),
        compute=ray.data.ActorPoolStrategy(min_size=min(len(items), cores), max_size=len(items)),
        num_cpus=1,
    )
    rows: Iterator[dict[str, Any]] = tqdm(done.iter_rows(), total=len(items), desc="parts", leave=False, disable=None)
    ordered = sorted(rows, key=lambda row: row["id"])
    for row in ordered:
        if isinstance(row["result"], ValueError):
            raise row["result"]
    return [row["result"] for row in ordered], Counter(str(row["machine"]) for row in ordered)


def machine() -> str:
    """Ray's name of the machine that asks."""
    return import_ray().get_runtime_context().get_node_id()


def import_ray() -> Any:
    """Ray, with Ray Data.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra of its own
        import ray.data  # noqa: PLC0415 - the same
    except ImportError as error:
        raise ValueError("the engine ray needs Ray: pip install 'hymate[ray]'") from error
    return ray
