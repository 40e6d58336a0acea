"""A search on a Dask cluster: the images travel to each worker once, the states of trials with their futures.

Nothing but the network is shared. A worker that joins later is sent the images too; the trials of one that is lost go
to the others. Needs ``pip install "dask[distributed]"``, and nnlib on every machine.
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
    """The data set, as each worker keeps it: arrays, for the file that they came from may be on another machine."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.name = replace(data), f"nnlib-{data.fingerprint}"


class DaskExecutor(Executor):
    """Runs ``fn(data, ...)`` on the workers of a cluster, each with its own copy of ``data``, until it is left.

    ``client`` is a ``dask.distributed.Client``, or the address of a scheduler; NNLibError if none answers there.
    """

    def __init__(self, client: Any, data: Dataset) -> None:
        self.own, self.client, self.images = isinstance(client, str), client, Images(data)
        if self.own:
            try:
                self.client = Client(client, timeout=10)  # type: ignore[no-untyped-call]
            except (OSError, ValueError) as error:
                remedy = "Start one with `dask scheduler`, and name the address that it prints."
                raise NNLibError(
                    f"executor: no scheduler answers at {client!r} ({error}). {remedy}"
                ) from None
        self.client.register_plugin(self.images)
        self.executor = self.client.get_executor(
            pure=False
        )  # the same call twice is to be run twice

    @property
    def _max_workers(self) -> int:
        """How many trials the workers that are there now can train at a time; if there are none yet, one may wait."""
        return max(sum(self.client.nthreads().values()), 1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with dask.config.set(
            {"distributed.admin.large-graph-warning-threshold": "1GB"}
        ):  # a state is large
            return self.executor.submit(with_images, self.images.name, fn, *args[1:], **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers forget the images, and close the connection if it was made here."""
        self.client.unregister_worker_plugin(self.images.name)
        if self.own:
            self.client.close()


def with_images(name: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Call ``fn`` on a worker with the images that it keeps."""
    return fn(get_worker().plugins[name].data, *args)  # type: ignore[attr-defined]
