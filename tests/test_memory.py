"""What every kind of frame pool has to do; each kind runs the same tests."""

import os
from itertools import pairwise

import pytest

from cuframes._native.mapping import Mapping
from cuframes.errors import ProtocolError
from cuframes.host.segment import create_memfd
from cuframes.memory import HostPool


class Conformance:
    """Subclasses (here and in test_device.py) name the kind and make a pool of it."""

    kind = ""

    def create(self, frame_bytes, ring_size):
        raise NotImplementedError

    @pytest.fixture
    def pool(self):
        pool = self.create(10_000, 4)
        yield pool
        pool.close()

    def test_kind_and_features(self, pool):
        assert pool.kind == self.kind
        # cuda-ipc is plain version 3: nothing to announce.
        assert bool(pool.features) == (self.kind in ("host", "cuda"))

    def test_slots_do_not_overlap(self, pool):
        assert pool.memory.count == 4
        starts = sorted(pool.memory.addresses)
        assert all(b - a >= 10_000 for a, b in pairwise(starts))
        assert all(start % 256 == 0 for start in starts)

    def test_memory_outlives_the_pools_close(self, pool):
        memory = pool.memory
        pool.close()
        pool.close()
        assert len(set(memory.addresses)) == 4

    def test_subscribers_are_sent_what_they_need(self, pool):
        descriptors = pool.descriptors()
        assert len(descriptors) == (self.kind in ("host", "cuda"))
        assert all(os.fstat(fd) for fd in descriptors)
        if self.kind == "host":
            assert pool.exports is None
            return
        handles, offsets, pointers, events, ring_event = pool.exports
        assert (handles is None) == (self.kind == "cuda")
        assert offsets == [0] * 4
        assert pointers is None
        assert len(set(events)) == 4 or len(events) == 4
        assert {len(raw) for raw in (*events, ring_event, *(handles or []))} == {64}

    def test_the_same_process_may_use_it(self, pool):
        pool.share_in_process(12345)


class TestHostPool(Conformance):
    kind = "host"

    def create(self, frame_bytes, ring_size):
        return HostPool.create("conformance", frame_bytes, ring_size)

    def test_a_subscriber_maps_the_same_memory_read_only(self, pool):
        opened = HostPool.open(pool.descriptors()[0], 10_000, 4)
        assert (opened.stride, opened.stride % 4096) == (pool.stride, 0)
        assert pool.mapping.writable
        assert not opened.mapping.writable

    def test_too_small_a_pool_is_refused(self, pool):
        with pytest.raises(ProtocolError, match="bytes"):
            HostPool.open(pool.descriptors()[0], 10_000, 16)

    def test_unsealed_memory_is_refused(self, tmp_path):
        path = tmp_path / "pool"
        path.write_bytes(bytes(4 * 12288))
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(ProtocolError, match="not sealed"):
            HostPool.open(fd, 10_000, 4)
        os.close(fd)

    def test_sealed_memory_cannot_be_mapped_writable(self):
        file, mapping = create_memfd("test", 8192)
        with file:
            with pytest.raises(PermissionError):
                Mapping(file.fileno(), 8192, writable=True)
            assert Mapping(file.fileno(), 8192).size == mapping.size


def test_mapping_errors_are_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="cannot map"):
        Mapping(fd, 0)
    os.close(fd)
