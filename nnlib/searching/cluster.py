"""A search on a Dask cluster: each worker gets the images once, and a trial's state with each call.

The machines share nothing but the network. A worker that joins later is sent the images too, and
the trials of a lost worker go to the others. Every machine needs nnlib and
``pip install "dask[distributed]"``.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

import dask
from dask.distributed import Client, WorkerPlugin, get_worker

from nnlib.data.dataset import Dataset
from nnlib.errors import NNLibError


class Images(WorkerPlugin):
    """The data set as each worker keeps it.

    It travels as arrays, because its files may be on another machine.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = replace(data)
        self.name = f"nnlib-{data.fingerprint}"


class DaskExecutor(Executor):
    """Runs ``fn(data, ...)`` on the workers of a cluster, each with its own copy of ``data``.

    ``client`` is a ``dask.distributed.Client``, or the address of a scheduler. Raises NNLibError
    if no scheduler answers there.
    """

    def __init__(self, client: Any, data: Dataset) -> None:
        self.own = isinstance(client, str)  # then the connection is made and closed here
        self.client = _connect(client) if self.own else client
        self.images = Images(data)
        self.client.register_plugin(self.images)
        # Calls with equal arguments are different runs: Dask must not merge them.
        self.executor = self.client.get_executor(pure=False)

    @property
    def _max_workers(self) -> int:
        """How many trials the present workers can train at once; at least 1, which then waits."""
        return max(sum(self.client.nthreads().values()), 1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # A trial's state is large; Dask would warn of that at each call.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
            return self.executor.submit(with_images, self.images.name, fn, *args[1:], **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Remove the images from the workers, and close the connection if it was made here."""
        self.client.unregister_worker_plugin(self.images.name)
        if self.own:
            self.client.close()


def _connect(address: str) -> Any:
    try:
        return Client(address, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        problem = f"no scheduler answers at {address!r} ({error})"
        remedy = "Start one with `dask scheduler`, and use the address that it prints."
        raise NNLibError(f"executor: {problem}. {remedy}") from None


def with_images(name: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Call ``fn`` on a worker, with the images that the worker keeps."""
    return fn(get_worker().plugins[name].data, *args)  # type: ignore[attr-defined]
