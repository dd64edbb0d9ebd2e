"""Cloud Storage's own client library against the simulated one: what goes up comes down, whole and by name."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from typing import Any

import pytest

from data_gen.config import Simulated
from data_gen.llm.server import SimulatedServer, storage
from data_gen.llm.server.batch_faults import BatchFaults, BatchTrouble


def served(body: Callable[[Any], None], *, store: storage.Store) -> None:
    """Runs `body(client)` in a thread while the store is served."""

    async def within() -> None:
        async with SimulatedServer(Simulated(), formats=(lambda _: storage.routes(store),)) as server:
            await asyncio.to_thread(talk, server.address)
            await asyncio.sleep(0.05)  # the server sees the client's connections end

    def talk(address: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        client = Client("p", AnonymousCredentials(), client_options={"api_endpoint": address})
        try:
            body(client)
        finally:
            client.close()

    asyncio.run(within())


@pytest.mark.parametrize("size", [0, 1, 300_000, 9_000_000])
@pytest.mark.parametrize("chunk_bytes", [None, 2**20])
def test_any_size_is_uploaded_whole_or_in_pieces_and_comes_back(size: int, chunk_bytes: int | None) -> None:
    store, data = storage.Store(), os.urandom(size)

    def body(client: Any) -> None:
        blob = client.bucket("b").blob("a folder/ü?.jsonl", chunk_size=chunk_bytes)
        blob.upload_from_file(io.BytesIO(data), content_type="application/jsonl", size=size, retry=None)
        assert blob.size == size
        found = client.bucket("b").get_blob("a folder/ü?.jsonl")
        assert (found.content_type, found.md5_hash) == ("application/jsonl", blob.md5_hash)
        found.chunk_size = None
        assert found.download_as_bytes(retry=None) == data

    served(body, store=store)
    assert store.objects["b", "a folder/ü?.jsonl"].data == data
    assert not store.sessions


def test_lists_go_by_prefix_and_page() -> None:
    store = storage.Store()
    for number in range(25):
        store.put("b", f"results/{number:02d}", b"x")
        store.put("other", f"results/{number:02d}", b"x")
    store.put("b", "requests", b"x")

    def body(client: Any) -> None:
        names = [blob.name for blob in client.list_blobs("b", prefix="results/", page_size=10)]
        assert names == [f"results/{number:02d}" for number in range(25)]
        assert [blob.name for blob in client.list_blobs("b", prefix="nothing")] == []

    served(body, store=store)


def test_an_upload_that_is_only_to_create_does_not_overwrite() -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    store = storage.Store()

    def body(client: Any) -> None:
        blob = client.bucket("b").blob("once")
        for size in (10, 9_000_000):
            blob.upload_from_file(io.BytesIO(bytes(size)), size=size, if_generation_match=0)
            with pytest.raises(PreconditionFailed):
                blob.upload_from_file(io.BytesIO(b"again"), size=5, if_generation_match=0, retry=None)
            blob.delete(if_generation_match=blob.generation)
        with pytest.raises(NotFound):
            blob.download_as_bytes()

    served(body, store=store)


def test_a_download_that_is_dropped_is_seen_by_the_client() -> None:
    import requests

    store = storage.Store(BatchTrouble(BatchFaults(broken_downloads=1)))
    store.put("b", "name", b"data")

    def body(client: Any) -> None:
        blob = client.bucket("b").blob("name")
        with pytest.raises(requests.ConnectionError):
            blob.download_as_bytes(retry=None)
        assert blob.download_as_bytes(retry=None) == b"data"

    served(body, store=store)


def test_what_is_no_upload_is_refused() -> None:
    import requests

    def body(client: Any) -> None:
        base = f"{client._connection.API_BASE_URL}/upload/storage/v1/b/b/o"
        for query, data, headers in (
            ("", b"", {}),
            ("?uploadType=multipart", b"--x\r\n\r\n{}\r\n--x--", {"content-type": "multipart/related; boundary=x"}),
            ("?uploadType=media", b"data", {}),
            ("?uploadType=resumable", b"{}", {}),
        ):
            with requests.post(base + query, data=data, headers=headers, timeout=10) as answer:
                assert answer.status_code == 400, query
        with requests.put(f"{base}?upload_id=none", data=b"x", timeout=10) as answer:
            assert answer.status_code == 404

    served(body, store=storage.Store())
